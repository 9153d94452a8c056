"""How fast: the rate of each kind of group, from held-out losses along the way that the parameters went (docs/autopilot.md).

The loss along a stride is taken for a parabola. From the losses further along it and back come its slope where the stride ended
and its curvature, and so the rate at which the stride would have ended in the lowest point.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MEMORY, LOOK_BACK = 0.7, 12  # weight of what was measured before, at each new measurement; and how many of these are kept
AHEAD = 2.0  # times the rate that would have been best for the stride: over many of them a longer one is, as its noise averages out
MOST_CHANGE = 2.0  # of a rate at once
REACH = 64.0  # times the rate at the start, or its part
UNSEEN = 0.05  # share of the loss: strides that change it by less than can be told, and surely by less than this, may be longer
LONGER = 2**0.5  # times


@dataclass(frozen=True)
class Stride:
    """What a look showed of a stride along one kind of group, device by device, for a factor of 1.

    factor: in force on it. slopes: where it ended. unseen: whether it changed too little to be told.
    """

    factor: float
    slopes: np.ndarray
    curvatures: np.ndarray
    unseen: bool

    @classmethod
    def seen(cls, losses: np.ndarray, factor: float) -> "Stride":
        """losses: (nats) [devices, 3], where the parameters are, a stride further, and back."""
        here, further, back = losses.T
        slopes, curvatures = (further - back) / 2, further + back - 2 * here
        (slope, slope_error), (curvature, curvature_error) = mean_and_error(slopes), mean_and_error(curvatures)
        unseen = max(abs(slope) + slope_error, curvature + curvature_error) < UNSEEN * mean_and_error(here)[0]
        return cls(factor, slopes / factor, curvatures / factor**2, unseen)

    def slope(self, factor: float) -> tuple[float, float]:
        """Where it would have ended with that factor, and the error of it."""
        return mean_and_error(self.slopes + (factor - self.factor) * self.curvatures)


class Pace:
    """Rates by kind of group, as multiples of those that a run begins with. paced: the kinds whose rates change."""

    def __init__(self, kinds: Sequence[str], paced: Sequence[str]) -> None:
        self.factors, self._paced = dict.fromkeys(kinds, 1.0), tuple(paced)
        self._strides = {kind: deque[Stride](maxlen=LOOK_BACK) for kind in paced}

    def learn(self, looks: np.ndarray, in_force: Mapping[str, float]) -> None:
        """Take in what was measured.

        looks: losses (nats) [devices, 1 + 2 * kinds], of each device where the parameters are, and further along and back with
        each kind. in_force: the factors during that stride, mean.
        """
        for place, kind in enumerate(self.factors):
            if kind in self._paced and in_force[kind]:
                self._strides[kind].append(Stride.seen(looks[:, [0, 1 + 2 * place, 2 + 2 * place]], in_force[kind]))
                self.factors[kind] = _next(self.factors[kind], self._strides[kind])

    def slow(self, share: float) -> None:
        """Lower all rates, and forget what was measured: it was too hopeful."""
        for kind in self._paced:
            self.factors[kind] *= share
            self._strides[kind].clear()

    def told(self) -> str:
        """The rates for a person."""
        return "rates " + ", ".join(f"{kind} x {factor:.2f}" for kind, factor in self.factors.items())


def _next(now: float, strides: Sequence[Stride]) -> float:
    """From a factor to one beyond the best, if that surely lies elsewhere; or else to a larger one, if strides are too short to be seen."""
    curvature, error = _mean([mean_and_error(stride.curvatures) for stride in strides])
    bends = curvature > error
    slope, error = _mean([stride.slope(now / AHEAD if bends else stride.factor) for stride in strides])
    if abs(slope) <= error or (slope > 0 and strides[-1].unseen and not bends):  # straight uphill is chance, not haste
        wanted = now * (LONGER if strides[-1].unseen else 1)
    else:
        wanted = now - AHEAD * slope / curvature if bends else math.copysign(math.inf, -slope)
    return float(np.clip(wanted, max(now / MOST_CHANGE, 1 / REACH), min(now * MOST_CHANGE, REACH)))


def _mean(seen: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of what looks showed, oldest first, and its error: each weighs MEMORY times the one after it."""
    means, errors = np.array(seen).T
    weights = MEMORY ** np.arange(len(seen))[::-1]
    return float(weights @ means / weights.sum()), float(np.sqrt(weights**2 @ errors**2) / weights.sum())


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
