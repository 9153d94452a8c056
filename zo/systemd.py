"""What systemd is told by its services (sd_notify(3), by datagrams): that they are ready, get on, and what they are doing."""

import contextlib
import faulthandler
import os
import socket
import time
from collections.abc import Mapping

EVERY = 5.0  # seconds between tellings while the state is the same, or a quarter of the watchdog's interval if that is less
PATIENCE = 1.0  # seconds that a telling may take


class Systemd:
    """The service manager that listens at $NOTIFY_SOCKET. Where there is none, telling it does nothing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._every = min(EVERY, int(environment.get("WATCHDOG_USEC", 4 * EVERY * 1e6)) / 4e6)
        self._due, self._state = -float("inf"), ""

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self._address)

    def ready(self) -> None:
        """The settings hold and work begins; the watchdog's clock starts."""
        if self:
            faulthandler.enable()  # the watchdog ends what hangs by SIGABRT: then the log shows where
        self._tell("READY=1")

    def reloading(self) -> None:
        """Settings are read anew, until the next `ready`."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Work has ended; what is left is to put things away."""
        self._tell("STOPPING=1\nSTATUS=stopping")

    def progress(self, state: str, reason: str = "") -> None:
        """Work has got on: feeds the watchdog, and shows both in `systemctl status`. Cheap, so call it at every step."""
        now = time.monotonic()
        if self._address and (now >= self._due or state != self._state):
            self._due, self._state = now + self._every, state
            doing = f"{state}: {reason}".rstrip(": ")
            self._tell(f"WATCHDOG=1\nSTATUS={' '.join(doing.split())}")

    def _tell(self, text: str) -> None:
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.settimeout(PATIENCE)
                line.sendto(text.encode(), self._address)
