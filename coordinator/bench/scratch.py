"""The folder that a benchmark works in: removed afterwards, unless it is to be kept."""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


def add_keep(parser: argparse.ArgumentParser, what: str) -> None:
    """Let people keep it."""
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help=f"leave {what} in this new folder")


def add_disk(parser: argparse.ArgumentParser) -> None:
    """Let people choose its disk, where syncs are measured."""
    parser.add_argument("--disk", type=Path, metavar="FOLDER", help="on the disk that is synced to [where temporary files go]")


@contextlib.contextmanager
def folder(given: argparse.Namespace) -> Iterator[Path]:
    """An empty one, as the options say that the benchmark has. FileExistsError where one that is to be kept is there already."""
    options = vars(given)
    if keep := options.get("keep"):
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(dir=options.get("disk")) as made:
        yield Path(made)
