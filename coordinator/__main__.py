"""The command `edge-coordinator`."""

import sys

from zo import startup


def main() -> int:
    """Entry point; returns the exit code."""
    startup.end_on_interrupt()
    from coordinator import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
