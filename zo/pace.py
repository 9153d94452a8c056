"""How fast: the rate of each kind of group, from held-out losses along the way that the parameters went (docs/autopilot.md).

The loss along a stride is taken for a parabola. With the losses further along it and back, its slope where the stride began
and its curvature are known, and so is the rate at which the stride would have ended in the lowest point.
"""

from collections.abc import Mapping, Sequence

import numpy as np

MEMORY = 0.7  # weight of what was measured before, at each new measurement
AHEAD = 1.5  # times the rate that would have been best for the stride: over many of them a longer one is, as its noise averages out
MOST_CHANGE = 2.0  # of a rate at once
REACH = 64.0  # times the rate at the start, or its part


class Pace:
    """Rates by kind of group, as multiples of those that a run begins with. paced: the kinds whose rates change."""

    def __init__(self, kinds: Sequence[str], paced: Sequence[str]) -> None:
        self.factors, self._paced = dict.fromkeys(kinds, 1.0), paced
        self._slope, self._curvature, self._variance = (dict.fromkeys(kinds, 0.0) for _ in range(3))

    def learn(self, looks: np.ndarray, in_force: Mapping[str, float]) -> None:
        """Take in what was measured.

        looks: losses (nats) [devices, 1 + 2 * kinds], of each device where the parameters are, and further along and back with
        each kind. in_force: the factors during that stride, mean.
        """
        for place, kind in enumerate(self.factors):
            if kind not in self._paced or not in_force[kind]:
                continue
            further, back = looks[:, 1 + 2 * place], looks[:, 2 + 2 * place]
            curvature = further + back - 2 * looks[:, 0]
            slope, error = mean_and_error((further - back) / 2 - curvature)
            kept = MEMORY * np.array([self._slope[kind], self._curvature[kind], MEMORY * self._variance[kind]])
            fresh = [slope / in_force[kind], mean_and_error(curvature)[0] / in_force[kind] ** 2, (error / in_force[kind]) ** 2]
            self._slope[kind], self._curvature[kind], self._variance[kind] = kept + fresh
            self._adjust(kind)

    def slow(self, share: float) -> None:
        """Lower all rates, and forget what was measured: it was too hopeful."""
        for kind in self._paced:
            self.factors[kind] *= share
            self._slope[kind] = self._curvature[kind] = self._variance[kind] = 0.0

    def told(self) -> str:
        """The rates for a person."""
        return "rates " + ", ".join(f"{kind} x {factor:.2f}" for kind, factor in self.factors.items())

    def _adjust(self, kind: str) -> None:
        """Go towards the lowest point, where it is known to lie forward or back."""
        now, slope, curvature = self.factors[kind], self._slope[kind], self._curvature[kind]
        if abs(slope) < np.sqrt(self._variance[kind]):
            return
        best = 0.0 if slope >= 0 else -AHEAD * slope / curvature if curvature > 0 else np.inf
        self.factors[kind] = float(np.clip(best, max(now / MOST_CHANGE, 1 / REACH), min(now * MOST_CHANGE, REACH)))


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
