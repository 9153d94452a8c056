"""One SQLite file (write-ahead log, synced at every commit), whose errors are told in words."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zo.disk import Disk
from zo.errors import StorageError

MAGIC = b"SQLite format 3\0"  # what every database begins with
UNIT = 512  # bytes that every page of a database is a multiple of; SQLite takes a shorter file for an empty one and writes over it


class SqliteFile:
    """A file of tables. create: make it where there is none, and look through all of it first. disk: the seam for faults.

    schema, version: the statements that make its tables, and their number. A transaction is over when it is synced; StorageError where
    that fails, and then for all that is asked later, as nothing more can be promised.
    """

    unsafe = False  # a sync has failed

    def __init__(self, path: Path, schema: str, version: int, create: bool, disk: Disk | None) -> None:
        _check_file(path, create)
        self.path, self._disk = path, disk or Disk()
        self._log = path.with_name(path.name + "-wal")
        self._named = False  # the log's name is on the disk
        only_read = not create and not (os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK))
        with self._errors():
            self._db = sqlite3.connect(self._uri(only_read), isolation_level=None, timeout=10, uri=True)
            if path.stat().st_size % UNIT and not (self._log.exists() and self._log.stat().st_size):
                raise sqlite3.DatabaseError("it has been cut off")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            empty = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if found != version and not (found == 0 and empty and create):
                raise StorageError(f"{path} is not a store that this version knows (version {found}); give another with --store")
            if create and (said := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(said.splitlines()[-1])
            if not only_read:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")  # COMMIT writes the log, `_sync` syncs it
        if found == 0:
            with self._errors():
                self._db.executescript(f"BEGIN; {schema} PRAGMA user_version = {version}; COMMIT")
        if create:  # also what a process that was killed has written, but not synced
            self._sync()

    def _uri(self, only_read: bool) -> str:
        alone = "" if self._log.exists() else "&immutable=1"  # else SQLite has to make a log, even to read
        return self.path.absolute().as_uri() + (f"?mode=ro{alone}" if only_read else "")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._write()
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        self._sync()

    def _write(self) -> None:
        self._db.execute("COMMIT")

    def _sync(self) -> None:
        """The log on the disk, the first time also its name in the folder: only then may anyone hear of what was written."""
        try:
            self._disk.sync(self._log)
            if not self._named:
                self._disk.sync_folder(self.path.absolute().parent)
                self._named = True
        except OSError as error:
            self.unsafe = True
            raise StorageError(
                f"{self.path} cannot be synced ({error.strerror}); what was written last may be lost in a power cut"
            ) from None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        if self.unsafe:
            raise StorageError(f"{self.path} could not be synced; start again when the disk is well")
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where the schema, or what is wrong with it, is no text
            code = getattr(error, "sqlite_errorcode", None)
            if code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StorageError(f"store {self.path}: another process writes to it; try again, or stop that one") from None
            if isinstance(error, sqlite3.OperationalError) and code is not None:  # it has none where text is no UTF-8
                raise StorageError(f"store {self.path}: {error}; check disk space and permissions") from None
            raise StorageError(f"store {self.path} is damaged ({error!s:.200}); it is left as it is: restore it from a backup") from None


def _check_file(path: Path, create: bool) -> None:
    """StorageError where the path cannot be a store's."""
    if path.is_dir():
        raise StorageError(f"{path} is a folder; give the file of a store with --store")
    if path.exists() and not path.is_file():
        raise StorageError(f"{path} is no regular file; give the file of a store with --store")
    if not create and not path.exists():
        raise StorageError(f"{path} does not exist; give the store of a coordinator with --store")
    if not path.absolute().parent.is_dir():
        raise StorageError(f"the folder of store {path} does not exist; make it, or give another store with --store")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
        if not start:
            raise StorageError(f"store {path} is empty, as none is that was begun: restore it from a backup, or remove it to begin anew")
        if not MAGIC.startswith(start):
            raise StorageError(f"{path} is no store of edge-coordinator; give another with --store")
