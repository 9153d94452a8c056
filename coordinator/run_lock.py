"""What keeps a second coordinator away from a run that is being served: of two, each would drop reports that the other has taken."""

import fcntl
import os
from pathlib import Path

from zo.errors import StorageError


class RunLock:
    """Held until it is closed, or the process ends. run: its number in the store. StorageError where another process holds it."""

    def __init__(self, store: Path, run: int, name: str) -> None:
        path = store.with_name(f"{store.name}.run-{run}.lock")
        try:
            self._file = path.open("a+")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read(20).strip()
            self.close()
            raise StorageError(
                f"run {name!r} is served by another coordinator{f' (process {holder})' if holder.isdigit() else ''}; stop it first"
            ) from None
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}; check disk space and permissions") from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def close(self) -> None:
        """Let another serve it."""
        self._file.close()
