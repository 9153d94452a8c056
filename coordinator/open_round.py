"""The round that is open: the reports that it has so far, and whether it is due (DESIGN section 7)."""

from collections.abc import Callable

from coordinator.config import Round
from zo.messages import Report


class OpenRound:
    """reports: by device. diverged: devices that hold other parameters. limits: goal, minimum and deadline. clock: gives seconds."""

    def __init__(self, number: int, limits: Round, clock: Callable[[], float]) -> None:
        self.number, self.reports, self.diverged = number, dict[int, Report](), set[int]()
        self._limits, self._clock, self._opened = limits, clock, clock()

    @property
    def waited(self) -> float:
        """Seconds that it has been open."""
        return self._clock() - self._opened

    @property
    def due(self) -> bool:
        """Whether its goal, or its deadline with its minimum, is reached."""
        limits, count = self._limits, len(self.reports)
        return count >= limits.goal or (count >= limits.minimum and self.waited >= limits.deadline)

    @property
    def overdue(self) -> bool:
        """Whether it is past its deadline, and still lacks reports."""
        return len(self.reports) < self._limits.minimum and self.waited > self._limits.deadline

    @property
    def lacks(self) -> str:
        """In words, what it still needs."""
        limits, count = self._limits, len(self.reports)
        left = limits.deadline - self.waited
        if left > 0:
            return f"round {self.number} has {count} of {limits.goal} reports; {limits.minimum} are enough in {left:.0f} s"
        return f"round {self.number} has {count} reports and needs {limits.minimum}; its deadline has passed"
