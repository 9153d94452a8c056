"""The best rate of each side of `scripts/bench ranks`: by factors of two, in the mean of seeds that count for nothing else."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

FIRST, SLOWEST, FASTEST = (1.0, 2.0), 1 / 16, 256.0  # times the default
TUNING_SEEDS = (1000, 1001, 1002)


class Loss(NamedTuple):
    """Of a validation file (nats): of every example alike, and of every class alike."""

    mean: float
    balanced: float


Losses = dict[int, Loss]  # by prefix


class Job(NamedTuple):
    """One run. kind: of the ways in which a side may average, which. rate: times the default."""

    side: str
    kind: int
    rate: float
    seed: int


Fly = Callable[[Sequence[Job]], Iterable[Losses]]


@dataclass
class Search:
    """For the best rate of one side, averaged in one way, by factors of two.

    tried: loss of the full prefix by rate, in the mean.
    """

    side: str
    kind: int = 0
    tried: dict[float, float] = field(default_factory=dict)

    def wanted(self) -> list[float]:
        """Rates to try next: until the best lies between others."""
        if not self.tried:
            return list(FIRST)
        return [rate for rate in (self.best / 2, self.best * 2) if rate not in self.tried and SLOWEST <= rate <= FASTEST]

    @property
    def best(self) -> float:
        """The best rate as yet."""
        return min(self.tried, key=lambda rate: self.tried[rate])


def search(fly: Fly, searches: Sequence[Search]) -> None:
    """All of them to their ends, side by side."""
    while jobs := [Job(each.side, each.kind, rate, seed) for each in searches for rate in each.wanted() for seed in TUNING_SEEDS]:
        losses: dict[tuple[str, int, float], list[float]] = {}
        for job, found in zip(jobs, fly(jobs), strict=True):
            losses.setdefault(job[:3], []).append(found[max(found)].mean)
        for each in searches:
            each.tried |= {rate: round(statistics.fmean(losses[each.side, each.kind, rate]), 4) for rate in each.wanted()}
