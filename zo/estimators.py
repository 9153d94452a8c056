"""From losses to integers on a grid, and from those to steps: pure functions (DESIGN sections 2 and 6).

MeZO (arXiv 2305.17333; on device 2511.11362): with half difference s = (L+ - L-) / 2 along z, the directional
derivative for a group with probe size eps = E * unit is g = s / eps, and the update is theta -= rate * mean(g * z).
One half difference of a joint probe serves every group, each with its own eps.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Philox

from zo.terms import STEP_LIMIT

ROUNDING = 1  # the highest word of the counter: far from where any direction of the same key begins


@dataclass(frozen=True)
class Grid:
    """The integers in which a run's scalars travel: value = integer / 2**log2_levels, clipped at +-clip (nats)."""

    log2_levels: int
    clip: float

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"clip = {self.clip:g} must be positive")
        if not (0 <= self.log2_levels <= 40 and self.clip < 2**31 and 1 <= self.limit < 2**31):
            raise ValueError(f"a grid of 2**-{self.log2_levels} nats clipped at {self.clip} does not fit 32-bit integers")

    @property
    def limit(self) -> int:
        """Largest magnitude of a reported integer."""
        return math.floor(math.ldexp(self.clip, self.log2_levels))

    def integers(self, values: np.ndarray) -> np.ndarray:
        """Nearest integers, clipped: int64, same shape. ValueError on NaN or infinity."""
        if not np.all(np.isfinite(values)):
            raise ValueError("a scalar is not finite")
        return np.clip(np.rint(np.ldexp(np.asarray(values, np.float64), self.log2_levels)), -self.limit, self.limit).astype(np.int64)

    def nearest(self, value: float) -> int:
        """The integer nearest to a value in nats, not clipped: for losses, which have no range."""
        return round(value * 2**self.log2_levels)

    def values(self, integers: np.ndarray) -> np.ndarray:
        """What the integers stand for, in nats: float64."""
        return np.ldexp(np.asarray(integers, np.float64), -self.log2_levels)


def half_differences(losses: np.ndarray) -> np.ndarray:
    """(L+ - L-) / 2 for losses [2q] ordered +, -, +, - ...: float64 [q], in nats."""
    pairs = np.asarray(losses, np.float64).reshape(-1, 2)
    with np.errstate(invalid="ignore"):  # two infinite losses give NaN, which the caller drops
        return (pairs[:, 0] - pairs[:, 1]) / 2


def scalars(losses: np.ndarray, grid: Grid) -> tuple[np.ndarray, int]:
    """What a report says of losses [2q]: half differences as integers [q], and how many were not finite; those are 0."""
    half = half_differences(losses)
    usable = np.isfinite(half)
    return grid.integers(np.where(usable, half, 0.0)), int((~usable).sum())


def joint_halves(half: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Half differences of both parts from those of joint probes (FedSPZO, arXiv 2502.10239; DESIGN section 6).

    half: [P1 * count], those of one direction of part 1 side by side. Part 1 gets the mean over its `count` probes, [P1]; part
    2 each probe less the mean of the others, [P1 * count], which takes out what part 1 contributes to all of them.
    """
    rows = np.asarray(half, np.float64).reshape(-1, count)
    first = rows.mean(axis=1)
    if count == 1:
        return first, rows.reshape(-1)
    others = (rows.sum(axis=1, keepdims=True) - rows) / (count - 1)
    return first, (rows - others).reshape(-1)


def mezo_steps(half: np.ndarray, weights: np.ndarray | float, rate: float, log2_eps: int, log2_unit: int) -> np.ndarray:
    """Real-valued steps, in units, of theta -= rate * sum_j weights[j] * (half[j] / eps) * z_j (float64 [directions])."""
    return -rate * weights * np.ldexp(half, -log2_eps - log2_unit)


def round_stochastically(steps: np.ndarray, run_key: int, group: int, first_seed: int, round_number: int) -> np.ndarray:
    """Integers whose expectation is `steps`: int64. The same run, group, first seed and round always give the same integers.

    Raises ValueError where a step is not finite or beyond STEP_LIMIT.
    """
    if not np.all(np.abs(steps) <= STEP_LIMIT):
        raise ValueError(f"a step is not a number within {STEP_LIMIT} units; the rate is too high")
    key = np.array([run_key << 32 | group, first_seed], np.uint64)
    counter = np.array([0, 0, round_number, ROUNDING], np.uint64)
    words = Philox(key=key, counter=counter).random_raw(steps.size).reshape(steps.shape)  # stable across versions of numpy
    uniform = np.ldexp((words >> np.uint64(11)).astype(np.float64), -53)
    whole = np.floor(steps)
    return (whole + (uniform < steps - whole)).astype(np.int64)
