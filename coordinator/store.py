"""The store: runs, devices, open reports and ledgers in one SQLite file (WAL, synced at every commit)."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zo import wire
from zo.errors import StorageError
from zo.ledger import GENESIS, Entry, chain
from zo.messages import Report

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE runs (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, bundle TEXT NOT NULL, bundle_digest BLOB NOT NULL,
                   created REAL NOT NULL, state TEXT NOT NULL);
CREATE TABLE devices (run INTEGER NOT NULL, number INTEGER NOT NULL, device_id BLOB NOT NULL, joined REAL NOT NULL,
                      PRIMARY KEY (run, number), UNIQUE (run, device_id));
CREATE TABLE reports (run INTEGER NOT NULL, round INTEGER NOT NULL, device INTEGER NOT NULL, body BLOB NOT NULL,
                      PRIMARY KEY (run, round, device)) WITHOUT ROWID;
CREATE TABLE entries (run INTEGER NOT NULL, number INTEGER NOT NULL, body BLOB NOT NULL, head BLOB NOT NULL,
                      summary TEXT NOT NULL, PRIMARY KEY (run, number)) WITHOUT ROWID;
CREATE TABLE evaluations (run INTEGER NOT NULL, entry INTEGER NOT NULL, split TEXT NOT NULL, metrics TEXT NOT NULL,
                          PRIMARY KEY (run, entry, split)) WITHOUT ROWID;
CREATE TABLE events (run INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
"""


@dataclass(frozen=True)
class RunRow:
    """A run as stored. state: "running" or "finished"."""

    id: int
    name: str
    bundle: Path
    bundle_digest: bytes
    created: float
    state: str


