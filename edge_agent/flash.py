"""Budgets by the day: flash wears out and metered lines cost, so what the agent writes, or sends and receives, has a bound."""

import math
import time
from collections.abc import Callable

BLOCK = 4096  # bytes; what a small file costs at least, and its folder's entry once more
DAY = 86400.0
LONGEST_AWAY = 30 * DAY  # seconds; a longer absence is rather a clock that was wrong


class DailyBudget:
    """Bytes that may be spent now; they come back with time, so that no 24 hours see more than `daily`.

    Half of `daily` may be saved up, the other half arrives over a day. left, at, spent: what an earlier process left; a clock
    that went backwards since, or was far off, gives nothing for the time between.
    """

    def __init__(
        self, daily: float, left: float | None = None, at: float = 0.0, spent: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self.spent, self._clock, self._seen = daily / 2, spent, clock, clock()
        passed = time.time() - at
        back = passed * self.most / DAY if 0 < passed < LONGEST_AWAY else 0.0
        self._left = self.most if left is None else min(self.most, max(-self.most, left) + back)

    @property
    def left(self) -> float:
        """Bytes that may be spent now; below 0 where more had to be than there were."""
        now = self._clock()
        self._left = min(self.most, self._left + (now - self._seen) * self.most / DAY)
        self._seen = now
        return self._left

    def spend(self, size: float) -> None:
        """Count bytes that are gone already."""
        self._left = self.left - size
        self.spent += size

    def record(self) -> dict[str, float]:
        """What to keep, so that the next process goes on with what this one leaves."""
        return {"left": int(self.left), "at": math.ceil(time.time()), "spent": self.spent}


class WriteBudget(DailyBudget):
    """Of the disk. left, at, written: the `record` of an earlier process."""

    def __init__(
        self, daily: float, left: float | None = None, at: float = 0.0, written: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(daily, None if left is None else max(0.0, left), at, written, clock)

    @property
    def written(self) -> float:
        """Bytes counted ever, which tells the newest record."""
        return self.spent

    def record(self) -> dict[str, float]:
        """What to keep, so that the next process goes on with what this one leaves."""
        record = super().record()
        return {"left": record["left"], "at": record["at"], "written": record["spent"]}

    def take(self, size: int, reserve: float = 0.0, always: bool = False) -> bool:
        """Whether a file of this size may be written, leaving `reserve`, or has to be; if so it is counted."""
        wanted = cost(size)
        if self.left - reserve < wanted and not always:
            return False
        self.spend(wanted)
        return True


def cost(size: int) -> int:
    """Bytes that flash sees when a file of this size is replaced: whole blocks, and one for the folder."""
    return -(-size // BLOCK) * BLOCK + BLOCK
