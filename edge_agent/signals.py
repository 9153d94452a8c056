"""Being told to stop, and, by systemd, to take up changed settings."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from zo.errors import UserError
from zo.systemd import Systemd

log = logging.getLogger(__name__)


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
