"""What both console commands share: log, exit codes, and errors as one line."""

import argparse
import logging
import sys
from collections.abc import Sequence

from zo import __version__, log
from zo.errors import UserError

INTERNAL_ERROR = 70


def parser(program: str, description: str) -> tuple[argparse.ArgumentParser, argparse._SubParsersAction]:
    """A parser with the flags that every command has, and the place where subcommands go."""
    top = argparse.ArgumentParser(prog=program, description=description)
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    top.add_argument("--verbose", action="store_true", help="log more, and show where an internal error arose")
    return top, top.add_subparsers(title="commands", required=True, metavar="COMMAND")


def run(top: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Run the chosen command; returns the exit code (docs/exit-codes.md)."""
    given = top.parse_args(arguments)
    log.start(given.verbose)
    try:
        return given.command(given) or 0
    except UserError as error:
        print(f"{top.prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        logging.debug("internal error", exc_info=True)
        print(
            f"{top.prog}: internal error: {type(error).__name__}: {error}; please report it with the output of --verbose", file=sys.stderr
        )
        return INTERNAL_ERROR
