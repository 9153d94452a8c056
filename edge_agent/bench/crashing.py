"""`python -m edge_agent.bench.crashing`: an agent that dies where it is told to, and notes all that it hears and says.

The notes, JSON lines in a file that outlives it, are what `scripts/bench crash` compares the ledger with.
"""

import argparse
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from edge_agent.config import AgentConfig
from edge_agent.daemon import Daemon
from edge_agent.link import Link
from zo import config, log, wire
from zo.faults import Death, FaultyDisk
from zo.ledger import short
from zo.messages import Report, WorkReply


class NotingLink(Link):
    """A line of which notes are kept."""

    notes: Path

    def ask(self, request: Any) -> Any:
        if isinstance(request, Report):
            self._note(sent=wire.encode(request).hex())
        reply = super().ask(request)
        if isinstance(request, Report):
            self._note(round=request.round, device=request.device, verdict=reply.verdict.name)
        if isinstance(reply, WorkReply):
            for entry in reply.entries:
                self._note(entry=entry.number, terms=short(entry.header.terms_digest))
        return reply

    def _note(self, **facts: Any) -> None:
        with self.notes.open("a") as file:
            file.write(json.dumps(facts) + "\n")


class Crashing(Daemon):
    """An agent that keeps notes, and saves its position after every entry."""

    LINK = NotingLink
    SAVE_EVERY = 0.0


def main() -> int:
    """Run the agent."""
    parser = argparse.ArgumentParser()
    config.add_flags(parser, AgentConfig)
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--death", type=Death.parsed)
    given = parser.parse_args()
    settings = config.load(AgentConfig, given, "EDGE_AGENT")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    log.start(False)
    NotingLink.notes = given.notes
    Crashing(settings, stop, FaultyDisk(Path(settings.state), given.death)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
