"""Rank slices: adapters whose ranks form a prefix hierarchy (PreLort, arXiv 2606.15963; our realisation in DESIGN section 6).

Of ranks r_1 < ... < r_T, slice s holds the dimensions from r_(s-1) to r_s of every adapter of a block, and is a group of its own.
An adapter `x.lora_B` of a graph is made of tensors `x.lora_B.0`, `x.lora_B.1`, ..., each [dimensions of the slice, width].
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zo.errors import ConfigError

if TYPE_CHECKING:
    from zo.group import Group
    from zo.manifest import Manifest

SLICED = re.compile(r"(.+\.lora_[AB])\.([0-9]+)")


class Piece(NamedTuple):
    """The slice of one adapter: its tensor, and the rank dimensions that it holds."""

    tensor: str
    start: int
    stop: int


def check(ranks: Sequence[int]) -> None:
    """ValueError, naming them, unless ranks grow from at least 1."""
    if min(ranks, default=1) < 1:
        raise ValueError(f"ranks = {list(ranks)} must be at least 1 each")
    if list(ranks) != sorted(set(ranks)):
        raise ValueError(f"ranks = {list(ranks)} must grow")


def check_slices(ranks: Sequence[int], groups: Iterable["Group"]) -> None:
    """ValueError, naming it, where a tensor is not the slice of an adapter that its name says, or one of them is missing."""
    found: dict[str, dict[int, int]] = {}
    for group in groups if ranks else ():
        if len({name and name[2] for name in (SLICED.fullmatch(tensor.name) for tensor in group.tensors)}) > 1:
            raise ValueError(f"group {group.id} holds tensors of several slices")
        for tensor in group.tensors:
            if name := SLICED.fullmatch(tensor.name):
                number = int(name[2])
                if number >= len(ranks) or len(tensor.shape) != 2 or tensor.shape[0] != ranks[number] - (0, *ranks)[number]:
                    raise ValueError(f"tensor {tensor.name!r} of shape {tensor.shape} is no slice of ranks = {list(ranks)}")
                found.setdefault(name[1], {})[number] = tensor.shape[1]
    for adapter, widths in found.items():
        if len(widths) != len(ranks) or len(set(widths.values())) != 1:
            raise ValueError(f"adapter {adapter!r} has slices {sorted(widths)} of widths {sorted(set(widths.values()))}")


def spans(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """The dimensions of every slice."""
    return list(pairwise((0, *ranks)))


def slice_of(group: "Group") -> int | None:
    """Which slice a group is; None where it is none, and every device holds it."""
    found = SLICED.fullmatch(group.tensors[0].name)
    return int(found[2]) if found else None


def pieces(manifest: "Manifest") -> dict[str, tuple[Piece, ...]]:
    """By adapter, as graphs name it, its slices; empty where a bundle has no ranks."""
    found: dict[str, list[Piece]] = {}
    if manifest.ranks:
        parts = spans(manifest.ranks)
        for group in manifest.groups:
            for tensor in group.tensors:
                if name := SLICED.fullmatch(tensor.name):
                    found.setdefault(name[1], []).append(Piece(tensor.name, *parts[int(name[2])]))
    return {adapter: tuple(sorted(each, key=lambda piece: piece.start)) for adapter, each in found.items()}


def prefix(manifest: "Manifest", rank: int) -> frozenset[int]:
    """Ids of the groups of a model of that rank (0: the largest): slices within it, and what is no slice. ConfigError as `refuse`."""
    refuse(manifest, rank)
    most = manifest.ranks.index(rank) if rank else len(manifest.ranks)
    if not manifest.ranks:
        return frozenset(group.id for group in manifest.groups)
    return frozenset(group.id for group in manifest.groups if (slice_of(group) or 0) <= most)


def joined(manifest: "Manifest", tensors: Mapping[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """Tensors as a model of that rank (0: the largest) has them: adapters whole, [rank, width]. ConfigError as `refuse`."""
    refuse(manifest, rank)
    found = {name: values for name, values in tensors.items() if not SLICED.fullmatch(name)}
    for adapter, parts in pieces(manifest).items():
        found[adapter] = np.concatenate([tensors[piece.tensor] for piece in parts if not rank or piece.stop <= rank])
    return found


def refuse(manifest: "Manifest", rank: int) -> None:
    """ConfigError where a bundle has no prefix of that rank."""
    if rank and rank not in manifest.ranks:
        has = f"it has {', '.join(map(str, manifest.ranks))}" if manifest.ranks else "build it with --ranks"
        raise ConfigError(f"bundle {manifest.name!r} has no adapters of rank {rank}; {has}")
