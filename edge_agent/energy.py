"""Joules of a stretch of work: from a counter, a power sensor, or a published model of the board. Which one is always said with them."""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from edge_agent.sensors import SYS
from zo.messages import EnergySource

COUNTER = "class/powercap/intel-rapl:*/energy_uj"  # of whole processors; others' work is in it
RAILS = "bus/i2c/drivers/ina3221*/*/hwmon/hwmon*"  # of Jetsons: rail 1 is the whole board
BATTERY = "class/power_supply/BAT*/power_now"
BOARD = "firmware/devicetree/base/model"

# Watts that one busy core adds: (all cores busy - idle) / 4, as pidramble.com measured the boards (docs/memory.md).
WATTS_A_CORE = {"Raspberry Pi 4": 0.93, "Raspberry Pi 3 Model B Plus": 0.8, "Raspberry Pi 3": 0.58}


class Meter(Protocol):
    """Tells what a stretch of work took."""

    source: EnergySource

    def begin(self) -> None:
        """The stretch begins here."""

    def joules(self) -> float:
        """Since then."""


class Counter:
    """Counters in microjoules that begin at 0 again at some value."""

    source: EnergySource = "rapl"

    def __init__(self, files: list[Path]) -> None:
        self._files, self._wraps = files, [_number(path.with_name("max_energy_range_uj")) or 0.0 for path in files]
        self.begin()

    def begin(self) -> None:
        """The stretch begins here."""
        self._before = [_number(path) or 0.0 for path in self._files]

    def joules(self) -> float:
        """Since then."""
        passed = [(_number(path) or before) - before for path, before in zip(self._files, self._before, strict=True)]
        return sum(each if each >= 0 else each + wrap for each, wrap in zip(passed, self._wraps, strict=True)) / 1e6


class PowerSensor:
    """Watts of the whole board now; the mean of both ends of a stretch is taken for all of it."""

    def __init__(self, source: EnergySource, watts: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self.source, self._watts, self._clock = source, watts, clock
        self.begin()

    def begin(self) -> None:
        """The stretch begins here."""
        self._before = (self._clock(), self._watts())

    def joules(self) -> float:
        """Since then."""
        then, watts = self._before
        return (self._clock() - then) * (watts + self._watts()) / 2


class BoardModel:
    """Watts a busy core, times the CPU seconds of this process."""

    source: EnergySource = "model"

    def __init__(self, watts_a_core: float, cpu_seconds: Callable[[], float] = time.process_time) -> None:
        self._watts, self._cpu = watts_a_core, cpu_seconds
        self.begin()

    def begin(self) -> None:
        """The stretch begins here."""
        self._before = self._cpu()

    def joules(self) -> float:
        """Since then."""
        return self._watts * (self._cpu() - self._before)


def meter(sys: Path = SYS) -> Meter | None:
    """The best there is on this machine; None where nothing says what it draws."""
    counters = [path for path in sorted(sys.glob(COUNTER)) if _number(path) is not None and path.parent.name.count(":") == 1]
    if counters:
        return Counter(counters)
    for rail in sorted(sys.glob(RAILS)):
        millivolts, milliamperes = rail / "in1_input", rail / "curr1_input"
        if _number(millivolts) is not None and _number(milliamperes) is not None:
            return PowerSensor("ina3221", partial(_product, millivolts, milliamperes, 1e-6))
    for battery in sorted(sys.glob(BATTERY)):
        if _number(battery) is not None:
            return PowerSensor("battery", lambda path=battery: abs(_number(path) or 0.0) / 1e6)  # type: ignore[misc]
    with contextlib.suppress(OSError):
        board = (sys / BOARD).read_text(encoding="ascii", errors="replace")
        for name, watts in WATTS_A_CORE.items():
            if board.startswith(name):
                return BoardModel(watts)
    return None


def _product(one: Path, other: Path, unit: float) -> float:
    return (_number(one) or 0.0) * (_number(other) or 0.0) * unit


def _number(path: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return float(path.read_text())
    return None
