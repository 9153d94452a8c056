"""The local ledger: what a device learnt alone, in an append-only file that survives a power cut at any instant.

A record is its length (4 bytes, little-endian), its content, and a seal of 32 bytes. The first is the opening, sealed by its
checksum; the others are entries, each sealed by the identity of the state after it (zo.ledger.chain). So a record that is
torn, altered, or does not follow ends what can be read.
"""

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.aside import aside
from edge_agent.flash import WriteBudget
from zo import wire
from zo.disk import CHECKSUM, Disk, sealed, unsealed
from zo.errors import StorageError
from zo.ledger import Entry, chain

log = logging.getLogger(__name__)

NAME = "local_ledger"
MAGIC = b"edge-zo local ledger 1\n"
LENGTH, OPENING = struct.Struct("<I"), struct.Struct(f"<{len(MAGIC)}s32s32sQ32s")


@dataclass(frozen=True)
class Opening:
    """What a local ledger begins with: its genesis, the digest of its bundle, and where the fleet was (for information only)."""

    genesis: bytes
    bundle: bytes
    fleet_entry: int = 0
    fleet_head: bytes = bytes(32)


@dataclass(frozen=True)
class Contents:
    """What can be read of a local ledger: `size` bytes of the file. head: identity of the state after the last entry."""

    opening: Opening
    entries: tuple[Entry, ...]
    head: bytes
    size: int


def read(path: Path, bundle: bytes) -> Contents | None:
    """The local ledger in a file; None where there is none.

    bundle: digest of the one in use. StorageError where the ledger is of another; ValueError where its opening is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    contents = _parse(data)
    if contents.opening.bundle != bundle:
        raise StorageError(f"{path} was begun with another bundle; give that with --bundle, choose another --state, or remove the file")
    return contents


class Journal:
    """The local ledger of a device, for writing. `append` keeps an entry in memory, `sync` makes it durable.

    opening: for a ledger that does not exist yet. A file with a damaged end is cut there; a damaged opening begins a new
    ledger; what cannot be read is kept (see `aside`). StorageError where that cannot be, or the ledger is of another bundle.
    """

    def __init__(self, path: Path, opening: Opening, budget: WriteBudget, disk: Disk | None = None) -> None:
        self.path, self._budget, self._disk = path, budget, disk or Disk()
        self._waiting: list[tuple[Entry, bytes]] = []  # with the identity of the state after each
        try:
            contents = self._open(opening)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}; make room, or give a folder that can be written with --state") from None
        self.opening, self.head, self._size = contents.opening, contents.head, contents.size

    def entries(self) -> tuple[Entry, ...]:
        """All entries, durable or not."""
        return (*_parse(self.path.read_bytes()[: self._size]).entries, *(entry for entry, _ in self._waiting))

    def append(self, entry: Entry) -> None:
        """Add the next entry; it is lost in a power cut before the next `sync`."""
        self.head = chain(self.head, entry.header)
        self._waiting.append((entry, self.head))

    def sync(self, always: bool = False) -> bool:
        """Make what was appended durable; False where the write budget does not allow it now (unless `always`).

        OSError where the disk refuses; nothing is lost then, and the next `sync` writes it again.
        """
        content = b"".join(_record(wire.encode(entry), head) for entry, head in self._waiting)
        if not content:
            return True
        if not self._budget.take(len(content), always=always):
            return False
        self._disk.append(self.path, self._size, content)
        self._disk.sync(self.path)
        self._size += len(content)
        self._waiting.clear()
        return True

    def _open(self, opening: Opening) -> Contents:
        try:
            contents = read(self.path, opening.bundle)
        except ValueError as error:
            kept = aside(self.path)
            log.warning("%s is not used (%s); it is kept as %s, and a new one begun", self.path, error, kept.name)
            self._disk.rename(self.path, kept)
            contents = None
        if contents is None:
            record = _opening_record(opening)
            self._budget.take(len(record), always=True)
            self._disk.replace(self.path, record)
            return Contents(opening, (), opening.genesis, len(record))
        self._cut(contents)
        return contents

    def _cut(self, contents: Contents) -> None:
        """Take away what cannot be read at the end of the file."""
        tail = self.path.read_bytes()[contents.size :]
        if tail:
            kept = aside(self.path)
            log.warning("%s: what follows entry %d is torn; it is kept as %s", self.path, len(contents.entries), kept.name)
            self._disk.write(kept, tail)
            self._disk.append(self.path, contents.size, b"")
            self._disk.sync(self.path)


def _record(content: bytes, seal: bytes) -> bytes:
    return LENGTH.pack(len(content)) + content + seal


def _opening_record(opening: Opening) -> bytes:
    content = OPENING.pack(MAGIC, opening.genesis, opening.bundle, opening.fleet_entry, opening.fleet_head)
    return LENGTH.pack(len(content)) + sealed(content)


def _records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Content with seal, and where it stops, of every record that is whole."""
    place = 0
    while place + LENGTH.size <= len(data):
        stop = place + LENGTH.size + LENGTH.unpack_from(data, place)[0] + CHECKSUM
        if stop > len(data):
            return
        yield data[place + LENGTH.size : stop], stop
        place = stop


def _parse(data: bytes) -> Contents:
    """ValueError where the opening is damaged."""
    records = _records(data)
    first, size = next(records, (b"", 0))
    content = unsealed(first)
    if len(content) != OPENING.size or not content.startswith(MAGIC):
        raise ValueError("it is no local ledger of this version")
    opening = Opening(*OPENING.unpack(content)[1:])
    entries: list[Entry] = []
    head, decode = opening.genesis, wire.decoder(Entry)
    for record, stop in records:
        try:
            entry = decode(record[:-CHECKSUM])
        except ValueError:
            break
        following = chain(head, entry.header)
        if entry.number != len(entries) + 1 or record[-CHECKSUM:] != following:
            break
        entries.append(entry)
        head, size = following, stop
    return Contents(opening, tuple(entries), head, size)
