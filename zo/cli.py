"""What both console commands share: log, exit codes, and errors as one line."""

import argparse
import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from zo import __version__, log
from zo.errors import ConfigError, StorageError, UserError

INTERNAL_ERROR = 70
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Terminated(BaseException):
    """SIGTERM, which unwinds a command as Ctrl-C does, so that it leaves nothing unfinished behind."""


class Parser(argparse.ArgumentParser):
    """Tells wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends with 2."""
        self.exit(2, f"{_line(self.prog, message)}; see {self.prog} --help\n")


def parser(program: str, description: str) -> tuple[argparse.ArgumentParser, argparse._SubParsersAction]:
    """A parser with the flags that every command has, and the place where subcommands go."""
    top = Parser(prog=program, description=description)
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    top.add_argument("--verbose", action="store_true", help="log more, and show where an internal error arose")
    return top, top.add_subparsers(title="commands", required=True, metavar="COMMAND")


def run(top: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Run the chosen command; returns the exit code (docs/exit-codes.md)."""
    _open_streams()
    given = top.parse_args(arguments)
    log.start(given.verbose)
    try:
        with _interruptible():
            code = given.command(given) or 0
            sys.stdout.flush()
            return code
    except UserError as error:
        print(_line(top.prog, str(error)), file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(f"{top.prog}: package {error.name!r} is not installed; install it with: pip install 'edge-zo[coordinator]'", file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt:
        return 130
    except Terminated:
        signal.raise_signal(signal.SIGTERM)  # so that its parent sees the end that it asked for
        return 128 + signal.SIGTERM
    except BrokenPipeError:
        _finish_output()
        return 141
    except Exception as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
            _finish_output()
            where = "the output" if error.filename is None else error.filename
            print(_line(top.prog, f"{where}: {error.strerror}; check the path, its permissions and the room there"), file=sys.stderr)
            return StorageError.exit_code
        logging.debug("internal error", exc_info=True)
        told = f"internal error: {type(error).__name__}: {error}; please report it with the output of --verbose"
        print(_line(top.prog, told), file=sys.stderr)
        return INTERNAL_ERROR


def _line(program: str, message: str) -> str:
    return f"{program}: {' '.join(message.splitlines())}"


def _open_streams() -> None:
    """Streams that the caller closed lead nowhere, lest a file takes their place; what they cannot encode is escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  for as long as the program runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _finish_output() -> None:
    """Write what is left, or drop it: Python itself would complain when it flushes at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM, which end the program before and after, unwind the command; services take both over."""
    ours: dict[int, Callable[..., Any]] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    if threading.current_thread() is not threading.main_thread():
        ours = {}
    taken = {number: handler for number, handler in ours.items() if signal.getsignal(number) is signal.SIG_DFL}
    for number, handler in taken.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in taken.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    raise Terminated
