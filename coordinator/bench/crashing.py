"""`python -m coordinator.bench.crashing`: a coordinator that dies where it is told to, for `scripts/bench crash`."""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from coordinator.config import RunConfig
from coordinator.serve import Serving
from coordinator.sqlite_store import SqliteStore
from zo import config, log
from zo.faults import Death, Fault, FaultyDisk
from zo.ledger import Entry
from zo.systemd import Systemd


class DyingStore(SqliteStore):
    """A store on a faulty disk, which it tells when an entry is being committed."""

    _disk: FaultyDisk

    def commit(self, run: int, entry: Entry, previous: bytes, signs: int, summary: dict[str, Any]) -> bytes:
        self._disk.in_commit = True
        try:
            return super().commit(run, entry, previous, signs, summary)
        finally:
            self._disk.in_commit = False

    def _write(self) -> None:
        self._disk.pass_by(Fault.BEFORE_WRITE)
        super()._write()


class Dying(Serving):
    """A coordinator with such a store. death: when; never if left out."""

    death: Death | None = None

    def open_store(self, path: Path) -> SqliteStore:
        return DyingStore(path, create=True, disk=FaultyDisk(path.parent, self.death))


def main() -> int:
    """Serve."""
    parser = argparse.ArgumentParser()
    config.add_flags(parser, RunConfig)
    parser.add_argument("--death", type=Death.parsed)
    given = parser.parse_args()
    log.start(False)
    Dying.death = given.death
    asyncio.run(Dying(config.load(RunConfig, given, "EDGE_COORDINATOR"), Systemd()).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
