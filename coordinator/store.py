"""What a store promises: runs, devices, open reports and ledgers, durable before anyone hears of them."""

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zo.checkpoint import Checkpoint
from zo.errors import StorageError
from zo.ledger import Entry, Header, chain
from zo.messages import Report

BATCH = 32  # entries read together


@dataclass(frozen=True)
class RunRow:
    """A run as stored. state: "running", "paused" or "finished". genesis: identity of its ledger before the first entry."""

    id: int
    name: str
    bundle: Path
    bundle_digest: bytes
    genesis: bytes
    created: float
    state: str


@dataclass(frozen=True)
class Cost:
    """What sending and replaying some entries takes: bytes (largest: of one of them), and signs of directions to be made."""

    size: int
    largest: int
    signs: int


class Conflict(StorageError):
    """Somebody else has appended to the ledger first."""


class Compacted(StorageError):
    """The terms that were asked for have been folded into a checkpoint."""


class Store(ABC):
    """Every method that writes returns only when what it wrote is synced; it happens wholly or not at all.

    StorageError where the store cannot be read or written. Not safe for concurrent calls; other processes may use
    the same data through a store of their own.
    """

    unsafe = False  # a sync has failed: nothing more can be promised, so nothing more is done

    @abstractmethod
    def close(self) -> None:
        """Let go of files."""

    @abstractmethod
    def open_run(self, name: str, bundle: Path, bundle_digest: bytes) -> RunRow:
        """The run of that name, made if there is none. StorageError if it exists with another bundle."""

    @abstractmethod
    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""

    @abstractmethod
    def set_state(self, run: int, state: str) -> None:
        """Mark a run as "running", "paused" or "finished"."""

    @abstractmethod
    def enrol(self, run: int, device_id: int) -> int:
        """The number of a device in a run: 0, 1, ...; the same device always has the same."""

    @abstractmethod
    def device_count(self, run: int) -> int:
        """How many devices ever joined a run."""

    @abstractmethod
    def add_reports(self, reports: Sequence[Report]) -> list[bool]:
        """Keep reports, all with one sync; False for each of whose run, round and device one is kept already, or comes before it."""

    @abstractmethod
    def drop_reports(self, run: int, devices: Iterable[int]) -> None:
        """Forget what these devices reported in the open round."""

    @abstractmethod
    def reports(self, run: int, round_number: int) -> list[Report]:
        """Reports kept for a round, by device."""

    @abstractmethod
    def commit(self, run: int, entry: Entry, previous: bytes, signs: int, summary: dict[str, Any]) -> bytes:
        """Append an entry to a ledger whose head is `previous`, and drop the reports of its round; gives the new head.

        Conflict where the head is another.
        """

    @abstractmethod
    def entries(self, run: int, after: int = 0, most: int = -1) -> list[Entry]:
        """Entries with a number above `after`, in order, at most `most`. Compacted where one has no terms any more."""

    @abstractmethod
    def headers(self, run: int, after: int = 0) -> list[tuple[Header, bytes]]:
        """What stays of every entry with a number above `after`, and the head that it led to."""

    @abstractmethod
    def head(self, run: int, entry: int | None = None) -> tuple[int, bytes]:
        """Number and identity of the last entry, or of the one given; (0, genesis) before the first. StorageError where there is none."""

    @abstractmethod
    def cost(self, run: int, after: int) -> Cost:
        """What the entries above `after` take."""

    @abstractmethod
    def add_checkpoint(self, run: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, in place of any at the same entry."""

    @abstractmethod
    def checkpoint(self, run: int, most: int | None = None) -> Checkpoint | None:
        """The last checkpoint, or the last at entry `most` or before."""

    @abstractmethod
    def checkpoints(self, run: int) -> list[int]:
        """The entries at which there are checkpoints, in order."""

    @abstractmethod
    def drop_checkpoints(self, run: int, entries: Iterable[int]) -> None:
        """Forget checkpoints."""

    @abstractmethod
    def compact(self, run: int, entry: int) -> int:
        """Drop the terms of the entries up to `entry`, where a checkpoint must be; gives how many lost theirs."""

    @abstractmethod
    def compacted(self, run: int) -> int:
        """The last entry without terms; 0 where all have theirs."""

    @abstractmethod
    def summaries(self, run: int, last: int = -1) -> list[dict[str, Any]]:
        """What was noted of each entry, in order. last: of so many last ones; -1 for all."""

    @abstractmethod
    def add_evaluation(self, run: int, entry: int, split: str, metrics: dict[str, Any]) -> None:
        """Keep the metrics of the model at an entry."""

    @abstractmethod
    def evaluations(self, run: int, split: str) -> dict[int, dict[str, Any]]:
        """Metrics by entry."""

    @abstractmethod
    def add_event(self, run: int, kind: str, text: str) -> None:
        """Note something that a person may want to know."""

    @abstractmethod
    def events(self, run: int) -> list[tuple[float, str, str]]:
        """(unix time, kind, text) in order."""

    def add_report(self, report: Report) -> bool:
        """Keep one report, as `add_reports` does."""
        return self.add_reports([report])[0]

    def walk(self, run: int, after: int, stop: int) -> Iterator[Entry]:
        """Entries above `after` up to `stop`, a few in memory at a time."""
        while after < stop:
            entries = self.entries(run, after, min(BATCH, stop - after))
            if not entries:
                return
            yield from entries
            after = entries[-1].number

    def run(self, name: str) -> RunRow:
        """The run of that name. StorageError names the runs there are."""
        runs = self.runs()
        for run in runs:
            if run.name == name:
                return run
        known = ", ".join(run.name for run in runs) or "none"
        raise StorageError(f"the store holds no run {name!r}; it holds: {known}")

    def check_chain(self, run: RunRow) -> None:
        """StorageError unless the hash chain is that of the entries' headers."""
        head = run.genesis
        for number, (header, stored) in enumerate(self.headers(run.id), 1):
            try:
                head = chain(head, header)
            except (TypeError, struct.error):  # damaged beyond what a header can hold
                head = b""
            if head != stored or header.number != number:
                raise StorageError(f"run {run.name!r}: entry {number} does not fit its hash chain; restore the store from a backup")
