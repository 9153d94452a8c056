"""What the machine says of itself: heat, throttling, battery, and what others do. Each is None where there is no such sensor."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SYS = Path("/sys")
THROTTLED = "devices/platform/soc/soc:firmware/get_throttled"
FLAGS = {0: "too little voltage", 1: "clock capped", 2: "throttled", 3: "soft limit of temperature"}  # bits of now; above: since boot


@dataclass(frozen=True)
class Battery:
    """per cent: left. mains: plugged in."""

    percent: float
    mains: bool


@dataclass(frozen=True)
class Throttle:
    """The bits of a Raspberry Pi's firmware that tell of now; false where none is set."""

    bits: int

    def __bool__(self) -> bool:
        return any(self.bits >> place & 1 for place in FLAGS)

    @property
    def told(self) -> str:
        """For a person."""
        return ", ".join(name for place, name in FLAGS.items() if self.bits >> place & 1)


def hottest(sys: Path = SYS) -> float | None:
    """Degrees Celsius: psutil's sensors, and the thermal zones of which Jetsons have many."""
    found = [reading.current for sensor in _temperatures().values() for reading in sensor] if sys == SYS else []
    for zone in sys.glob("class/thermal/thermal_zone*/temp"):
        with contextlib.suppress(OSError, ValueError):  # a zone that is switched off cannot be read
            found.append(int(zone.read_text()) / 1000)
    found = [degrees for degrees in found if -40 < degrees < 200]  # else a sensor that is not connected
    return max(found, default=None)


def throttle(sys: Path = SYS) -> Throttle | None:
    """Of a Raspberry Pi: from sysfs or, on newer kernels, from vcgencmd."""
    with contextlib.suppress(OSError, ValueError):
        return Throttle(int((sys / THROTTLED).read_text(), 16))
    if sys == SYS and shutil.which("vcgencmd"):
        with contextlib.suppress(OSError, ValueError, IndexError, subprocess.TimeoutExpired):
            told = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=1).stdout
            return Throttle(int(told.split("=")[1], 16))
    return None


def battery() -> Battery | None:
    """Of a laptop or a board with one."""
    found = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return Battery(found.percent, bool(found.power_plugged)) if found else None


def others(clock: Callable[[], float] = time.monotonic) -> Callable[[], float]:
    """Reads the share of the whole processor that other processes used since the last call."""
    mine = psutil.Process()
    last = [(_busy(), sum(mine.cpu_times()[:2]), clock())]

    def share() -> float:
        (busy, own, then), now = last[0], (_busy(), sum(mine.cpu_times()[:2]), clock())
        last[0] = now
        passed = (now[2] - then) * (psutil.cpu_count() or 1)
        return max(0.0, (now[0] - busy) - (now[1] - own)) / passed if passed > 0 else 0.0

    return share


def _busy() -> float:
    """Seconds that all processors have worked."""
    times = psutil.cpu_times()
    return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))


def _temperatures() -> dict[str, Any]:
    return psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
