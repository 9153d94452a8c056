"""Writing tiles: a folder of immutable files and a signed head, for any web server to hand out (zo.tiles says what lies where)."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.signing import public_bytes
from zo import ledger, wire
from zo.checkpoint import Checkpoint, signs
from zo.disk import Disk
from zo.errors import StorageError
from zo.ledger import Entry, Tile
from zo.tile_head import CheckpointFile, Head, HeadRefused, read_head
from zo.tiles import HEAD, MAX_TILE, TILE, tile_path

PARTIALS = 8  # unfinished tiles that stay, for devices that hold the head of a few entries ago

EntriesAfter = Callable[[int, int], list[Entry]]


class TileWriter:
    """The tiles of one ledger in one folder, which nobody else writes to. sizes: count of values, by group."""

    def __init__(
        self, folder: Path, key: Ed25519PrivateKey, genesis: bytes, bundle: bytes, sizes: Mapping[int, int], disk: Disk | None = None
    ) -> None:
        self.folder, self._key, self._genesis, self._bundle = folder, key, genesis, bundle
        self._sizes, self._disk = dict(sizes), disk or Disk()

    def publish(self, entries_after: EntriesAfter, last: int, chain: bytes, checkpoint: Checkpoint | None = None) -> None:
        """Bring the folder to entry `last`, whose identity is `chain`; when this returns, all of it is on the disk.

        entries_after(number, most): entries above a number, in order, of a ledger that is durable up to `last`; those of
        the tile that is not full yet are asked for each time. checkpoint: the parameters at `last` or before; without
        one, or with an older, the head keeps naming the one before. A crash at any instant leaves what was published before.

        StorageError where the folder cannot be written, or holds what is not of this ledger's history: a head once
        signed is never taken back.
        """
        if checkpoint and checkpoint.entry > last:
            raise ValueError(f"the checkpoint at entry {checkpoint.entry} lies beyond entry {last}")
        try:
            before = self._head()
            self._check(entries_after, before, last, chain)
            for tile in range(-(-last // TILE)):
                stop = min((tile + 1) * TILE, last)
                path = tile_path(tile, stop - tile * TILE)
                if stop > before.entries or not (self.folder / path).is_file():
                    self._put_tile(path, self._entries(entries_after, tile * TILE, stop))
            stated = self._put_checkpoint(before.checkpoint, checkpoint)
            self._put(HEAD, Head(self._genesis, self._bundle, last, chain, stated).signed(self._key))
            self._remove_old_tiles(last)
            self._remove_old_checkpoints(stated)
        except OSError as error:
            raise StorageError(
                f"tiles cannot be written to {error.filename or self.folder}: {error.strerror or error}; check disk space and permissions"
            ) from None

    def _head(self) -> Head:
        path = self.folder / HEAD
        try:
            head = read_head(path.read_bytes(), public_bytes(self._key))
        except FileNotFoundError:
            return Head(self._genesis, self._bundle, 0, self._genesis)
        except HeadRefused as error:
            raise StorageError(f"{path}: {error}; use the key that signed it, or another folder") from None
        if head.genesis != self._genesis:
            raise StorageError(f"{path} is the head of another ledger; choose another folder")
        return head

    def _check(self, entries_after: EntriesAfter, before: Head, last: int, chain: bytes) -> None:
        """StorageError unless the ledger goes on from what was published."""
        state = before.chain
        for number in range(before.entries, last, TILE):
            for entry in self._entries(entries_after, number, min(number + TILE, last)):
                state = ledger.chain(state, entry.header)
        if state != chain:
            raise StorageError(
                f"{self.folder} was published up to entry {before.entries} and the store does not go on from there;"
                " if the store was restored from an older backup, choose a new folder for its tiles"
            )

    def _entries(self, entries_after: EntriesAfter, after: int, stop: int) -> tuple[Entry, ...]:
        entries = tuple(entries_after(after, stop - after))
        if [entry.number for entry in entries] != list(range(after + 1, stop + 1)):
            raise StorageError(f"the store does not hold entries {after + 1} to {stop}, which the tiles in {self.folder} lack")
        return entries

    def _put_tile(self, path: str, entries: tuple[Entry, ...]) -> None:
        content = wire.encode(Tile(entries))
        if len(content) > MAX_TILE:
            raise StorageError(f"tile {path} takes {len(content)} bytes, and devices accept {MAX_TILE}; this run is too large for tiles")
        self._put(path, content)

    def _put_checkpoint(self, before: CheckpointFile | None, checkpoint: Checkpoint | None) -> CheckpointFile | None:
        if checkpoint is None or (before and checkpoint.entry <= before.entry):
            return before
        content = wire.encode(checkpoint)
        digest = hashlib.blake2b(content, digest_size=32).digest()
        stated = CheckpointFile(checkpoint.entry, len(content), signs(checkpoint.terms, self._sizes), digest)
        self._put(stated.path, content)
        return stated

    def _put(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.is_file() and path.read_bytes() == content):
            self._disk.replace(path, content)
        for folder in path.relative_to(self.folder.parent).parents:  # also where all is there: a crash may have come before this
            self._disk.sync_folder(self.folder.parent / folder)

    def _remove_old_tiles(self, last: int) -> None:
        """Leave the newest unfinished tiles; of what was never published, nothing."""
        ends = {path: _end(path.relative_to(self.folder)) for path in self.folder.glob("entries/**/*.p/*")}
        kept = sorted(end for end in ends.values() if 0 < end <= last)[-PARTIALS:]
        for path, end in ends.items():
            if end not in kept:
                path.unlink()
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()

    def _remove_old_checkpoints(self, stated: CheckpointFile | None) -> None:
        """Leave the one that the head states, and the one before it."""
        numbers = {path: int(path.name) if path.name.isdigit() else -1 for path in self.folder.glob("checkpoints/*")}
        kept = sorted(number for number in numbers.values() if stated and 0 <= number <= stated.entry)[-2:]
        for path, number in numbers.items():
            if number not in kept:
                path.unlink()


def _end(path: Path) -> int:
    """The last entry of an unfinished tile; -1 where it was not wholly written."""
    tile = int("".join(filter(str.isdigit, path.parent.as_posix())))
    return tile * TILE + int(path.name) if path.name.isdigit() else -1
