"""Differential privacy of what a device reports (DP-ZO, arXiv 2401.04343 and 2310.09639): clipped, with Gaussian noise, and accounted for.

The half differences of a report are one vector; it is cut to a length of `clip`, and noise of `noise * clip` is added to each of them.
Whatever the device's examples are, all of them, the vector stays in a ball of that radius, so any two data sets are 2 * clip apart: a
report satisfies rho-zCDP with rho = 2 / noise**2 (Bun and Steinke, arXiv 1605.02065), for the device's whole data, and rho adds up.
What this does not cover: when the device is online, and which round it takes part in.
"""

import json
import logging
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_agent.config import Privacy
from zo.disk import Disk, sealed, unsealed
from zo.errors import PrivacySpent, StorageError
from zo.estimators import Grid
from zo.messages import Report, Spent
from zo.plan import WorkPlan

log = logging.getLogger(__name__)

NAME = "privacy"
ORDERS = 1 + np.logspace(-4, 6, 4001)  # of Renyi divergence, among which the best is looked for

_random = random.SystemRandom()  # from the system: noise must not be guessed


class Guard:
    """What stands between a device's scalars and the network: noise, and a budget over the life of the state folder."""

    def __init__(self, settings: Privacy, state: Path, disk: Disk | None = None) -> None:
        self.settings, self._path, self._disk = settings, state / NAME, disk or Disk()
        self.rho = self._read()
        if self.rho and not settings.noise:
            log.warning("this device has reported with noise before (%s), and does now without: give dp.noise to go on as then", self._path)

    @property
    def epsilon(self) -> float:
        """What the reports with noise have spent, at the delta of the settings; those sent without are not protected by these."""
        return epsilon(self.rho, self.settings.delta)

    def check(self) -> None:
        """PrivacySpent where one more report would go beyond the budget."""
        settings = self.settings
        if not settings.epsilon or epsilon(self.rho + cost(settings.noise), settings.delta) <= settings.epsilon:
            return
        one = epsilon(cost(settings.noise), settings.delta)
        if one > settings.epsilon:
            raise PrivacySpent(
                f"a single report with dp.noise = {settings.noise} costs epsilon {one:.3f} at delta {settings.delta}, more than"
                f" dp.epsilon = {settings.epsilon}; nothing was reported: give more noise, or allow more"
            )
        raise PrivacySpent(
            f"the privacy budget is spent: epsilon {self.epsilon:.3f} of dp.epsilon = {settings.epsilon} at delta {settings.delta};"
            " this device reports nothing more, unless its owner allows more"
        )

    def guarded(self, report: Report, plan: WorkPlan) -> Report:
        """The report as it may leave: it is charged for first, durably. Nothing but its scalars then depends on the examples."""
        settings = self.settings
        if not settings.clip:
            return report
        self.check()
        if settings.noise:
            self.rho += cost(settings.noise)
            self._write()
        return replace(
            report,
            scalars=noisy(report.scalars, settings, plan.grid),
            examples=plan.examples,
            dropped=0,
            held_out=(),
            spent=Spent(),
        )

    def _read(self) -> float:
        try:
            rho = float(json.loads(unsealed(self._path.read_bytes()))["rho"])
            if not 0 <= rho < math.inf:
                raise ValueError
            return rho
        except FileNotFoundError:
            return 0.0
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}; check who owns it") from None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise StorageError(
                f"{self._path} is damaged, so it is not known what this device has spent of its privacy budget; remove it only if you"
                " accept that counting begins anew"
            ) from None

    def _write(self) -> None:
        try:
            self._disk.replace(self._path, sealed(json.dumps({"rho": self.rho}).encode()))
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}; nothing is reported that cannot be accounted for: make room") from None


def noisy(scalars: np.ndarray, settings: Privacy, grid: Grid) -> np.ndarray:
    """Integers on the grid [directions], cut to a length of `clip` nats, with noise, on the grid again and within its limit."""
    clip = math.ldexp(settings.clip, grid.log2_levels)
    length = float(np.linalg.norm(scalars.astype(np.float64)))
    cut = scalars * min(1.0, clip / length) if length else scalars.astype(np.float64)
    noise = np.array([_random.gauss(0.0, settings.noise * clip) for _ in range(scalars.size)])
    return np.clip(np.rint(cut + noise), -grid.limit, grid.limit).astype(np.int64)


def cost(noise: float) -> float:
    """rho of one report with that noise."""
    return 2 / noise**2


def epsilon(rho: float, delta: float) -> float:
    """Of (epsilon, delta)-differential privacy, from rho-zCDP: the least over orders of Renyi divergence.

    Canonne, Kamath and Steinke, arXiv 2004.00010, proposition 12.
    """
    if rho == 0:
        return 0.0
    a = ORDERS
    found = rho * a + (math.log(1 / delta) + (a - 1) * np.log1p(-1 / a) - np.log(a)) / (a - 1)
    return max(0.0, float(found.min()))
