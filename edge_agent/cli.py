"""The command `edge-agent`."""

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from edge_agent import status
from edge_agent.config import AgentConfig
from edge_agent.solo_config import SoloConfig
from zo import cli, config, log
from zo.manifest import PRECISIONS

STATE = Path("edge-agent-state")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    top, commands = cli.parser(
        "edge-agent", "Teach a shared model from this device's own data, with forward passes only; text never leaves."
    )
    run = commands.add_parser("run", help="join a run and work for it", description="Join a run and work for it until it is over.")
    config.add_flags(run, AgentConfig)
    run.set_defaults(command=_run)
    train = commands.add_parser(
        "train",
        help="train alone, without a coordinator",
        description="Train alone on this device's data, into a ledger in the state folder; started again, it goes on where it ended.",
    )
    train.add_argument("--local", action="store_true", required=True, help="without a coordinator; with one, it is 'edge-agent run'")
    config.add_flags(train, SoloConfig)
    train.set_defaults(command=_train)
    told = commands.add_parser("status", help="what the agent of a state folder is doing")
    told.add_argument("--state", type=Path, default=STATE, help=f"[{STATE}]")
    told.add_argument("--json", action="store_true", help="one JSON object")
    told.set_defaults(command=_status)
    _add_plan(commands)
    _add_models(commands)
    return cli.run(top, arguments)


def _add_plan(commands: argparse._SubParsersAction) -> None:
    plan = commands.add_parser(
        "plan",
        help="how this device would best train a bundle",
        description="Measure the stages of a bundle on this device, and tell what equal progress would cost with every way to cut it.",
    )
    plan.add_argument("--bundle", type=Path, required=True, help="its folder")
    plan.add_argument("--precision", choices=PRECISIONS, help="base to compute with [the bundle's default]")
    plan.add_argument("--algorithm", choices=["mezo", "fedspzo"], default="fedspzo", help="[fedspzo]")
    plan.add_argument("--clean", action="store_true", help="the clean form as well (split.clean of a run)")
    plan.add_argument("--directions", type=int, default=1, help="of the lowest part [1]")
    plan.add_argument("--examples", type=int, default=8, help="in a batch [8]")
    plan.add_argument("--tokens", type=int, default=32, help="of an example [32]")
    plan.add_argument("--threads", type=int, default=1, help="[1]")
    plan.add_argument("--json", action="store_true", help="one JSON object")
    plan.set_defaults(command=_plan)


def _add_models(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser("evaluate", help="how good the common model is, and the personal one where there is one")
    evaluate.add_argument("--data", type=Path, required=True, help="labelled .jsonl file, or a folder of them")
    evaluate.add_argument("--json", action="store_true", help="one JSON object")
    evaluate.set_defaults(command=_evaluate)
    predict = commands.add_parser(
        "predict",
        help="label texts from standard input, with the personal model where there is one",
        description='Label texts from standard input, plain lines or {"text": "..."}; one JSON object a line on standard output.',
    )
    predict.add_argument("--common", action="store_true", help="use the common model even where there is a personal one")
    predict.set_defaults(command=_predict)
    for each in (evaluate, predict):
        each.add_argument("--state", type=Path, default=STATE, help=f"the agent's folder [{STATE}]")
        each.add_argument("--bundle", default="", help="the bundle's folder [the newest in the state folder]")
        each.add_argument("--precision", choices=PRECISIONS, help="base to compute with [the bundle's default, or the one downloaded]")


def _run(given: argparse.Namespace) -> None:
    from edge_agent.daemon import Daemon

    log.check_clock()
    Daemon(config.load(AgentConfig, given, "EDGE_AGENT"), _told_to_stop()).run()


def _train(given: argparse.Namespace) -> None:
    from edge_agent.solo import Solo

    log.check_clock()
    Solo(config.load(SoloConfig, given, "EDGE_SOLO"), _told_to_stop()).run()


def _plan(given: argparse.Namespace) -> None:
    from edge_agent import plan

    found = plan.measure(given)
    print(json.dumps(found) if given.json else plan.told(found))


def _told_to_stop() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _evaluate(given: argparse.Namespace) -> None:
    from edge_agent.personal import Models, told

    found = Models(given.state, given.bundle, given.precision).evaluate(given.data)
    print(json.dumps(found) if given.json else told(found))


def _predict(given: argparse.Namespace) -> None:
    from edge_agent.personal import Models

    for answer in Models(given.state, given.bundle, given.precision).predict(sys.stdin.buffer, given.common):
        print(json.dumps(answer, ensure_ascii=False), flush=True)


def _status(given: argparse.Namespace) -> None:
    facts = status.read(given.state)
    print(json.dumps(facts) if given.json else status.told(facts))


if __name__ == "__main__":
    sys.exit(main())
