"""The ledger: an append-only list of entries; the model at entry n is base + fold(entries[:n]) (DESIGN section 2)."""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from zo.terms import Term, collect, consecutive, negated

GENESIS = bytes(32)


@dataclass(frozen=True)
class Entry:
    """One committed change. number: 1, 2, ... round: the round it closes. contributors: devices whose reports it holds."""

    number: int
    round: int
    contributors: int
    terms: tuple[Term, ...]

    def canonical_bytes(self) -> bytes:
        """The fixed-width little-endian form that the hash chain covers."""
        parts = [struct.pack("<QQII", self.number, self.round, self.contributors, len(self.terms))]
        for term in self.terms:
            parts.append(struct.pack("<IQI", len(term.groups), term.first_seed, term.steps.size))
            parts.append(np.asarray(term.groups, "<u4").tobytes() + term.steps.astype("<i8").tobytes())
        return b"".join(parts)


def chain(previous: bytes, entry: Entry) -> bytes:
    """The identity of the state after `entry`: BLAKE2b-256 over the identity before it and the entry."""
    return hashlib.blake2b(previous + entry.canonical_bytes(), digest_size=32).digest()


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
class Ledger:
    """Entries in order and the hash chain over them. Raises ValueError on a gap."""

    entries: list[Entry] = field(default_factory=list)
    head: bytes = GENESIS

    def append(self, entry: Entry) -> None:
        """Add the next entry; its number must be one more than the last."""
        if entry.number != len(self.entries) + 1:
            raise ValueError(f"entry {entry.number} does not follow entry {len(self.entries)}")
        self.head = chain(self.head, entry)
        self.entries.append(entry)

    def fold(self, stop: int | None = None) -> tuple[Term, ...]:
        """Folded terms of the entries up to number `stop` (all by default)."""
        return fold(term for entry in self.entries[:stop] for term in entry.terms)
