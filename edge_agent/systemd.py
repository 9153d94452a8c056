"""Run by systemd: what it is told (sd_notify(3), by datagrams), and taking up changed settings when it says so."""

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from zo.errors import UserError

log = logging.getLogger(__name__)

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
        self._tell("READY=1")

    def reloading(self) -> None:
        """Settings are read anew, until the next `ready`."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def progress(self, facts: Mapping[str, Any]) -> None:
        """Work has got on: feeds the watchdog, and shows the agent's state in `systemctl status`. Cheap, so call it at every step."""
        now = time.monotonic()
        if self._address and (now >= self._due or facts["state"] != self._state):
            self._due, self._state = now + self._every, facts["state"]
            doing = f"{facts['state']}: {facts.get('reason', '')}".rstrip(": ")
            self._tell(f"WATCHDOG=1\nSTATUS={' '.join(doing.split())}")

    def _tell(self, text: str) -> None:
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.settimeout(PATIENCE)
                line.sendto(text.encode(), self._address)


class Signals:
    """SIGTERM and SIGINT set `stop`. With systemd, SIGHUP does so too where `check` lets it: then `restart` is to follow.

    check: raises a UserError where the settings, as they are now, are wrong; then all goes on as it was. Without systemd, SIGHUP
    ends the process as ever, since it says that the terminal is gone.
    """

    def __init__(self, check: Callable[[], object], systemd: Systemd) -> None:
        self.stop, self._again = threading.Event(), False
        self._check, self._systemd = check, systemd
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        if systemd:
            signal.signal(signal.SIGHUP, self._reload)
            faulthandler.enable()  # the watchdog ends what hangs by SIGABRT: then the log shows where

    def restart(self) -> None:
        """Become the same command anew, with fresh memory, if SIGHUP has asked for that. Under the same process id, as systemd expects."""
        if self._again:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # outlives the exec: one that comes too soon must not kill
            log.info("starting again with the settings as they are now")
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    def _end(self, *_: object) -> None:
        self._again = False
        self.stop.set()

    def _reload(self, *_: object) -> None:
        if self.stop.is_set():
            return
        try:
            self._check()
        except UserError as error:
            log.error("the settings are not taken up, and work goes on with those of before: %s", error)
            return
        self._again = True
        self._systemd.reloading()
        self.stop.set()
