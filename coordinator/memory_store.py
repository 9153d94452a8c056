"""The store in memory: what the promises of `Store` mean without a disk; for simulations and tests."""

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coordinator.store import Compacted, Conflict, Cost, RunRow, Store
from zo import wire
from zo.checkpoint import Checkpoint
from zo.errors import StorageError
from zo.ledger import Entry, Header, chain, genesis
from zo.messages import Report


@dataclass
class _Row:
    header: Header
    head: bytes
    signs: int
    summary: dict[str, Any]
    entry: Entry | None


@dataclass
class _Run:
    row: RunRow
    devices: list[int] = field(default_factory=list)
    reports: dict[tuple[int, int], Report] = field(default_factory=dict)  # by round and device
    rows: list[_Row] = field(default_factory=list)
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    evaluations: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    events: list[tuple[float, str, str]] = field(default_factory=list)


class MemoryStore(Store):
    """See Store; nothing outlives the process. data: that of another MemoryStore, to share it."""

    def __init__(self, data: dict[int, _Run] | None = None) -> None:
        self.data: dict[int, _Run] = {} if data is None else data

    def close(self) -> None:
        pass

    def open_run(self, name: str, bundle: Path, bundle_digest: bytes) -> RunRow:
        found = next((run for run in self.data.values() if run.row.name == name), None)
        if found is None:
            id_, made = len(self.data) + 1, genesis(bundle_digest, secrets.token_bytes(16))
            self.data[id_] = _Run(RunRow(id_, name, bundle.resolve(), bundle_digest, made, time.time(), "running"))
            return self.data[id_].row
        if found.row.bundle_digest != bundle_digest:
            raise StorageError(f"run {name!r} was begun with another bundle ({found.row.bundle}); choose another --name or --store")
        found.row = replace(found.row, bundle=bundle.resolve())
        return found.row

    def runs(self) -> list[RunRow]:
        return [run.row for run in self.data.values()]

    def set_state(self, run: int, state: str) -> None:
        self.data[run].row = replace(self.data[run].row, state=state)

    def enrol(self, run: int, device_id: int) -> int:
        devices = self.data[run].devices
        if device_id not in devices:
            devices.append(device_id)
        return devices.index(device_id)

    def device_count(self, run: int) -> int:
        return len(self.data[run].devices)

    def add_reports(self, reports: Sequence[Report]) -> list[bool]:
        return [self._add_report(report) for report in reports]

    def _add_report(self, report: Report) -> bool:
        key, kept = (report.round, report.device), self.data[report.run].reports
        fresh = key not in kept
        kept.setdefault(key, report)
        return fresh

    def drop_reports(self, run: int, devices: Iterable[int]) -> None:
        dropped, reports = set(devices), self.data[run].reports
        for key in [key for key in reports if key[1] in dropped]:
            del reports[key]

    def reports(self, run: int, round_number: int) -> list[Report]:
        found = self.data[run].reports
        return [found[key] for key in sorted(found) if key[0] == round_number]

    def commit(self, run: int, entry: Entry, previous: bytes, signs: int, summary: dict[str, Any]) -> bytes:
        if self.head(run) != (entry.number - 1, previous):
            raise Conflict(f"entry {entry.number} was appended by somebody else")
        head, kept = chain(previous, entry.header), self.data[run]
        kept.rows.append(_Row(entry.header, head, signs, summary, entry))
        kept.reports = {key: report for key, report in kept.reports.items() if key[0] > entry.round}
        return head

    def entries(self, run: int, after: int = 0, most: int = -1) -> list[Entry]:
        rows = self.data[run].rows[after:] if most < 0 else self.data[run].rows[after : after + most]
        found = [row.entry for row in rows if row.entry is not None]
        if len(found) < len(rows):
            raise Compacted(f"the terms of entry {after + 1} have been compacted away; entries up to {self.compacted(run)} have none")
        return found

    def headers(self, run: int, after: int = 0) -> list[tuple[Header, bytes]]:
        return [(row.header, row.head) for row in self.data[run].rows[after:]]

    def head(self, run: int, entry: int | None = None) -> tuple[int, bytes]:
        rows = self.data[run].rows
        number = len(rows) if entry is None else entry
        if not 0 <= number <= len(rows):
            raise StorageError(f"the ledger has no entry {entry}; it ends at {len(rows)}")
        return number, rows[number - 1].head if number else self.data[run].row.genesis

    def cost(self, run: int, after: int) -> Cost:
        rows = self.data[run].rows[after:]
        sizes = [len(wire.encode(row.entry)) for row in rows if row.entry]
        return Cost(sum(sizes), max(sizes, default=0), sum(row.signs for row in rows))

    def add_checkpoint(self, run: int, checkpoint: Checkpoint) -> None:
        self.data[run].checkpoints[checkpoint.entry] = checkpoint

    def checkpoint(self, run: int, most: int | None = None) -> Checkpoint | None:
        found = [entry for entry in self.checkpoints(run) if most is None or entry <= most]
        return self.data[run].checkpoints[found[-1]] if found else None

    def checkpoints(self, run: int) -> list[int]:
        return sorted(self.data[run].checkpoints)

    def drop_checkpoints(self, run: int, entries: Iterable[int]) -> None:
        for entry in entries:
            self.data[run].checkpoints.pop(entry, None)

    def compact(self, run: int, entry: int) -> int:
        if entry not in self.data[run].checkpoints:
            raise StorageError(f"there is no checkpoint at entry {entry} that could stand for the entries before")
        rows = [row for row in self.data[run].rows[:entry] if row.entry is not None]
        for row in rows:
            row.entry = None
        return len(rows)

    def compacted(self, run: int) -> int:
        return max((row.header.number for row in self.data[run].rows if row.entry is None), default=0)

    def summaries(self, run: int, last: int = -1) -> list[dict[str, Any]]:
        rows = self.data[run].rows
        return [row.summary for row in (rows if last < 0 else rows[max(0, len(rows) - last) :])]

    def add_evaluation(self, run: int, entry: int, split: str, metrics: dict[str, Any]) -> None:
        self.data[run].evaluations[split, entry] = metrics

    def evaluations(self, run: int, split: str) -> dict[int, dict[str, Any]]:
        found = self.data[run].evaluations
        return {entry: found[each, entry] for each, entry in sorted(found) if each == split}

    def add_event(self, run: int, kind: str, text: str) -> None:
        self.data[run].events.append((time.time(), kind, text))

    def events(self, run: int) -> list[tuple[float, str, str]]:
        return list(self.data[run].events)