class Store:
    """One SQLite file. Every method that writes returns only when what it wrote is synced to disk.

    StorageError on a file that is no store, cannot be opened, or cannot be written. Not safe for concurrent calls;
    other processes may read the same file through a Store of their own.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        if not create and not path.is_file():
            raise StorageError(f"{path} does not exist; give the store of a coordinator with --store")
        with self._errors():
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            empty = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version != SCHEMA_VERSION and not (version == 0 and empty and create):
                raise StorageError(f"{path} is not a store that this version knows (version {version}); give another with --store")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            if version == 0:
                self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def open_run(self, name: str, bundle: Path, bundle_digest: bytes) -> RunRow:
        """The run of that name, made if there is none. StorageError if it exists with another bundle."""
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO runs (name, bundle, bundle_digest, created, state) VALUES (?, ?, ?, ?, 'running')",
                (name, str(bundle.resolve()), bundle_digest, time.time()),
            )
            moved = "UPDATE runs SET bundle = ? WHERE name = ? AND bundle_digest = ?"  # the folder may have
            self._db.execute(moved, (str(bundle.resolve()), name, bundle_digest))
        run = self.run(name)
        if run.bundle_digest != bundle_digest:
            raise StorageError(
                f"run {name!r} in {self.path} was begun with another bundle ({run.bundle}); choose another --name or --store"
            )
        return run

    def run(self, name: str) -> RunRow:
        """The run of that name. StorageError names the runs there are."""
        runs = self.runs()
        for run in runs:
            if run.name == name:
                return run
        known = ", ".join(run.name for run in runs) or "none"
        raise StorageError(f"{self.path} holds no run {name!r}; it holds: {known}")

    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        rows = self._rows("SELECT id, name, bundle, bundle_digest, created, state FROM runs ORDER BY id")
        return [RunRow(id_, name, Path(bundle), digest, created, state) for id_, name, bundle, digest, created, state in rows]

    def set_state(self, run: int, state: str) -> None:
        """Mark a run as "running" or "finished"."""
        with self._transaction():
            self._db.execute("UPDATE runs SET state = ? WHERE id = ?", (state, run))

    def enrol(self, run: int, device_id: int) -> int:
        """The number of a device in a run: 0, 1, ...; the same device always has the same."""
        key = device_id.to_bytes(8, "big")
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO devices SELECT ?, coalesce(max(number) + 1, 0), ?, ? FROM devices WHERE run = ?",
                (run, key, time.time(), run),
            )
        return int(self._rows("SELECT number FROM devices WHERE run = ? AND device_id = ?", (run, key))[0][0])

    def device_count(self, run: int) -> int:
        """How many devices ever joined a run."""
        return int(self._rows("SELECT count(*) FROM devices WHERE run = ?", (run,))[0][0])

    def add_report(self, report: Report) -> bool:
        """Keep a report; False if one of this run, round and device is kept already."""
        with self._transaction():
            row = (report.run, report.round, report.device, wire.encode(report))
            return self._db.execute("INSERT OR IGNORE INTO reports VALUES (?, ?, ?, ?)", row).rowcount == 1

    def drop_reports(self, run: int, devices: Iterable[int]) -> None:
        """Forget what these devices reported in the open round."""
        with self._transaction():
            self._db.executemany("DELETE FROM reports WHERE run = ? AND device = ?", [(run, device) for device in devices])

    def reports(self, run: int, round_number: int) -> list[Report]:
        """Reports kept for a round, by device."""
        rows = self._rows("SELECT body FROM reports WHERE run = ? AND round = ? ORDER BY device", (run, round_number))
        return [wire.decoder(Report)(body) for (body,) in rows]

    def commit(self, run: int, entry: Entry, head: bytes, summary: dict[str, Any]) -> None:
        """Append an entry and drop the reports of its round, both or neither."""
        with self._transaction():
            row = (run, entry.number, wire.encode(entry), head, json.dumps(summary))
            self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
            self._db.execute("DELETE FROM reports WHERE run = ? AND round <= ?", (run, entry.round))

    def entries(self, run: int, after: int = 0, most: int = -1) -> list[Entry]:
        """Entries with a number above `after`, in order, at most `most`."""
        rows = self._rows("SELECT body FROM entries WHERE run = ? AND number > ? ORDER BY number LIMIT ?", (run, after, most))
        try:
            return [wire.decoder(Entry)(body) for (body,) in rows]
        except wire.WireError as error:
            raise StorageError(f"{self.path}: an entry cannot be read ({error}); restore the file from a backup") from None

    def head(self, run: int) -> tuple[int, bytes]:
        """Number and chain hash of the last entry; (0, GENESIS) if there is none."""
        rows = self._rows("SELECT number, head FROM entries WHERE run = ? ORDER BY number DESC LIMIT 1", (run,))
        return (int(rows[0][0]), rows[0][1]) if rows else (0, GENESIS)

    def check_chain(self, run: int) -> None:
        """StorageError unless the stored hash chain is that of the stored entries."""
        head = GENESIS
        for entry, (stored,) in zip(
            self.entries(run), self._rows("SELECT head FROM entries WHERE run = ? ORDER BY number", (run,)), strict=True
        ):
            head = chain(head, entry)
            if head != stored:
                raise StorageError(f"{self.path}: entry {entry.number} does not fit its hash chain; restore the file from a backup")

    def summaries(self, run: int) -> list[dict[str, Any]]:
        """What was noted of each entry, in order."""
        return [json.loads(text) for (text,) in self._rows("SELECT summary FROM entries WHERE run = ? ORDER BY number", (run,))]

    def add_evaluation(self, run: int, entry: int, split: str, metrics: dict[str, Any]) -> None:
        """Keep the metrics of the model at an entry."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)", (run, entry, split, json.dumps(metrics)))

    def evaluations(self, run: int, split: str) -> dict[int, dict[str, Any]]:
        """Metrics by entry."""
        rows = self._rows("SELECT entry, metrics FROM evaluations WHERE run = ? AND split = ? ORDER BY entry", (run, split))
        return {int(entry): json.loads(metrics) for entry, metrics in rows}

    def add_event(self, run: int, kind: str, text: str) -> None:
        """Note something that a person may want to know."""
        with self._transaction():
            self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (run, time.time(), kind, text))

    def events(self, run: int) -> list[tuple[float, str, str]]:
        """(unix time, kind, text) in order."""
        return [(at, kind, text) for at, kind, text in self._rows("SELECT at, kind, text FROM events WHERE run = ? ORDER BY rowid", (run,))]

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"store {self.path}: {error}; check disk space, permissions and the file itself") from None
