"""The interface of every policy, and what several share: a switch that does not flutter, and readings that are not taken too often."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Objection:
    """Why the agent should not go on as it does. rest: it must pause; else it goes on with less, as the reason says."""

    reason: str
    rest: bool = True


class Policy(Protocol):
    """One thing that the owner of the device minds."""

    def objection(self) -> Objection | None:
        """What speaks against working now; None where nothing does. Cheap: asked several times a second."""


class Switch:
    """On from `high`, off again below `low`: a value near one line does not make it flutter."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high, self.on = low, high, False

    def __call__(self, value: float) -> bool:
        """Whether it is on, after this value."""
        self.on = value >= (self._low if self.on else self._high)
        return self.on


def seldom(read: Callable[[], T], seconds: float, clock: Callable[[], float] = time.monotonic) -> Callable[[], T]:
    """The same reading, taken again only where the last is `seconds` old."""
    kept: list[tuple[float, T]] = []

    def reading() -> T:
        if not kept or clock() - kept[0][0] >= seconds:
            kept[:] = [(clock(), read())]
        return kept[0][1]

    return reading
