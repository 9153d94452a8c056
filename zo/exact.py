"""Exact values of groups that are not held in memory: those of the bundle with the fold added, piece by piece (DESIGN section 2)."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from zo import kernel
from zo.group import Group
from zo.initial import Initial
from zo.terms import Term, collect

SPAN = kernel.CHUNK  # values of a piece; a direction can be entered at any multiple of BLOCK


def stream(run_key: int, group: Group, initial: Initial, terms: Iterable[Term], span: int = SPAN) -> Iterator[np.ndarray]:
    """What `Parameters.add(terms)` makes of the group's initial values, bit for bit: float32 [span] or fewer, in order.

    Every piece is gone when the next is made. span: a multiple of BLOCK. The fleet has made sure that nothing leaves the lattice.
    """
    seeds, steps = collect(terms, group.id)
    room = np.empty(min(span, group.size), np.float32)
    for start in range(0, group.size, span):
        values = room[: group.size - start]
        initial.read(group, start, values)
        if seeds.size:
            kernel.add_in_place(run_key, group.id, seeds, steps, values, start, group.unit, span)
        yield values


def hashed(pieces: Iterable[np.ndarray], into: hashlib.blake2b) -> Iterator[np.ndarray]:
    """The same pieces, each also hashed, as `Parameters.group_digest` hashes all of a group."""
    for values in pieces:
        into.update(values.astype("<f4", copy=False).data)
        yield values


def new_hash() -> hashlib.blake2b:
    """Of a group's values, or of the digests of groups."""
    return hashlib.blake2b(digest_size=32)
