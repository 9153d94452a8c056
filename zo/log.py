"""Log lines: `time level message` on standard error; one line an event."""

import logging
import sys


def start(verbose: bool = False) -> None:
    """Send log lines to standard error."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
