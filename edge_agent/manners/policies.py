"""Heat, throttling, power, other people's work, time of the week, network and disk: one class each. What they read is injected."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from edge_agent.flash import DailyBudget
from edge_agent.manners.policy import Objection, Switch
from edge_agent.sensors import Battery, Throttle
from edge_agent.windows import Window

CALM = 30.0  # seconds for which a board must be at its full speed, or its owner idle, before work goes on
CHARGED = 5.0  # per cent above the line at which a battery is left alone again


class Heat:
    """The hottest sensor. pause, resume: degrees Celsius. read: None where there is no sensor."""

    def __init__(self, read: Callable[[], float | None], pause: float, resume: float) -> None:
        self._read, self._hot, self._resume = read, Switch(resume, pause), resume

    def objection(self) -> Objection | None:
        """Until it has cooled down."""
        degrees = self._read()
        if degrees is None or not self._hot(degrees):
            return None
        return Objection(f"it is hot: {degrees:.0f} °C; going on below {self._resume:.0f} °C")


class Throttling:
    """What a Raspberry Pi says of its voltage and clock."""

    def __init__(self, read: Callable[[], Throttle | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock, self._until, self._last = read, clock, float("-inf"), ""

    def objection(self) -> Objection | None:
        """Until it has run at its full speed for a while."""
        flags = self._read()
        if flags:
            self._until, self._last = self._clock() + CALM, flags.told
        return Objection(f"the board is held back: {self._last}") if self._clock() < self._until else None


class Power:
    """A battery that is not being charged. least: per cent; 100 asks for mains."""

    def __init__(self, read: Callable[[], Battery | None], least: float) -> None:
        self._read, self._least, self._low = read, least, Switch(-least - CHARGED, -least)

    def objection(self) -> Objection | None:
        """While the battery is low, or mains are asked for."""
        battery = self._read()
        if battery is None or battery.mains:
            self._low.on = False
            return None
        if self._least >= 100:
            return Objection("on battery; waiting for mains")
        if self._least > 0 and self._low(-battery.percent):
            return Objection(f"on battery, {battery.percent:.0f} % left; going on at mains, or above {self._least + CHARGED:.0f} %")
        return None


class Others:
    """Processes that are not ours. read: share of the whole processor that they use."""

    def __init__(self, read: Callable[[], float], most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._most, self._clock, self._until = read, most, clock, float("-inf")

    def objection(self) -> Objection | None:
        """Until the system has been idle for a while."""
        share = self._read()
        if share > self._most:
            self._until = self._clock() + CALM
        return Objection(f"others need the processor ({share:.0%} of it)") if self._clock() < self._until else None


class Hours:
    """Times of the week at which it may work; always where there are none."""

    def __init__(self, windows: Sequence[Window], now: Callable[[], datetime] = datetime.now) -> None:
        self._windows, self._now = windows, now

    def objection(self) -> Objection | None:
        """Outside of them."""
        now = self._now()
        if not self._windows or any(window.open(now) for window in self._windows):
            return None
        return Objection(f"{now:%a %H:%M} is outside the hours allowed")


class Traffic:
    """Bytes of a metered line."""

    def __init__(self, budget: DailyBudget) -> None:
        self._budget, self._spent = budget, Switch(-budget.most / 10, 0.0)

    def objection(self) -> Objection | None:
        """Once they are spent, until a tenth of them is back."""
        if not self._spent(-self._budget.left):
            return None
        return Objection(f"the bytes of the network are spent ({self._budget.spent / 1e6:.1f} MB so far); they come back with time")


class Flash:
    """Bytes that may be written to the disk. needed: what must be left for the next file."""

    def __init__(self, budget: DailyBudget, needed: Callable[[], float]) -> None:
        self._budget, self._needed = budget, needed

    def objection(self) -> Objection | None:
        """While nothing can be saved: no reason to pause, since what is not saved is fetched again."""
        if self._budget.left >= self._needed():
            return None
        return Objection("the bytes of the disk are spent; nothing is saved until some are back", rest=False)
