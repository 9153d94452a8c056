"""How fast: the rate of each kind of group, from held-out losses along the way that the parameters went (docs/autopilot.md).

The loss along a stride is taken for a parabola. From the losses further along it and back come its slope where the stride ended
and its curvature, and so the rate at which the stride would have ended in the lowest point.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MEMORY = 0.7  # weight of what was measured before, at each new measurement
AHEAD = 1.5  # times the rate that would have been best for the stride: over many of them a longer one is, as its noise averages out
MOST_CHANGE = 2.0  # of a rate at once
REACH = 64.0  # times the rate at the start, or its part
UNSEEN = 0.05  # share of the loss: strides that change it by less than can be told, and surely by less than this, may be longer
LONGER = 2**0.5  # times


@dataclass(frozen=True)
class Line:
    """What strides showed, for a factor of 1: sums over looks, each weighing MEMORY times the one after it, and variances of these sums.

    factors: in force. slopes: where strides ended. unseen: whether the last one changed too little to be told.
    """

    weight: float = 0.0
    factors: float = 0.0
    slopes: float = 0.0
    curvatures: float = 0.0
    slope_variance: float = 0.0
    curvature_variance: float = 0.0
    unseen: bool = False

    def after(self, losses: np.ndarray, factor: float) -> "Line":
        """With another look: losses (nats) [devices, 3], where the parameters are, a stride further, and back; factor: in force on it."""
        here, further, back = losses.T
        slope, slope_error = mean_and_error((further - back) / 2)
        curvature, curvature_error = mean_and_error(further + back - 2 * here)
        return Line(
            MEMORY * self.weight + 1,
            MEMORY * self.factors + factor,
            MEMORY * self.slopes + slope / factor,
            MEMORY * self.curvatures + curvature / factor**2,
            MEMORY**2 * self.slope_variance + (slope_error / factor) ** 2,
            MEMORY**2 * self.curvature_variance + (curvature_error / factor**2) ** 2,
            max(abs(slope) + slope_error, curvature + curvature_error) < UNSEEN * float(here.mean()),
        )

    @property
    def best(self) -> float | None:
        """The factor whose stride would end lowest; infinite, or 0, where only the way to it is known; None where not even that."""
        if self.curvatures > np.sqrt(self.curvature_variance):
            return max(0.0, self.factors / self.weight - self.slopes / self.curvatures)
        if abs(self.slopes) > np.sqrt(self.slope_variance):
            return np.inf if self.slopes < 0 else 0.0
        return None


class Pace:
    """Rates by kind of group, as multiples of those that a run begins with. paced: the kinds whose rates change."""

    def __init__(self, kinds: Sequence[str], paced: Sequence[str]) -> None:
        self.factors, self._lines = dict.fromkeys(kinds, 1.0), dict.fromkeys(paced, Line())

    def learn(self, looks: np.ndarray, in_force: Mapping[str, float]) -> None:
        """Take in what was measured.

        looks: losses (nats) [devices, 1 + 2 * kinds], of each device where the parameters are, and further along and back with
        each kind. in_force: the factors during that stride, mean.
        """
        for place, kind in enumerate(self.factors):
            if kind in self._lines and in_force[kind]:
                line = self._lines[kind].after(looks[:, [0, 1 + 2 * place, 2 + 2 * place]], in_force[kind])
                self._lines[kind], self.factors[kind] = line, _next(self.factors[kind], line)

    def slow(self, share: float) -> None:
        """Lower all rates, and forget what was measured: it was too hopeful."""
        for kind in self._lines:
            self.factors[kind] *= share
            self._lines[kind] = Line()

    def told(self) -> str:
        """The rates for a person."""
        return "rates " + ", ".join(f"{kind} x {factor:.2f}" for kind, factor in self.factors.items())


def _next(now: float, line: Line) -> float:
    """From a factor towards a little beyond the best one, or to a larger one where nothing was seen of it."""
    best = line.best
    wanted = AHEAD * best if best is not None else now * (LONGER if line.unseen else 1)
    return float(np.clip(wanted, max(now / MOST_CHANGE, 1 / REACH), min(now * MOST_CHANGE, REACH)))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over devices and its standard error, without the highest and lowest eighth where there are five or more.

    The error is larger where few agree by chance (about as Student's t has it), and all of what is measured where there is one.
    """
    if len(values) == 1:
        return float(values[0]), abs(float(values[0]))
    cut = max(1, len(values) // 8) if len(values) >= 5 else 0
    kept = np.sort(values)[cut : len(values) - cut]
    few = 1 + 5 / (len(kept) - 1) ** 2
    return float(kept.mean()), float(few * kept.std(ddof=1) / np.sqrt(len(kept)))
