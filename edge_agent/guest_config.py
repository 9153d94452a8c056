"""What the owner allows the agent to take: memory, processor, heat, power, time, network. All tables of agent.toml."""

import math
from dataclasses import dataclass

from edge_agent.windows import parse as parse_window
from zo.config import setting
from zo.memory import units


@dataclass(frozen=True)
class Memory:
    """How much memory."""

    budget: str = setting("most memory, as 800MB, 1GiB or 25% of the machine's; the limit of a cgroup counts where it is less", "50%")
    soft: float = setting("share of the budget from which runs are made smaller", 0.85)
    leave: str = setting("memory of the machine that stays free for others", "5%")
    pressure: float = setting("per cent of time that others stall for memory (PSI) from which runs are made smaller", 10.0)

    def __post_init__(self) -> None:
        for text in (self.budget, self.leave):
            units.parse(text, 1.0)
        if not 0 < self.soft < 1 or self.pressure <= 0:
            raise ValueError(f"soft = {self.soft} must be between 0 and 1, pressure = {self.pressure} above 0")


@dataclass(frozen=True)
class Cpu:
    """How much of the processor."""

    share: float = setting("share of the time that it works; it rests for the other part, between runs of the model", 1.0)
    niceness: int = setting("0 to 19: the higher, the more it gives way to other processes", 10)
    others: float = setting("pause while others use more than this share of the processor; 1 never pauses", 1.0)

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and 0 < self.others <= 1 and 0 <= self.niceness <= 19):
            raise ValueError("share and others must be above 0 and at most 1, niceness 0 to 19")


@dataclass(frozen=True)
class Heat:
    """How warm."""

    pause: float = setting("degrees Celsius of the hottest sensor at which it pauses", 80.0)
    resume: float = setting("degrees below which it goes on", 70.0)
    throttled: bool = setting("pause while a Raspberry Pi says that it is throttled or short of voltage", True)

    def __post_init__(self) -> None:
        if not self.resume < self.pause < math.inf:
            raise ValueError(f"resume = {self.resume} must be below pause = {self.pause}")


@dataclass(frozen=True)
class Power:
    """Which power."""

    battery: float = setting("per cent of the battery below which it pauses while not on mains; 100: mains only", 50.0)

    def __post_init__(self) -> None:
        if not 0 <= self.battery <= 100:
            raise ValueError(f"battery = {self.battery} must be from 0 to 100")


@dataclass(frozen=True)
class Network:
    """How much network."""

    bytes_per_day: float = setting("most bytes sent and received in 24 hours, for a metered line; 0: not metered", 0.0)

    def __post_init__(self) -> None:
        if not 0 <= self.bytes_per_day < math.inf:
            raise ValueError(f"bytes_per_day = {self.bytes_per_day} must be finite, and not negative")


WINDOWS = 'when it may work, by the local clock, as ["22:00-06:00", "sat-sun 00:00-24:00"]; always where there are none'


def check_windows(windows: tuple[str, ...]) -> None:
    """ValueError where one of them cannot be read."""
    for each in windows:
        parse_window(each)
