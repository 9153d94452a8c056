"""Disks to put under a store: one that knows what a power cut would leave, one that cannot sync, one that lies."""

import errno
import shutil
from pathlib import Path

from coordinator.sqlite_store import SqliteStore
from zo.disk import Disk


class PowerCut(Disk):
    """Remembers the log as it was last synced: all that a power cut is sure to leave of it."""

    def __init__(self) -> None:
        self.kept: dict[Path, bytes] = {}
        self.folders: list[Path] = []
        self.syncs = 0

    def sync(self, path: Path) -> None:
        content = path.read_bytes()
        super().sync(path)
        self.kept[path] = content
        self.syncs += 1

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self.folders.append(folder)

    def left(self, path: Path, folder: Path) -> SqliteStore:
        """The store at `path` as it is found after a power cut now; `folder` takes the copy."""
        folder.mkdir()
        shutil.copyfile(path, folder / path.name)
        log = path.with_name(path.name + "-wal")
        (folder / log.name).write_bytes(self.kept.get(log, b""))
        return SqliteStore(folder / path.name, create=True)


class FailingSync(Disk):
    """Cannot sync while `failing`."""

    failing = False

    def sync(self, path: Path) -> None:
        if self.failing:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(path)


class NoSync(Disk):
    """Has not synced yet what others see already."""

    def sync(self, path: Path) -> None:
        pass
