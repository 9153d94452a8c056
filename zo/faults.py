"""Faults for tests and benchmarks: a disk on which processes die at chosen instants, and that knows what a power cut would leave."""

import os
import shutil
import signal
import subprocess
from collections.abc import Set
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from zo.disk import Disk


class Fault(Enum):
    """An instant of a durable write. In a commit: of an entry, as against a report."""

    BEFORE_WRITE = "before-write"
    HALF_WRITTEN = "half-written"
    BEFORE_SYNC = "before-sync"
    AFTER_SYNC = "after-sync"
    BEFORE_RENAME = "before-rename"
    AFTER_RENAME = "after-rename"


@dataclass
class Death:
    """Die by SIGKILL the `countdown`-th time that `fault` comes by. in_commit: count only those inside the commit of an entry."""

    fault: Fault
    countdown: int = 1
    in_commit: bool = False

    @classmethod
    def parsed(cls, text: str) -> "Death":
        """From `str(death)`."""
        fault, countdown, in_commit = text.split(":")
        return cls(Fault(fault), int(countdown), in_commit == "commit")

    def __str__(self) -> str:
        return f"{self.fault.value}:{self.countdown}:{'commit' if self.in_commit else 'any'}"


class FaultyDisk(Disk):
    """A disk that keeps, beside the folder it serves, a copy of what is synced: all that a power cut would leave.

    The copy is `<folder>.synced/current`. An SQLite file counts as synced together with its log.
    """

    def __init__(self, folder: Path, death: Death | None = None) -> None:
        self.folder, self._death, self.in_commit = folder, death, False
        self._copies = synced(folder).parent
        self._copies.mkdir(parents=True, exist_ok=True)
        self._renamed: list[tuple[str, str]] = []

    def write(self, path: Path, content: bytes) -> None:
        self.pass_by(Fault.BEFORE_WRITE)
        super().write(path, content[: len(content) // 2])
        self.pass_by(Fault.HALF_WRITTEN)
        super().write(path, content)

    def sync(self, path: Path) -> None:
        self.pass_by(Fault.BEFORE_SYNC)
        super().sync(path)
        self._keep({path.name: path})
        self.pass_by(Fault.AFTER_SYNC)

    def rename(self, old: Path, new: Path) -> None:
        self.pass_by(Fault.BEFORE_RENAME)
        super().rename(old, new)
        self._renamed.append((old.name, new.name))
        self.pass_by(Fault.AFTER_RENAME)

    def sync_folder(self, folder: Path) -> None:
        self.pass_by(Fault.BEFORE_SYNC)
        super().sync_folder(folder)
        if folder.absolute() == self.folder.absolute():
            self._keep({new: synced(self.folder) / old for old, new in self._renamed}, gone={old for old, _ in self._renamed})
            self._renamed.clear()
        self.pass_by(Fault.AFTER_SYNC)

    def pass_by(self, fault: Fault) -> None:
        """Die here, if it is time to."""
        death = self._death
        if death and death.fault is fault and (self.in_commit or not death.in_commit):
            death.countdown -= 1
            if death.countdown <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def _keep(self, changed: dict[str, Path], gone: Set[str] = frozenset()) -> None:
        """A new copy of the folder, put in place in one instant: these files anew, the others, but for `gone`, as they were."""
        current = synced(self.folder)
        number = int(current.resolve().name) + 1 if current.exists() else 1
        fresh = self._copies / str(number)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        for name, source in changed.items():
            if source.exists():
                shutil.copyfile(source, fresh / name)
            if name.endswith("-wal"):
                _copy_database(source.with_name(name[:-4]), fresh, current)
        for path in current.iterdir() if current.exists() else ():
            if path.name not in gone and not (fresh / path.name).exists():
                os.link(path, fresh / path.name)
        pointer = self._copies / "next"
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(fresh.name)
        pointer.replace(current)
        shutil.rmtree(self._copies / str(number - 1), ignore_errors=True)


def _copy_database(source: Path, fresh: Path, current: Path) -> None:
    """The file behind a log, if it has changed; by another process, since closing it here would drop SQLite's locks on it."""
    before, now = current / source.name, source.stat()
    if before.exists() and (before.stat().st_mtime_ns, before.stat().st_size) == (now.st_mtime_ns, now.st_size):
        return
    subprocess.run(["cp", "--preserve=timestamps", source, fresh], check=True)


def synced(folder: Path) -> Path:
    """Where the copy is of what is synced in a folder."""
    return folder.with_name(folder.name + ".synced") / "current"


def cut_power(folder: Path, *, keep: set[str]) -> None:
    """Leave in a folder, whose process is dead, what a power cut would: the synced files, and those in `keep`."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in keep and path.is_file():
            path.unlink()
    for path in synced(folder).iterdir() if synced(folder).exists() else ():
        shutil.copyfile(path, folder / path.name)
