"""The command `edge-agent`."""

import sys

from zo import startup


def main() -> int:
    """Entry point; returns the exit code."""
    startup.end_on_interrupt()
    from edge_agent import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
