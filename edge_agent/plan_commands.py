"""The commands of `edge-agent` that measure what this device can do: plan, calibrate."""

import argparse
import json
from pathlib import Path

from zo.manifest import PRECISIONS


def add(commands: argparse._SubParsersAction) -> None:
    """Add their parsers."""
    plan = commands.add_parser(
        "plan",
        help="what fits into memory, and how this device would best train a bundle",
        description=(
            "Predict what training takes in memory by every method, with gradients and without, and what fits. Of a bundle,"
            " measure also its stages on this device, and tell what equal progress would cost with every way to cut it."
        ),
    )
    plan.add_argument("--memory", metavar="SIZE", help="as 800MB, 1GiB or 25%% of this machine's [what an agent may take here]")
    plan.add_argument("--bundle", "--model", type=Path, metavar="BUNDLE", help="its folder")
    plan.add_argument("--shape", metavar="NAME", help="instead, a published model, as llama-1b; any unknown name lists them")
    plan.add_argument("--precision", choices=PRECISIONS, help="base to compute with [the bundle's default]")
    plan.add_argument("--algorithm", choices=["mezo", "fedspzo"], default="fedspzo", help="[fedspzo]")
    plan.add_argument("--clean", action="store_true", help="the clean form as well (split.clean of a run)")
    plan.add_argument("--directions", type=int, default=1, help="of the lowest part, side by side [1]")
    plan.add_argument("--examples", "--batch", type=int, default=8, metavar="B", help="in a batch [8]")
    plan.add_argument("--tokens", type=int, metavar="S", help="of an example [32, or the most that the bundle takes]")
    plan.add_argument("--every-token", action="store_true", help="a loss at every token, as in language modelling, not one an example")
    plan.add_argument("--threads", type=int, default=1, help="[1]")
    plan.add_argument("--json", action="store_true", help="one JSON object")
    plan.set_defaults(command=_plan)
    calibrate = commands.add_parser(
        "calibrate",
        help="how well probes of each size measure here",
        description=(
            "Measure, on this processor, signal, noise and bias of probes of every size, for every base of a bundle in the folder:"
            " against its base fp32, or of noise alone where it has none. A star marks the size that is best here."
        ),
    )
    calibrate.add_argument("--bundle", type=Path, required=True, help="its folder")
    calibrate.add_argument("--data", type=Path, help="folder of *.jsonl files, or one file [random tokens]")
    calibrate.add_argument("--precision", choices=PRECISIONS, help="one base [all that the folder holds]")
    calibrate.add_argument("--threads", type=int, default=1, help="[1]")
    calibrate.add_argument("--json", action="store_true", help="one JSON object")
    calibrate.set_defaults(command=_calibrate)


def _plan(given: argparse.Namespace) -> None:
    from edge_agent import plan

    found = plan.measure(given)
    print(json.dumps(found) if given.json else plan.told(found))


def _calibrate(given: argparse.Namespace) -> None:
    from edge_agent import calibrate

    found = calibrate.measure(given)
    print(json.dumps(found) if given.json else calibrate.told(found))
