"""The write budget: flash wears out, so what the agent writes in a day has a bound."""

import math
import time
from collections.abc import Callable

BLOCK = 4096  # bytes; what a small file costs at least, and its folder's entry once more
DAY = 86400.0
LONGEST_AWAY = 30 * DAY  # seconds; a longer absence is rather a clock that was wrong


class WriteBudget:
    """Bytes that may be written now; they come back with time, so that no 24 hours see more than `daily`.

    Half of `daily` may be saved up, the other half arrives over a day. left, at, written: the `record` of an earlier
    process; a clock that went backwards since, or was far off, gives nothing for the time between.
    """

    def __init__(
        self, daily: float, left: float | None = None, at: float = 0.0, written: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self.written, self._clock, self._seen = daily / 2, written, clock, clock()
        passed = time.time() - at
        back = passed * self.most / DAY if 0 < passed < LONGEST_AWAY else 0.0
        self._left = self.most if left is None else min(self.most, max(0.0, left) + back)

    @property
    def left(self) -> float:
        """Bytes that may be written now."""
        now = self._clock()
        self._left = min(self.most, self._left + (now - self._seen) * self.most / DAY)
        self._seen = now
        return self._left

    def record(self) -> dict[str, float]:
        """What to keep, so that the next process goes on with what this one leaves. written: bytes counted ever, which tells the newest."""
        return {"left": int(self.left), "at": math.ceil(time.time()), "written": self.written}

    def take(self, size: int, reserve: float = 0.0) -> bool:
        """Whether a file of this size may be written, leaving `reserve`; if so it is counted."""
        wanted = cost(size)
        if self.left - reserve < wanted:
            return False
        self._left -= wanted
        self.written += wanted
        return True


def cost(size: int) -> int:
    """Bytes that flash sees when a file of this size is replaced: whole blocks, and one for the folder."""
    return -(-size // BLOCK) * BLOCK + BLOCK
