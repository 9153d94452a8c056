"""A memory cgroup of its own for a benchmark, of whichever version this machine has; needs root."""

import contextlib
import os
import time
from pathlib import Path

from zo.errors import ConfigError

ROOT = Path("/sys/fs/cgroup")
NAME = f"edge-zo-{os.getpid()}"


class MemoryGroup:
    """A cgroup with a limit in bytes, while entered. ConfigError where none can be made."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.version = 1 if (ROOT / "memory/memory.limit_in_bytes").exists() else 2
        self.folder = (ROOT / "memory" if self.version == 1 else ROOT) / NAME

    def __enter__(self) -> "MemoryGroup":
        try:
            if self.version == 2:
                (ROOT / "cgroup.subtree_control").write_text("+memory")
            self.folder.mkdir()
            self._write("memory.limit_in_bytes" if self.version == 1 else "memory.max", self._limit)
            with contextlib.suppress(OSError):  # where the kernel counts no swap
                self._write(
                    "memory.memsw.limit_in_bytes" if self.version == 1 else "memory.swap.max", self._limit if self.version == 1 else 0
                )
        except OSError as error:
            raise ConfigError(
                f"no memory cgroup can be made below {ROOT} ({error.strerror}); run it as root, outside of a container"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        for _try in range(50):  # the last process may still be on its way out
            try:
                return self.folder.rmdir()
            except OSError:
                time.sleep(0.1)

    def command(self, *words: str) -> list[str]:
        """The same command, run inside."""
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.folder), *words]

    @property
    def used(self) -> int:
        """Bytes charged to it."""
        return int((self.folder / ("memory.usage_in_bytes" if self.version == 1 else "memory.current")).read_text())

    @property
    def oom_kills(self) -> int:
        """Processes that the kernel killed in it, so far."""
        lines = (self.folder / ("memory.oom_control" if self.version == 1 else "memory.events")).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == "oom_kill")

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))
