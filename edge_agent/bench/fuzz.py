"""The agent's own files, broken: what `scripts/bench fuzz` runs in a process of its own."""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import identity, journal, sent
from edge_agent.config import Privacy
from edge_agent.flash import WriteBudget
from edge_agent.identity import Identity
from edge_agent.journal import Journal, Opening
from edge_agent.privacy import Guard
from edge_agent.sent import Sent
from edge_agent.state import COMPARISON, POSITION, REPORT, STATUS, State
from edge_agent.status import read as read_status
from zo import wire
from zo.checkpoint import Checkpoint
from zo.disk import sealed
from zo.errors import StorageError
from zo.fuzzing import Target, attack_all
from zo.ledger import Entry
from zo.messages import JoinRequest, Report
from zo.terms import Term


def targets(folder: Path) -> list[Target]:
    """Every file of a state folder; where one is sealed, its content is broken before it is sealed and, apart, after."""
    return list(_targets(folder))


def _targets(folder: Path) -> Iterator[Target]:
    state = State(folder / "state", 1e15)
    report = Report(1, 2, 3, np.array([5, -6]), 8, "fp32", digest=bytes(32))
    state.save_position(Checkpoint(bytes(32), 5, bytes(32), bytes(32), (Term((0,), 7, np.array([1, -2])),)))
    state.save_report(report, 0)
    state.save_comparison({"key": "x", "signal": {"fp32": 1.0}})
    state.save_status({"state": "working", "pid": 1})

    again = folder / "again"
    State(again, 1e15).close()

    named = folder / "named"
    named.mkdir()

    def fresh() -> None:
        State(again, 1e15).close()

    reads: dict[str, Callable[[], Any]] = {POSITION: state.position, REPORT: state.report, COMPARISON: state.comparison}
    for name, read in reads.items():
        right = (state.folder / name).read_bytes()
        yield Target(name, (right,), _written(state.folder / name, read), ())
        yield Target(f"{name}, sealed", (right[:-32],), _written(state.folder / name, read, sealed), ())
    yield Target("write budget", ((state.folder / POSITION).read_bytes()[:-32],), _written(again / POSITION, fresh, sealed), ())
    status = (state.folder / STATUS).read_bytes()
    yield Target("status", (status,), _written(state.folder / STATUS, lambda: read_status(state.folder)), (StorageError,))
    yield Target("device_id", (b"0123456789abcdef\n",), _written(named / "device_id", lambda: State(named, 1e15).close()), (StorageError,))
    yield Target("tiles_head", (b"x" * 300,), _written(state.folder / "tiles_head", state.tiles_head), ())
    yield from _others(folder, report)


def _others(folder: Path, report: Report) -> Iterator[Target]:
    path = folder / journal.NAME
    made = Journal(path, Opening(bytes(32), bytes(32)), WriteBudget(1e15))
    for number in (1, 2):
        made.append(Entry(number, number, 1, (Term((0,), 7, np.array([1, -2])),)))
    made.sync()
    yield Target("local ledger", (path.read_bytes(),), _written(path, lambda: journal.read(path, bytes(32))), (StorageError, ValueError))
    Sent(folder, 1e6).add("Report", wire.encode(report))
    Sent(folder, 1e6).add("JoinRequest", wire.encode(JoinRequest(1, 2)))

    def audit() -> None:
        for message in sent.messages(folder):
            json.dumps(sent.plain(message))
            sent.told(message)
        sent.totals(sent.messages(folder))
        Sent(folder, 1e6)

    yield Target("sent", ((folder / sent.NAME).read_bytes(),), _written(folder / sent.NAME, audit), ())
    Identity("a:1", "x", "y", "z", 5).save(folder)
    right = (folder / identity.NAME).read_bytes()
    yield Target("identity", (right,), _written(folder / identity.NAME, lambda: identity.load(folder)), (StorageError,))
    guard = lambda: Guard(Privacy(clip=1.0, noise=1.0), folder).epsilon  # noqa: E731
    yield Target("privacy", (b'{"rho": 0.5}',), _written(folder / "privacy", guard, sealed), (StorageError,))


def _written(path: Path, read: Callable[[], Any], wrap: Callable[[bytes], bytes] = bytes) -> Callable[[bytes], Any]:
    """Puts the input into a file, and reads that."""

    def go(data: bytes) -> Any:
        path.write_bytes(wrap(data))
        return read()

    return go


def main() -> int:
    """Print figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(attack_all(targets(Path(scratch)), given.seed, given.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
