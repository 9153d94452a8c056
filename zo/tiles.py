"""Tiles: committed entries as immutable files that any web server can hand out, under a signed head (DESIGN section 7).

    head                  signed: how far the ledger goes, and its identity there
    entries/x001/234      tile 1234: the entries from 256 * 1234 + 1 to 256 * 1235
    entries/x001/235.p/17 the first 17 entries of a tile that is not full yet
    checkpoints/300000    the parameters at that entry

Whoever hands them out is not trusted: nothing counts but what the head's signature and its hash chain cover.
"""

import hashlib
import re
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError

from zo import ledger
from zo.checkpoint import Checkpoint
from zo.errors import ConfigError
from zo.ledger import Entry, Tile
from zo.tile_head import Head, HeadRefused, read_head
from zo.wire import WireError, decoder

HEAD = "head"
TILE = 256  # entries
MAX_TILE, MAX_HEAD = 16 * 2**20, 4096  # bytes
SLOWEST = 1024  # bytes a second, on average, below which a server is given up
PIECE = 2**16  # bytes


class TilesUnavailable(Exception):
    """Files that cannot be had at present, or arrive damaged."""


def tile_path(tile: int, width: int = TILE) -> str:
    """Where the first `width` entries of a tile (0, 1, ...) lie."""
    digits = str(tile)
    *folders, name = re.findall("...", digits.zfill(-(-len(digits) // 3) * 3))
    path = "/".join(("entries", *(f"x{folder}" for folder in folders), name))
    return path if width == TILE else f"{path}.p/{width}"


class Tiles:
    """The files at an http(s) address or in a folder.

    timeout: seconds without any answer after which a server is given up. memory: bytes of entries that may be held
    between checking and giving them. Every method may raise TilesUnavailable. ConfigError where the address is of another kind.
    """

    def __init__(self, location: str, timeout: float = 20.0, memory: int = 32 * 2**20) -> None:
        self.location, self._timeout, self._memory = location.rstrip("/"), timeout, memory
        scheme, mark, _ = location.partition("://")
        if mark and scheme not in ("http", "https"):
            raise ConfigError(f"tiles {location!r} must be an http:// or https:// address, or a folder")
        self._open = urllib.request.build_opener(_Redirects).open if mark else None
        self.received = 0  # bytes over the network

    def head(self, public_key: bytes, genesis: bytes | None = None, last: Head | None = None) -> Head:
        """The head now. genesis: of the ledger that it must be of; None for any. last: the one that was followed before.

        HeadRefused where it is not signed, of another ledger, goes back, or is of another history than `last` and equally
        long; `entries` finds the other forks.
        """
        data = self._read(HEAD, MAX_HEAD)
        try:
            head = read_head(data, public_key)
            if any(known not in (None, head.genesis) for known in (genesis, last and last.genesis)):
                raise HeadRefused("it is of another ledger; check the address of the tiles")
            if last and head.entries < last.entries:
                raise HeadRefused(f"it goes back, from entry {last.entries} to {head.entries}")
            if last and head.entries == last.entries and head.chain != last.chain:
                raise HeadRefused(f"it forks: another history led to entry {head.entries}")
        except HeadRefused as error:
            raise HeadRefused(f"{self.location}/{HEAD} is refused: {error}") from None
        return head

    def entries(self, head: Head, after: int, chain: bytes, last: Head | None = None) -> Iterator[Entry]:
        """The entries above `after` up to the head, in order. after, chain: number and identity of the state that they go on from.

        HeadRefused, before the first is given, unless they lead from that state through that of `last` (a head followed
        before) to that of the head. So all are fetched first, and what `memory` does not hold is fetched again. None
        where the state is at the head or ahead of it. What this does not cover: a `last` before `after`, which must lie
        on the way to the state already; a state that comes from a checkpoint proves nothing of the kind.
        """
        state = self._checked(after, chain, head, last)
        tiles = range(after // TILE, -(-head.entries // TILE) if after < head.entries else 0)
        kept = {tile: self._tile(head, tile) for tile in tiles[-1:]}  # first, since a server removes it when the tile is full
        digests = {}
        for tile in tiles:
            data = kept.get(tile) or self._tile(head, tile)
            for entry in self._decoded(head, tile, data):
                if entry.number > after:
                    state = self._checked(entry.number, ledger.chain(state, entry.header), head, last)
            digests[tile] = _blake2b(data)
            if sum(map(len, kept.values())) + len(data) <= self._memory:
                kept[tile] = data
        return self._verified(head, after, digests, kept)

    def checkpoint(self, head: Head) -> Checkpoint:
        """The checkpoint that the head states. HeadRefused where it is not of the head's ledger; not proven to be of its history."""
        stated = head.checkpoint
        if stated is None:
            raise TilesUnavailable(f"{self.location}/{HEAD} states no checkpoint")
        data = self._read(stated.path, stated.size)
        if _blake2b(data) != stated.digest:
            raise TilesUnavailable(f"{self.location}/{stated.path} is damaged: its digest is not the one that the head states")
        try:
            checkpoint = decoder(Checkpoint)(data)
        except WireError as error:
            raise HeadRefused(f"{self.location}/{stated.path} cannot be read: {error}") from None
        if (checkpoint.genesis, checkpoint.entry) != (head.genesis, stated.entry):
            raise HeadRefused(f"{self.location}/{stated.path} is of another ledger or entry than the head states")
        return checkpoint

    def _checked(self, number: int, state: bytes, *heads: Head | None) -> bytes:
        if any(head and head.entries == number and head.chain != state for head in heads):
            raise HeadRefused(f"{self.location}/{HEAD} is refused: it forks, or a tile is altered: another history led to entry {number}")
        return state

    def _verified(self, head: Head, after: int, digests: dict[int, bytes], kept: dict[int, bytes]) -> Iterator[Entry]:
        for tile, digest in digests.items():
            data = kept.pop(tile, None) or self._tile(head, tile)
            if _blake2b(data) != digest:
                raise TilesUnavailable(f"tile {tile} at {self.location} has changed since it was checked")
            yield from (entry for entry in self._decoded(head, tile, data) if entry.number > after)

    def _tile(self, head: Head, tile: int) -> bytes:
        return self._read(tile_path(tile, min(TILE, head.entries - tile * TILE)), MAX_TILE)

    def _decoded(self, head: Head, tile: int, data: bytes) -> tuple[Entry, ...]:
        first, stop = tile * TILE + 1, min((tile + 1) * TILE, head.entries) + 1
        try:
            entries = decoder(Tile)(data).entries
        except WireError as error:
            raise TilesUnavailable(f"tile {tile} at {self.location} is damaged: {error}") from None
        if [entry.number for entry in entries] != list(range(first, stop)):
            raise TilesUnavailable(f"tile {tile} at {self.location} is damaged: it does not hold entries {first} to {stop - 1}")
        return entries

    def _read(self, path: str, most: int) -> bytes:
        where = f"{self.location}/{path}"
        try:
            with self._open(where, timeout=self._timeout) if self._open else open(where, "rb") as source:
                data = _received(source, most, self._timeout)
                self.received += len(data) if self._open else 0
                return data
        except (OSError, HTTPException, ValueError) as error:  # ValueError: an address that makes no sense, after a redirect too
            if isinstance(error, HTTPError):
                error.close()
            reason = error.reason if type(error) is URLError else error
            raise TilesUnavailable(f"{where} cannot be read: {getattr(reason, 'strerror', None) or reason}") from None


def _received(source: Any, most: int, timeout: float) -> bytes:
    data, start = bytearray(), time.monotonic()
    while piece := source.read1(PIECE):
        data += piece
        if len(data) > most:
            raise ValueError(f"it is longer than {most} bytes")
        if time.monotonic() - start > timeout + len(data) / SLOWEST:
            raise TimeoutError("it comes too slowly")
    if getattr(source, "length", None):
        raise ConnectionError("it was cut short")
    return bytes(data)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect from http to https, never the other way, and to nothing else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith(("https://", f"{req.type}://")):
            fp.close()
            raise URLError(f"it redirects to {newurl}, which is of another kind")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _blake2b(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()
