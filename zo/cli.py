"""What both console commands share: log, exit codes, and errors as one line."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence

from zo import __version__, log
from zo.errors import ConfigError, StorageError, UserError

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
        code = given.command(given) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{top.prog}: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(f"{top.prog}: package {error.name!r} is not installed; install it with: pip install 'edge-zo[coordinator]'", file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # or Python itself would complain when it flushes at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            print(f"{top.prog}: {error.filename}: {error.strerror}; check the path, its permissions and the room there", file=sys.stderr)
            return StorageError.exit_code
        logging.debug("internal error", exc_info=True)
        print(
            f"{top.prog}: internal error: {type(error).__name__}: {error}; please report it with the output of --verbose", file=sys.stderr
        )
        return INTERNAL_ERROR
