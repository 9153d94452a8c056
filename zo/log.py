"""Log lines: `time level message` on standard error; one line an event."""

import logging
import os
import sys
import time

BUILT = 1_767_225_600  # 2026-01-01: no clock that is right shows less


def start(verbose: bool = False) -> None:
    """Send log lines to standard error."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else it writes a line for every stranger who fails a TLS handshake
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )


def check_clock() -> None:
    """Warn where the clock cannot be right, as on a board without a battery: nothing but times in logs depends on it."""
    if time.time() < BUILT:
        date = time.strftime("%Y-%m-%d", time.gmtime(time.time()))
        logging.warning("the clock of this machine says %s; the work does not depend on it, but times in logs and status are wrong", date)
