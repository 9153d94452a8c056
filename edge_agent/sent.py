"""A record of every message that this device has sent, kept on the device: what `edge-agent audit` prints.

A record is its length (4 bytes, little-endian), the time (float64), the message's name with its length before it (1 byte), and the
bytes that went over the wire. It is handed to the system before the message is: a killed agent loses none, a power cut those of
the last half minute or so. When there are too many, the oldest half is dropped, and its counts kept.
"""

import dataclasses
import errno
import json
import logging
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge_agent.aside import aside, kept
from edge_agent.flash import WriteBudget
from zo import wire
from zo.errors import StorageError

log = logging.getLogger(__name__)

NAME, OLDER, NEXT, EARLIER = "sent", "sent.older", "sent.new", "earlier"
HEAD = struct.Struct("<IdB")
WRITTEN_EVERY = 30.0  # seconds after which a system writes a changed block, about
FAR = 1e11  # seconds since 1970, which no clock shows
KINDS = {method.request.__name__: method.request for method in wire.METHODS}
Totals = dict[str, tuple[int, int]]  # count and bytes by message


class Message(NamedTuple):
    """What was sent: when (seconds since 1970), the name of the message, and its bytes."""

    at: float
    name: str
    content: bytes


class Sent:
    """The record, for writing. most: bytes that it may take; 0 keeps none.

    StorageError where it cannot be kept: then nothing is to be sent.
    """

    def __init__(self, state: Path, most: float, budget: WriteBudget | None = None) -> None:
        self.path, self._most, self._budget = state / NAME, most, budget
        self._counted, self._pending = 0.0, 0
        if not most:
            return
        try:
            if (state / NEXT).exists() and not self.path.exists():  # a crash came between
                (state / NEXT).replace(self.path)
            for path in (state / OLDER, self.path):
                if path.exists():
                    _cut(path)
            self.path.open("ab").close()
        except OSError as error:
            raise self._failure(error) from None

    def add(self, name: str, content: bytes) -> None:
        """Note a message that is about to be sent."""
        if not self._most:
            return
        record = HEAD.pack(len(content), time.time(), len(name)) + name.encode() + content
        try:
            with self.path.open("ab", buffering=0) as file:
                end = file.tell()
                if file.write(record) < len(record):  # a disk that fills takes the beginning, without an error
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if file.tell() > self._most / 2:
                    self._turn_over()
        except OSError as error:
            raise self._failure(error) from None
        self._pending += len(record)
        if self._budget and time.monotonic() - self._counted > WRITTEN_EVERY:
            self._budget.take(self._pending, always=True)
            self._counted, self._pending = time.monotonic(), 0

    def _turn_over(self) -> None:
        """Drop the older half, and go on in a new file that begins with what all the dropped ones came to."""
        dropped, new = totals(read_file(self.path.with_name(OLDER))), self.path.with_name(NEXT)
        content = json.dumps(dropped).encode()
        new.write_bytes(HEAD.pack(len(content), time.time(), len(EARLIER)) + EARLIER.encode() + content)
        self.path.replace(self.path.with_name(OLDER))
        new.replace(self.path)

    def _failure(self, error: OSError) -> StorageError:
        said = "nothing is sent that is not noted there: make room, allow writing, or keep no record with --audit-bytes 0"
        return StorageError(f"{self.path}: {error.strerror}; {said}")


def messages(state: Path) -> Iterator[Message]:
    """All records of a state folder, oldest first."""
    for name in (OLDER, NAME):
        yield from read_file(state / name)


def read_file(path: Path) -> Iterator[Message]:
    """The records of a file that are whole; none where there is no file."""
    data = path.read_bytes() if path.exists() else b""
    place = 0
    while place + HEAD.size <= len(data):
        length, at, letters = HEAD.unpack_from(data, place)
        start = place + HEAD.size + letters
        name = data[start - letters : start].decode("ascii", "replace")
        if start + length > len(data) or not name.isidentifier():
            return
        yield Message(at if abs(at) < FAR else 0.0, name, data[start : start + length])
        place = start + length


def unreadable(state: Path) -> list[str]:
    """How much of the record cannot be read, by file; of what was kept when a file was cut, all."""
    sizes = {path: path.stat().st_size - _whole(path) for path in (state / OLDER, state / NAME) if path.exists()}
    for name in (OLDER, NAME):
        sizes |= {path: path.stat().st_size for path in kept(state / name)}
    return [f"{size} bytes of {path}" for path, size in sizes.items() if size]


def _whole(path: Path) -> int:
    """Bytes of a file up to which it can be read."""
    return sum(HEAD.size + len(each.name) + len(each.content) for each in read_file(path))


def _cut(path: Path) -> None:
    """Take away what cannot be read at the end of a file; it is kept aside, unless it is one record that was not written to its end."""
    whole = _whole(path)
    with path.open("rb") as file:
        file.seek(whole)
        tail = file.read()
    if any(name.encode() in tail[HEAD.size + 1 :] for name in KINDS):  # behind the name of the first
        copy = aside(path)
        log.warning("%s is damaged at byte %d; the %d bytes from there on are kept as %s", path, whole, len(tail), copy.name)
        copy.write_bytes(tail)
    if tail:
        os.truncate(path, whole)


def totals(given: Iterator[Message]) -> Totals:
    """Count and bytes by name, with what was dropped before."""
    found: Totals = {}
    for each in given:
        counts = _earlier(each) if each.name == EARLIER else {each.name: (1, len(each.content))}
        for name, (count, size) in counts.items():
            before = found.get(name, (0, 0))
            found[name] = (before[0] + count, before[1] + size)
    return found


def plain(message: Message) -> dict[str, Any]:
    """A message for a person: every number that it holds, by the name of its field."""
    if message.name == EARLIER:
        return {"at": message.at, "earlier": _earlier(message)}
    try:
        content = _shown(wire.decoder(KINDS[message.name])(message.content))
    except (KeyError, wire.WireError):  # of another version
        content = {"bytes": message.content.hex()}
    return {"at": message.at, "message": message.name, "size": len(message.content)} | content


def told(message: Message) -> str:
    """A message on one line."""
    found = plain(message)
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(found.pop("at")))
    if "earlier" in found:
        return f"{at}  earlier, and dropped to save room: " + ", ".join(f"{n} {name}" for name, (n, _) in found["earlier"].items())
    return f"{at}  {found.pop('message')} ({found.pop('size')} bytes): " + ", ".join(f"{name} {value}" for name, value in found.items())


def _shown(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _shown(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.hex() if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else value


def _earlier(message: Message) -> Totals:
    try:
        found = json.loads(message.content)
        return {str(name): (int(count), int(size)) for name, (count, size) in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {EARLIER: (1, len(message.content))}
