"""The ledger: an append-only list of entries; the model at entry n is base + fold(entries[:n]) (DESIGN section 2)."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from zo.terms import Term, collect, consecutive, negated


@dataclass(frozen=True)
class Header:
    """An entry without its terms: what the hash chain covers, and what stays when terms are compacted away.

    terms_digest: BLAKE2b-256 of the terms' canonical bytes. digest: see Entry.
    """

    number: int
    round: int
    contributors: int
    terms_digest: bytes
    digest: bytes | None = None

    def canonical_bytes(self) -> bytes:
        """The little-endian form: fields of fixed width, and the digest where there is one."""
        return struct.pack("<QQI", self.number, self.round, self.contributors) + self.terms_digest + (self.digest or b"")


@dataclass(frozen=True)
class Entry:
    """One committed change. number: 1, 2, ... round: the round it closes. contributors: devices whose reports it holds.

    digest: of the parameters after it, at intervals; whoever applies the entry compares.
    """

    number: int
    round: int
    contributors: int
    terms: tuple[Term, ...]
    digest: bytes | None = None

    @property
    def header(self) -> Header:
        """All but the terms, and their digest."""
        terms_digest = hashlib.blake2b(canonical_bytes(self.terms), digest_size=32).digest()
        return Header(self.number, self.round, self.contributors, terms_digest, self.digest)


@dataclass(frozen=True)
class Tile:
    """Consecutive entries in one immutable file (zo.tiles)."""

    entries: tuple[Entry, ...]


def canonical_bytes(terms: Sequence[Term]) -> bytes:
    """Terms in the fixed-width little-endian form that their digest covers."""
    parts = [struct.pack("<I", len(terms))]
    for term in terms:
        parts.append(struct.pack("<IQI", len(term.groups), term.first_seed, term.steps.size))
        parts.append(np.asarray(term.groups, "<u4").tobytes() + term.steps.astype("<i8").tobytes())
    return b"".join(parts)


def genesis(bundle_digest: bytes, nonce: bytes) -> bytes:
    """The identity of the state before the first entry. nonce: drawn at random, so that no two ledgers are taken for one."""
    return hashlib.blake2b(b"edge-zo ledger" + bundle_digest + nonce, digest_size=32).digest()


def chain(previous: bytes, header: Header) -> bytes:
    """The identity of the state after an entry: BLAKE2b-256 over the identity before it and the entry's header."""
    return hashlib.blake2b(previous + header.canonical_bytes(), digest_size=32).digest()


def short(head: bytes) -> int:
    """The first 64 bits of an identity: enough to notice a fork."""
    return int.from_bytes(head[:8], "little")


def rollback(entries: Iterable[Entry]) -> tuple[Term, ...]:
    """Terms that take the model back to before `entries`: the digest recurs, the identity does not."""
    return negated(fold(term for entry in entries for term in entry.terms))


def fold(terms: Iterable[Term]) -> tuple[Term, ...]:
    """The shortest terms with the same effect: one integer array a group over the seeds used, identical arrays once."""
    terms = tuple(terms)
    arrays: dict[tuple[bytes, bytes], list[int]] = {}
    for group in sorted({group for term in terms for group in term.groups}):
        seeds, steps = collect(terms, group)
        arrays.setdefault((seeds.tobytes(), steps.tobytes()), []).append(group)
    folded: list[Term] = []
    for (seeds_bytes, steps_bytes), groups in arrays.items():
        folded += consecutive(groups, np.frombuffer(seeds_bytes, np.uint64), np.frombuffer(steps_bytes, np.int64))
    return tuple(folded)


@dataclass
class Folding:
    """The fold of a growing ledger, of bounded size.

    sizes: count of values, by group. A group is given up for good, into `without`, once its own values are shorter than
    its steps; but not those of `always`.
    """

    sizes: dict[int, int]
    without: set[int] = field(default_factory=set)
    always: frozenset[int] = frozenset()
    _folded: tuple[Term, ...] = ()
    _later: list[Term] = field(default_factory=list)
    _waiting: int = 0  # steps of `_later`
    _room: int = 1 << 16  # steps that may wait before they are folded

    def add(self, terms: Iterable[Term]) -> None:
        """Take in more terms."""
        fresh = self._keeping(terms)
        self._later += fresh
        self._waiting += sum(term.steps.size for term in fresh)
        if self._waiting > self._room:
            self._room = max(1 << 16, sum(term.steps.size for term in self.terms()))

    def terms(self) -> tuple[Term, ...]:
        """The fold so far, of all groups that are not given up."""
        if self._later:
            self._folded, self._later, self._waiting = fold((*self._folded, *self._later)), [], 0
            lengths: dict[tuple[int, ...], int] = {}
            for term in self._folded:
                lengths[term.groups] = lengths.get(term.groups, 0) + encoded_size(term)
            for groups, length in lengths.items():
                if length >= 4 * sum(self.sizes[group] for group in groups):
                    self.without |= set(groups) - self.always
            self._folded = tuple(self._keeping(self._folded))
        return self._folded

    def _keeping(self, terms: Iterable[Term]) -> list[Term]:
        kept = []
        for term in terms:
            groups = tuple(group for group in term.groups if group not in self.without and group in self.sizes)
            if groups:
                kept.append(term if groups == term.groups else Term(groups, term.first_seed, term.steps))
        return kept


def encoded_size(term: Term) -> int:
    """About how many bytes a term takes on the wire: steps are variable-length integers of 7 bits a byte, zigzag."""
    zigzag = np.where(term.steps < 0, -2 * term.steps - 1, 2 * term.steps).astype(np.float64)
    bits = np.frexp(zigzag)[1]
    return 12 + 2 * len(term.groups) + int(np.maximum(1, -(-bits // 7)).sum())
