"""The store in one SQLite file (write-ahead log, synced at every commit)."""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from coordinator.sqlite_file import SqliteFile
from coordinator.store import Compacted, Conflict, Cost, RunRow, Store
from zo import wire
from zo.checkpoint import Checkpoint
from zo.disk import Disk
from zo.errors import StorageError
from zo.ledger import Entry, Header, chain, genesis
from zo.messages import Report

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE runs (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, bundle TEXT NOT NULL, bundle_digest BLOB NOT NULL,
                   genesis BLOB NOT NULL, created REAL NOT NULL, state TEXT NOT NULL, compacted INTEGER NOT NULL DEFAULT 0);
CREATE TABLE devices (run INTEGER NOT NULL, number INTEGER NOT NULL, device_id BLOB NOT NULL, joined REAL NOT NULL,
                      PRIMARY KEY (run, number), UNIQUE (run, device_id));
CREATE TABLE reports (run INTEGER NOT NULL, round INTEGER NOT NULL, device INTEGER NOT NULL, body BLOB NOT NULL,
                      PRIMARY KEY (run, round, device)) WITHOUT ROWID;
CREATE TABLE entries (run INTEGER NOT NULL, number INTEGER NOT NULL, round INTEGER NOT NULL, contributors INTEGER NOT NULL,
                      terms_digest BLOB NOT NULL, digest BLOB, head BLOB NOT NULL, signs INTEGER NOT NULL, body BLOB,
                      summary TEXT NOT NULL, PRIMARY KEY (run, number));
CREATE TABLE checkpoints (run INTEGER NOT NULL, entry INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (run, entry));
CREATE TABLE evaluations (run INTEGER NOT NULL, entry INTEGER NOT NULL, split TEXT NOT NULL, metrics TEXT NOT NULL,
                          PRIMARY KEY (run, entry, split)) WITHOUT ROWID;
