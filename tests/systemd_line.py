"""The line by which systemd hears of its services."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    """The end that systemd listens at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(folder / "notify"))
        line.settimeout(20)
        yield line


def heard(line: socket.socket) -> list[str]:
    """All that is waiting there."""
    found, before = [], line.gettimeout()
    line.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(line.recv(4096).decode())
    line.settimeout(before)
    return found


def environment(line: socket.socket, **more: str) -> dict[str, str]:
    """What a service is started with. WATCHDOG_USEC: microseconds in which it has to get on."""
    return {"NOTIFY_SOCKET": line.getsockname()} | more
