"""Which other files an ONNX graph reads: looked at before ONNX Runtime does, whose older releases (1.23) follow any path there is.

A walk over the protobuf wire format, since the onnx package is too heavy for a device. Field numbers: onnx.proto.
"""

from collections.abc import Iterator
from pathlib import Path

from zo.errors import BundleError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
DEEPEST = 100  # messages in messages, as protobuf itself allows

# By message: the fields that lead to tensors, and to which message.
WAYS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}


def check(path: Path, *allowed: str) -> None:
    """BundleError unless all that a graph reads besides its own file are files of these names, beside it."""
    if path.suffix != ".onnx":  # another ending may mean another format to ONNX Runtime
        raise BundleError(f"{path} does not end with .onnx; do not use this bundle")
    try:
        for location in _locations(memoryview(path.read_bytes()), "Model", 0):
            if location not in allowed:
                raise BundleError(
                    f"{path} reads {location[:200]!r}, which is not the bundle's {' or '.join(allowed)}; do not use this bundle"
                )
    except (ValueError, IndexError):
        raise BundleError(f"{path} is no ONNX graph; download or build the bundle again") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; download the bundle again") from None


def _locations(data: memoryview, message: str, depth: int) -> Iterator[str]:
    """Paths of external data in a message. ValueError or IndexError where it is not well formed."""
    if depth > DEEPEST:
        raise ValueError
    ways = WAYS[message]
    for number, content in _fields(data):
        if ways.get(number) == "Entry":
            entry = dict(_fields(content))
            if bytes(entry.get(1, b"")) == b"location":
                yield bytes(entry.get(2, b"")).decode(errors="replace")
        elif number in ways:
            yield from _locations(content, ways[number], depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of the fields that have a length; others are passed over."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == LENGTH:
            length, place = _varint(data, place)
            if place + length > len(data):
                raise ValueError
            yield tag >> 3, data[place : place + length]
            place += length
        elif kind == VARINT:
            _, place = _varint(data, place)
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        else:
            raise ValueError
    if place > len(data):
        raise ValueError


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError
