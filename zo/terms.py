"""Terms: the one form in which a change of parameters is stated (DESIGN section 2)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from zo.lattice import RangeError

STEP_LIMIT = 2**53  # of one step, and of the sum of |steps| on a group in one addition: beyond it float64 is not exact


@dataclass(frozen=True, eq=False)
class Term:
    """For every group g listed: theta_g += unit_g * sum over i of steps[i] * z(first_seed + i, g).

    groups: ids, without repetition. first_seed: 0 <= seed < 2**64. steps: int64 [n], signed, in units.
    """

    groups: tuple[int, ...]
    first_seed: int
    steps: np.ndarray

    def __post_init__(self) -> None:
        steps = np.asarray(self.steps)
        if steps.ndim != 1 or (steps.size and not np.issubdtype(steps.dtype, np.integer)):
            raise ValueError("steps must be one row of integers")
        if steps.size and not (int(steps.min()) >= -STEP_LIMIT and int(steps.max()) <= STEP_LIMIT):
            raise ValueError(f"steps must be within {STEP_LIMIT} units")
        if not all(0 <= group < 2**32 for group in self.groups):
            raise ValueError(f"groups {self.groups} must be ids of 32 bits")
        if len(set(self.groups)) != len(self.groups):
            raise ValueError(f"groups {self.groups} repeat an id")
        if not 0 <= self.first_seed <= 2**64 - max(1, steps.size):
            raise ValueError(f"seeds from {self.first_seed} do not fit 64 bits")
        steps = steps.astype(np.int64)
        steps.flags.writeable = False
        object.__setattr__(self, "steps", steps)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Term)
            and (self.groups, self.first_seed) == (other.groups, other.first_seed)
            and np.array_equal(self.steps, other.steps)
        )

    def __neg__(self) -> "Term":
        return Term(self.groups, self.first_seed, -self.steps)

    @property
    def seeds(self) -> np.ndarray:
        """uint64 [n], consecutive."""
        return np.uint64(self.first_seed) + np.arange(self.steps.size, dtype=np.uint64)


def negated(terms: Iterable[Term]) -> tuple[Term, ...]:
    """The terms that undo `terms` exactly."""
    return tuple(-term for term in terms)


def collect(terms: Iterable[Term], group: int) -> tuple[np.ndarray, np.ndarray]:
    """All that `terms` say of one group: sorted seeds (uint64) and their nonzero summed steps (int64)."""
    mine = [term for term in terms if group in term.groups]
    if not mine:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    if len(mine) == 1:  # consecutive already, as every probe's are
        kept = mine[0].steps != 0
        return mine[0].seeds[kept], mine[0].steps[kept]
    return sum_by_seed(np.concatenate([t.seeds for t in mine]), np.concatenate([t.steps for t in mine]))


def sum_by_seed(seeds: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps of equal seeds added; sorted by seed; zeros left out. RangeError where a sum might not fit 64 bits."""
    if np.abs(steps).sum(dtype=np.float64) >= 2**63:
        raise RangeError("steps of one addition sum to 2**63 or more; add them in several additions")
    unique, place = np.unique(seeds, return_inverse=True)
    summed = np.zeros(unique.size, np.int64)
    np.add.at(summed, place, steps)
    kept = summed != 0
    return unique[kept], summed[kept]


def consecutive(groups: Sequence[int], seeds: np.ndarray, steps: np.ndarray) -> list[Term]:
    """Sorted seeds and their steps as terms, one for each stretch of consecutive seeds."""
    if not seeds.size:
        return []
    breaks = np.flatnonzero(np.diff(seeds) != 1) + 1
    starts, stops = np.r_[0, breaks], np.r_[breaks, seeds.size]
    return [Term(tuple(groups), int(seeds[a]), steps[a:b]) for a, b in zip(starts, stops, strict=True)]
