"""How near memory is to its end: of the process, of its cgroups (v1 and v2), of the machine, and stalls for it (PSI)."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_agent.guest_config import Memory
from zo.errors import ConfigError
from zo.memory import process, units

ROOT, PROC = Path("/sys/fs/cgroup"), Path("/proc")
UNLIMITED = 1 << 60  # bytes; cgroup v1 states a number like this where there is no limit
RESERVE = 0.04  # of a cgroup's limit, and RESERVE_LEAST, that are never to be touched: the kernel kills at the limit
RESERVE_LEAST = 8 << 20
OWN = "resident"  # name of the line that nobody but this process can fall below


@dataclass(frozen=True)
class Line:
    """A use of memory against its two lines. Unit: bytes, or per cent of time for stalls."""

    name: str
    used: float
    soft: float
    hard: float

    @property
    def told(self) -> str:
        """For a person."""
        stalls = self.name.startswith("stalls")
        used, hard = (f"{each:.0f} %" if stalls else units.told(each) for each in (self.used, self.hard))
        return f"{self.name}: {used} of {hard}"


@dataclass(frozen=True)
class Cgroup:
    """A cgroup with a limit: its folder, and the files of its version."""

    folder: Path
    limit: int
    usage: str
    idle: str

    def used(self) -> int:
        """Bytes charged to it, without file pages that nobody has touched lately: the kernel takes those back by itself."""
        used, reclaimable = int((self.folder / self.usage).read_text()), 0
        for line in (self.folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key in (self.idle, self.idle.replace("inactive", "active")):
                reclaimable += int(value)
        return max(0, used - reclaimable)


def groups(root: Path = ROOT, proc: Path = PROC) -> list[Cgroup]:
    """The limited memory cgroups that this process is in, innermost first; of both versions, since a machine may mix them."""
    found = []
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            names, mount = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), root / "memory"
        elif not controllers:
            names, mount = ("memory.max", "memory.current", "inactive_file"), root / "unified" if (root / "unified").is_dir() else root
        else:
            continue
        folder = mount / path.strip("/")
        if not folder.is_dir():
            folder = mount  # in a container the path is the host's
        while True:
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                limit = int((folder / names[0]).read_text())
                if limit < UNLIMITED:
                    found.append(Cgroup(folder, limit, names[1], names[2]))
            if folder == mount or mount not in folder.parents:
                break
            folder = folder.parent
    return found


def budget(settings: Memory, total: int | None = None, among: Sequence[Cgroup] | None = None) -> float:
    """Bytes that the process may hold: the least of what the settings say, the cgroups' limits, and the machine less what is left free.

    ConfigError where all of the machine is to be left free.
    """
    total = psutil.virtual_memory().total if total is None else total
    limits = [_usable(group.limit) for group in (groups() if among is None else among)]
    return min(units.parse(settings.budget, total), _rest(settings, total), *limits)


def gauges(settings: Memory, proc: Path = PROC, among: Sequence[Cgroup] | None = None) -> list[Callable[[], Line | None]]:
    """What to look at, each on its own; None where it cannot be read."""
    among = groups() if among is None else among
    own, soft = budget(settings, among=among), settings.soft

    def mine() -> Line:
        return Line(OWN, process.resident(), soft * own, own)

    def machine() -> Line:
        memory = psutil.virtual_memory()
        hard = _rest(settings, memory.total)
        return Line("the machine", memory.total - memory.available, hard - (1 - soft) * min(own, hard), hard)

    def of_group(group: Cgroup) -> Callable[[], Line | None]:
        hard = _usable(group.limit)

        def line() -> Line | None:
            with contextlib.suppress(OSError, ValueError):
                return Line(f"cgroup {group.folder.name or 'root'}", group.used(), soft * hard, hard)
            return None

        return line

    def stalls() -> Line | None:
        for text in _lines(proc / "pressure/memory"):
            if text.startswith("some"):
                return Line("stalls for memory", float(text.split()[1].split("=")[1]), settings.pressure, 4 * settings.pressure)
        return None

    return [mine, machine, stalls, *map(of_group, among)]


def _rest(settings: Memory, total: int) -> float:
    """Bytes of the machine that need not stay free."""
    rest = total - units.parse(settings.leave, total)
    if rest <= 0:
        raise ConfigError(f"memory.leave = {settings.leave!r} leaves nothing of the {units.told(total)} of this machine; leave less free")
    return rest


def _usable(limit: int) -> float:
    return limit - max(RESERVE * limit, RESERVE_LEAST)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
