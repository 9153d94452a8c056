"""The command `edge-coordinator`. While its modules are imported, Ctrl-C ends it without a word (zo.cli takes it from there)."""

import signal
import sys


def main() -> int:
    """Entry point; returns the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from coordinator import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
