"""Which blocks each device trains: the question, and what an answer is worth (ZorBA, arXiv 2603.04436; docs/blocks.md)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-9  # relative, of the proxy: two answers that are nearer are equally good


@dataclass(frozen=True)
class Capacity:
    """What a device can take: at most `most` blocks, none below block `lowest`. ValueError where that is none."""

    most: int
    lowest: int = 0

    def __post_init__(self) -> None:
        if self.most < 1 or self.lowest < 0:
            raise ValueError(f"a device of at most {self.most} blocks from block {self.lowest} on")

    def room(self, blocks: int) -> int:
        """Of so many blocks, how many it can take."""
        return min(self.most, blocks - self.lowest)


@dataclass(frozen=True)
class Problem:
    """sizes: values of every block, lowest first. slack: what may be given up of the best proxy, relative, for less memory.

    A block that is tried takes a device as many bytes as any other: memory is counted in blocks.
    Every block must be held by a device, and every device must hold a block: ValueError where it can have none.
    """

    sizes: tuple[int, ...]
    capacities: tuple[Capacity, ...]
    slack: float = 0.0

    def __post_init__(self) -> None:
        if not self.sizes or not self.capacities or min(self.sizes) < 1 or not self.slack >= 0:
            raise ValueError("blocks of at least one value, devices, and a slack that is not negative are needed")
        if max(each.lowest for each in self.capacities) >= len(self.sizes):
            raise ValueError(f"a device may begin at block {len(self.sizes) - 1} at most")

    def allowed(self) -> np.ndarray:
        """Whether a device may hold a block: bool [devices, blocks]."""
        return np.array([each.lowest for each in self.capacities])[:, None] <= np.arange(len(self.sizes))

    def rooms(self) -> np.ndarray:
        """Most blocks of every device: int64 [devices]."""
        return np.array([each.room(len(self.sizes)) for each in self.capacities])


def proxy(sizes: Sequence[int], held: np.ndarray) -> float:
    """The convergence proxy, sum of d_l / (contributors of l): the less, the fewer rounds; infinite where a block has none.

    held: bool [devices, blocks].
    """
    contributors = held.sum(axis=0)
    return float((np.asarray(sizes) / contributors).sum()) if contributors.all() else float("inf")


def gains(sizes: Sequence[int], contributors: np.ndarray) -> np.ndarray:
    """By how much one contributor more lowers the proxy, for every block: d / (c (c + 1)); of a block without any, more than all others."""
    d, c = np.asarray(sizes, np.float64), np.asarray(contributors, np.float64)
    return np.where(c > 0, d / np.maximum(c * (c + 1), 1), d.sum() + d)


def losses(sizes: Sequence[int], contributors: np.ndarray) -> np.ndarray:
    """By how much one contributor less raises it: d / ((c - 1) c); of the last contributor, what it gained."""
    return gains(sizes, np.maximum(np.asarray(contributors) - 1, 0))
