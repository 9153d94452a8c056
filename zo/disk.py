"""Durable writes: what must be on the disk before anyone hears of it. The seam where tests put crashes and full disks."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zo.errors import BundleError

CHECKSUM = 32  # bytes, at the end of a sealed file


class Disk:
    """The file system, as far as durability goes. Every method may raise OSError."""

    def write(self, path: Path, content: bytes) -> None:
        """Write a whole file; a power cut may lose or tear it."""
        path.write_bytes(content)

    def append(self, path: Path, start: int, content: bytes) -> None:
        """Write behind the first `start` bytes of a file; whatever was there goes. A power cut may lose or tear it."""
        with path.open("r+b") as file:
            file.seek(start)
            file.truncate()
            file.write(content)

    def sync(self, path: Path) -> None:
        """Return when all that was written to a file is on the disk."""
        _sync(path, os.O_RDWR)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in place of whatever had it."""
        old.replace(new)

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in a folder are on the disk."""
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)

    def replace(self, path: Path, content: bytes) -> None:
        """Put a file in place, durably: at any instant the old content is there, or the new."""
        temporary = replacement(path)
        self.write(temporary, content)
        self.sync(temporary)
        self.rename(temporary, path)
        self.sync_folder(path.parent)


def replacement(path: Path) -> Path:
    """Where the new content of a file is written, before it takes its place."""
    return path.with_name(path.name + ".new")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Around work on a path: an OSError that names none, as of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or (error.errno and str(path))
        raise


@contextlib.contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """An empty folder to be filled, which gets the name `out` once it is: where that fails nothing is left of it.

    BundleError where there is an `out` already; an OSError that names no file names `out`.
    """
    if out.exists():
        raise BundleError(f"{out} exists already; choose another folder, or remove it")
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".making-") as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            yield made
            made.rename(out)


def room_for(path: Path, size: int) -> np.ndarray:
    """A new file of this size, mapped for writing: uint8 [size]. OSError where the disk has no room: it must not be met while writing."""
    with path.open("w+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, max(1, size))
        return np.memmap(opened, np.uint8, "r+", shape=(max(1, size),))[:size]


def replace_secret(disk: Disk, path: Path, content: bytes) -> None:
    """As `disk.replace`, for a file that only its owner may read: at no instant may others."""
    temporary = replacement(path)
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # before there is anything to be read
    disk.replace(path, content)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sealed(content: bytes) -> bytes:
    """The content with its BLAKE2b-256 checksum behind it."""
    return content + hashlib.blake2b(content, digest_size=CHECKSUM).digest()


def unsealed(data: bytes) -> bytes:
    """The content of a sealed file. ValueError where it is torn or altered."""
    content = data[:-CHECKSUM]
    if sealed(content) != data:
        raise ValueError("it is torn or altered")
    return content
