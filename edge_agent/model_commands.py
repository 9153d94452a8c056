"""The commands of `edge-agent` that use its models, the common one and the personal: evaluate, predict."""

import argparse
import json
import sys
from pathlib import Path

from zo.manifest import PRECISIONS


def add(commands: argparse._SubParsersAction, state: Path) -> None:
    """Add their parsers. state: the default."""
    evaluate = commands.add_parser("evaluate", help="how good the common model is, and the personal one where there is one")
    evaluate.add_argument("--data", type=Path, required=True, help="labelled .jsonl file, or a folder of them")
    evaluate.add_argument("--json", action="store_true", help="one JSON object")
    evaluate.set_defaults(command=_evaluate)
    predict = commands.add_parser(
        "predict",
        help="label texts from standard input, with the personal model where there is one",
        description='Label texts from standard input, plain lines or {"text": "..."}; one JSON object a line on standard output,'
        " of nulls for a blank line.",
    )
    predict.add_argument("--common", action="store_true", help="use the common model even where there is a personal one")
    predict.set_defaults(command=_predict)
    for each in (evaluate, predict):
        each.add_argument(
            "--state", type=Path, default=state, help=f"the agent's folder, which there must be: it holds what was learnt [{state}]"
        )
        each.add_argument("--bundle", default="", help="folder of the bundle that it learnt from [the newest in the state folder]")
        each.add_argument("--precision", choices=PRECISIONS, help="base to compute with [the bundle's default, or the one downloaded]")


def _evaluate(given: argparse.Namespace) -> None:
    from edge_agent.personal import Models, told

    found = Models(given.state, given.bundle, given.precision).evaluate(given.data)
    print(json.dumps(found) if given.json else told(found))


def _predict(given: argparse.Namespace) -> None:
    from edge_agent.personal import Models

    for answer in Models(given.state, given.bundle, given.precision).predict(sys.stdin.buffer, given.common):
        print(json.dumps(answer, ensure_ascii=False), flush=True)
