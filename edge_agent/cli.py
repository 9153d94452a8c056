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
from zo import cli, config


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    top, commands = cli.parser(
        "edge-agent", "Teach a shared model from this device's own data, with forward passes only; text never leaves."
    )
    run = commands.add_parser("run", help="join a run and work for it", description="Join a run and work for it until it is over.")
    config.add_flags(run, AgentConfig)
    run.set_defaults(command=_run)
    told = commands.add_parser("status", help="what the agent of a state folder is doing")
    told.add_argument("--state", type=Path, default=Path("edge-agent-state"), help="[edge-agent-state]")
    told.add_argument("--json", action="store_true", help="one JSON object")
    told.set_defaults(command=_status)
    return cli.run(top, arguments)


def _run(given: argparse.Namespace) -> None:
    from edge_agent.daemon import Daemon

    settings = config.load(AgentConfig, given, "EDGE_AGENT")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Daemon(settings, stop).run()


def _status(given: argparse.Namespace) -> None:
    facts = status.read(given.state)
    print(json.dumps(facts) if given.json else status.told(facts))


if __name__ == "__main__":
    sys.exit(main())