CREATE TABLE events (run INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
"""


class SqliteStore(SqliteFile, Store):
    """See Store. create: make the file where there is none, and look through all of it first. disk: the seam for faults."""

    def __init__(self, path: Path, *, create: bool = False, disk: Disk | None = None) -> None:
        super().__init__(path, SCHEMA, SCHEMA_VERSION, create, disk)

    def open_run(self, name: str, bundle: Path, bundle_digest: bytes) -> RunRow:
        made = genesis(bundle_digest, secrets.token_bytes(16))
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO runs (name, bundle, bundle_digest, genesis, created, state) VALUES (?, ?, ?, ?, ?, 'running')",
                (name, str(bundle.resolve()), bundle_digest, made, time.time()),
            )
            moved = "UPDATE runs SET bundle = ? WHERE name = ? AND bundle_digest = ?"  # the folder may have
            self._db.execute(moved, (str(bundle.resolve()), name, bundle_digest))
        run = self.run(name)
        if run.bundle_digest != bundle_digest:
            raise StorageError(
                f"run {name!r} in {self.path} was begun with another bundle ({run.bundle}); choose another --name or --store"
            )
        return run

    def runs(self) -> list[RunRow]:
        rows = self._rows("SELECT id, name, bundle, bundle_digest, genesis, created, state FROM runs ORDER BY id")
        return [RunRow(id_, name, Path(bundle), *rest) for id_, name, bundle, *rest in rows]

    def set_state(self, run: int, state: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE runs SET state = ? WHERE id = ?", (state, run))

    def enrol(self, run: int, device_id: int) -> int:
        key = device_id.to_bytes(8, "big")
        known = "SELECT number FROM devices WHERE run = ? AND device_id = ?"
        if not self._rows(known, (run, key)):
            with self._transaction():
                self._db.execute(
                    "INSERT OR IGNORE INTO devices SELECT ?, coalesce(max(number) + 1, 0), ?, ? FROM devices WHERE run = ?",
                    (run, key, time.time(), run),
                )
        return int(self._rows(known, (run, key))[0][0])

    def device_count(self, run: int) -> int:
        return int(self._rows("SELECT count(*) FROM devices WHERE run = ?", (run,))[0][0])

    def add_reports(self, reports: Sequence[Report]) -> list[bool]:
        rows = [(report.run, report.round, report.device, wire.encode(report)) for report in reports]
        with self._transaction():
            return [self._db.execute("INSERT OR IGNORE INTO reports VALUES (?, ?, ?, ?)", row).rowcount == 1 for row in rows]

    def drop_reports(self, run: int, devices: Iterable[int]) -> None:
        with self._transaction():
            self._db.executemany("DELETE FROM reports WHERE run = ? AND device = ?", [(run, device) for device in devices])

    def reports(self, run: int, round_number: int) -> list[Report]:
        rows = self._rows("SELECT body FROM reports WHERE run = ? AND round = ? ORDER BY device", (run, round_number))
        return [self._decoded(Report, body) for (body,) in rows]

    def commit(self, run: int, entry: Entry, previous: bytes, signs: int, summary: dict[str, Any]) -> bytes:
        header = entry.header
        head = chain(previous, header)
        with self._transaction():
            if self.head(run) != (entry.number - 1, previous):
                raise Conflict(f"{self.path}: entry {entry.number} was appended by somebody else")
            row = (run, entry.number, entry.round, entry.contributors, header.terms_digest, entry.digest, head, signs)
            self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, wire.encode(entry), json.dumps(summary)))
            self._db.execute("DELETE FROM reports WHERE run = ? AND round <= ?", (run, entry.round))
        return head

    def entries(self, run: int, after: int = 0, most: int = -1) -> list[Entry]:
        rows = self._rows("SELECT body FROM entries WHERE run = ? AND number > ? ORDER BY number LIMIT ?", (run, after, most))
        if rows and rows[0][0] is None:
            raise Compacted(
                f"{self.path}: the terms of entry {after + 1} have been compacted away; entries up to {self.compacted(run)} have none"
            )
        return [self._decoded(Entry, body) for (body,) in rows]

    def headers(self, run: int, after: int = 0) -> list[tuple[Header, bytes]]:
        query = "SELECT number, round, contributors, terms_digest, digest, head FROM entries WHERE run = ? AND number > ? ORDER BY number"
        return [(Header(*row), head) for *row, head in self._rows(query, (run, after))]

    def head(self, run: int, entry: int | None = None) -> tuple[int, bytes]:
        if entry != 0:
            last = "number = (SELECT max(number) FROM entries WHERE run = ?1)" if entry is None else "number = ?2"
            rows = self._rows(f"SELECT number, head FROM entries WHERE run = ?1 AND {last}", (run,) if entry is None else (run, entry))
            if rows:
                return int(rows[0][0]), rows[0][1]
            if entry is not None:
                raise StorageError(f"{self.path}: the ledger has no entry {entry}; it ends at {self.head(run)[0]}")
        return 0, self._rows("SELECT genesis FROM runs WHERE id = ?", (run,))[0][0]

    def cost(self, run: int, after: int) -> Cost:
        sums = "coalesce(sum(length(body)), 0), coalesce(max(length(body)), 0), coalesce(sum(signs), 0)"
        query = f"SELECT {sums} FROM entries WHERE run = ? AND number > ?"
        return Cost(*self._rows(query, (run, after))[0])

    def add_checkpoint(self, run: int, checkpoint: Checkpoint) -> None:
        with self._transaction():
            row = (run, checkpoint.entry, wire.encode(checkpoint))
            self._db.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?)", row)

    def checkpoint(self, run: int, most: int | None = None) -> Checkpoint | None:
        query = "SELECT body FROM checkpoints WHERE run = ? AND entry <= ? ORDER BY entry DESC LIMIT 1"
        rows = self._rows(query, (run, 2**62 if most is None else most))
        return self._decoded(Checkpoint, rows[0][0]) if rows else None

    def checkpoints(self, run: int) -> list[int]:
        return [entry for (entry,) in self._rows("SELECT entry FROM checkpoints WHERE run = ? ORDER BY entry", (run,))]

    def drop_checkpoints(self, run: int, entries: Iterable[int]) -> None:
        with self._transaction():
            self._db.executemany("DELETE FROM checkpoints WHERE run = ? AND entry = ?", [(run, entry) for entry in entries])

    def compact(self, run: int, entry: int) -> int:
        with self._transaction():
            if entry not in self.checkpoints(run):
                raise StorageError(f"{self.path}: there is no checkpoint at entry {entry} that could stand for the entries before")
            query = "UPDATE entries SET body = NULL WHERE run = ? AND number > ? AND number <= ?"  # not all of the past each time
            dropped = self._db.execute(query, (run, self.compacted(run), entry)).rowcount
            self._db.execute("UPDATE runs SET compacted = max(compacted, ?) WHERE id = ?", (entry, run))
            return dropped

    def compacted(self, run: int) -> int:
        return int(self._rows("SELECT compacted FROM runs WHERE id = ?", (run,))[0][0])

    def summaries(self, run: int, last: int = -1) -> list[dict[str, Any]]:
        rows = self._rows("SELECT summary FROM entries WHERE run = ? ORDER BY number DESC LIMIT ?", (run, last))
        return [self._noted(text) for (text,) in reversed(rows)]

    def add_evaluation(self, run: int, entry: int, split: str, metrics: dict[str, Any]) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)", (run, entry, split, json.dumps(metrics)))

    def evaluations(self, run: int, split: str) -> dict[int, dict[str, Any]]:
        rows = self._rows("SELECT entry, metrics FROM evaluations WHERE run = ? AND split = ? ORDER BY entry", (run, split))
        return {int(entry): self._noted(metrics) for entry, metrics in rows}

    def add_event(self, run: int, kind: str, text: str) -> None:
        with self._transaction():
            self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (run, time.time(), kind, text))

    def events(self, run: int) -> list[tuple[float, str, str]]:
        return [(at, kind, text) for at, kind, text in self._rows("SELECT at, kind, text FROM events WHERE run = ? ORDER BY rowid", (run,))]

    def _decoded(self, kind: type, body: bytes) -> Any:
        return self._parsed(wire.decoder(kind), body)

    def _noted(self, text: str) -> Any:
        return self._parsed(json.loads, text)

    def _parsed(self, parse: Callable[[Any], Any], stored: bytes | str) -> Any:
        try:
            return parse(stored)
        except (ValueError, TypeError) as error:
            raise StorageError(f"{self.path}: a row cannot be read ({error}); restore the file from a backup") from None
