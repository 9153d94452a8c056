"""What the agent keeps on its disk: its name, where it stands in the ledger, a report that is under way, what was measured.

Everything here can be lost without harm: it is rebuilt from the bundle and the coordinator. So a file that is torn or
altered is set aside with a message, and a disk that cannot be written is told once and lived with.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from edge_agent.aside import aside
from edge_agent.flash import WriteBudget, cost
from zo import wire
from zo.checkpoint import Checkpoint
from zo.disk import Disk, replacement, sealed, unsealed
from zo.errors import StorageError
from zo.messages import Report

log = logging.getLogger(__name__)

T = TypeVar("T")

DEVICE_ID, POSITION, REPORT, STATUS, LOCK = "device_id", "position", "report", "status.json", "lock"
COMPARISON, MEMORY = "comparison", "memory"
TILES_HEAD = "tiles_head"
STATUSES = 4 * cost(0)  # bytes left for telling what the agent is doing, when that changes
ASIDE = 3  # files kept of each that is not to be trusted: a coordinator may bring about any number
ROOM = 128  # bytes of the line that every saved file begins with


class State:
    """The state folder of one agent. daily: bytes that may be written to it in a day, downloads not counted.

    StorageError where it cannot be made, or another agent works in it.
    """

    def __init__(self, folder: Path, daily: float, disk: Disk | None = None) -> None:
        self.folder, self._disk = folder, disk or Disk()
        self._told, self._too_large, self._held = False, False, -1
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        try:
            self.device_id = self._device_id()
        except StorageError:
            self.close()
            raise
        self.budget = WriteBudget(daily, *self._budget())

    def position(self) -> Checkpoint | None:
        """Where the agent stood when it last saved; None where that is not known."""
        return self._read(POSITION, wire.decoder(Checkpoint))

    def save_position(self, checkpoint: Checkpoint) -> bool:
        """Save where the agent stands, if the budget allows."""
        content = wire.encode(checkpoint)
        if cost(len(content) + ROOM) > self.budget.most > 0 and not self._too_large:
            log.warning("the position takes %.1f kB and is not saved; allow more with --disk-bytes-per-day", len(content) / 1e3)
            self._too_large = True
        return self._save(POSITION, content)

    def forget_position(self, why: str) -> None:
        """Set the position aside: it is not to be trusted."""
        self._set_aside(POSITION, why)

    def report(self) -> Report | None:
        """The report that was last made, perhaps not delivered; None where that is not known."""
        return self._read(REPORT, wire.decoder(Report))

    def save_report(self, report: Report, position_size: int) -> bool:
        """Save a report before it is sent, if the budget allows that and a position beside it."""
        return self._save(REPORT, wire.encode(report), reserve=cost(position_size) + STATUSES)

    def comparison(self) -> dict[str, Any]:
        """How the bases of a bundle compared on this device, as it was saved; empty where that is not known."""
        return self._read(COMPARISON, json.loads) or {}

    def save_comparison(self, found: dict[str, Any]) -> bool:
        """Save it, if the budget allows."""
        return self._save(COMPARISON, json.dumps(found).encode())

    def memory(self) -> dict[str, Any]:
        """What a bundle needs on this device, as it was measured; empty where that is not known."""
        return self._read(MEMORY, json.loads) or {}

    def save_memory(self, found: dict[str, Any]) -> bool:
        """Save it, if the budget allows."""
        return self._save(MEMORY, json.dumps(found).encode())

    def traffic(self) -> dict[str, float]:
        """The record of the network's bytes that the process before this one has left; empty where that is not known."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((self.folder / STATUS).read_text(encoding="utf-8"))["traffic"]
            return {name: float(record[name]) for name in ("left", "at", "spent")}
        return {}

    def tiles_head(self) -> bytes:
        """The signed head of the tiles that were followed last; empty where there is none."""
        try:
            return (self.folder / TILES_HEAD).read_bytes()
        except OSError:
            return b""

    def save_tiles_head(self, head: bytes) -> bool:
        """Keep it, so that no older one is followed later, nor one of another history."""
        return self.budget.take(len(head)) and self._try(lambda: self._disk.replace(self.folder / TILES_HEAD, head))

    def save_status(self, facts: dict[str, Any], reserve: float = 0.0) -> bool:
        """Write what a person may read, if the budget allows; a power cut may lose it."""
        text = json.dumps(facts | {"write_budget": self.budget.record()}) + "\n"
        if not self.budget.take(len(text), reserve):
            return False
        path = self.folder / STATUS
        temporary = replacement(path)

        def write() -> None:
            self._disk.write(temporary, text.encode())
            self._disk.rename(temporary, path)

        return self._try(write)

    def close(self) -> None:
        """Let another agent work in this folder."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _save(self, name: str, content: bytes, reserve: float = 0.0) -> bool:
        if not self.budget.take(len(content) + ROOM, reserve):
            return False
        record = json.dumps(self.budget.record()).encode() + b"\n"
        return self._try(lambda: self._disk.replace(self.folder / name, sealed(record + content)))

    def _try(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            if not self._told:
                log.warning(
                    "%s: %s; training goes on, but after a restart it begins again from the bundle: make room, or allow writing",
                    self.folder,
                    error.strerror,
                )
            self._told = True
            return False
        self._told = False
        return True

    def _read(self, name: str, decode: Callable[[bytes], T]) -> T | None:
        try:
            return decode(split(self.folder / name)[1])
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._set_aside(name, str(error))
            return None

    def _set_aside(self, name: str, why: str) -> None:
        path = self.folder / name
        if path.exists():
            kept = aside(path, ASIDE)
            log.warning("%s is not used (%s); it is kept as %s, and made again", path, why, kept.name)
            self._try(lambda: self._disk.rename(path, kept))

    def _lock(self) -> None:
        """Keep other agents out of this folder while the process lives."""
        try:
            self._held = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise StorageError(
                f"another agent works in {self.folder}; stop it, or give this one a folder of its own with --state"
            ) from None
        except OSError:
            pass  # a folder that cannot be written holds nothing that two agents could spoil

    def _budget(self) -> tuple[float | None, float, float]:
        """What the process before this one left of the write budget, as its newest file says; nothing where none can be read."""
        names = [name for name in (POSITION, REPORT, COMPARISON, MEMORY, STATUS) if (self.folder / name).exists()]
        if not names:
            return None, 0.0, 0.0
        found = []
        for name in names:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
                path = self.folder / name
                record = json.loads(path.read_text())["write_budget"] if name == STATUS else split(self.folder / name)[0]
                found.append((float(record["written"]), float(record["left"]), float(record["at"])))
        written, left, at = max(found, default=(0.0, 0.0, 0.0))
        return left, at, written

    def _device_id(self) -> int:
        """The random 64-bit name of this device, made on first use."""
        path = self.folder / DEVICE_ID
        try:
            if not path.exists():
                self._disk.replace(path, f"{secrets.randbits(64):016x}\n".encode())
            name = int(path.read_text(), 16)
            if not 0 <= name < 2**64:
                raise ValueError
            return name
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}; give a folder that can be written with --state") from None
        except ValueError:
            raise StorageError(f"{path} does not hold a device's name; remove it to join as a new device") from None


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """What the write budget was when a file was saved, and its content. OSError or ValueError where that cannot be read."""
    record, _, content = unsealed(path.read_bytes()).partition(b"\n")
    return json.loads(record), content
