"""Inactive blocks: their weights in few bits, in the files that their graphs read (docs/blocks.md)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zo import quantised
from zo.disk import room_for
from zo.group import Tensor

CODES, VALUES = "inactive.codes", "inactive.values"  # apart, since ONNX Runtime packs codes anew and lets go of their file


@dataclass(frozen=True)
class Place:
    """Where an initializer of a graph lies: in which file, from which byte on, and what it is."""

    file: str
    offset: int
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.kind).itemsize


def codes_name(tensor: str, bits: int) -> str:
    """The initializer with a matrix's codes."""
    return f"{tensor}.w{bits}"


def scale_name(tensor: str) -> str:
    """The initializer with a matrix's scales."""
    return f"{tensor}.scale"


def layout(tensors: Iterable[Tensor], bits: int) -> dict[str, Place]:
    """What a block's trained tensors become, by initializer, one behind the other: matrices codes and scales, others as they are."""
    places, ends = dict[str, Place](), {CODES: 0, VALUES: 0}

    def put(name: str, file: str, kind: str, *shape: int) -> None:
        places[name] = Place(file, ends[file], kind, shape)
        ends[file] += places[name].size

    for tensor in tensors:
        if len(tensor.shape) == 2:
            inner, outer = tensor.shape
            count = -(-inner // quantised.BLOCK)
            put(codes_name(tensor.name, bits), CODES, "uint8", outer, count, quantised.BLOCK * bits // 8)
            put(scale_name(tensor.name), VALUES, "float32", outer * count)
        else:
            put(tensor.name, VALUES, "float32", *tensor.shape)
    return places


def packed_bytes(tensors: Iterable[Tensor], bits: int) -> int:
    """Of both files."""
    return sum(place.size for place in layout(tensors, bits).values())


def write(folder: Path, tensors: tuple[Tensor, ...], bits: int, pieces: Iterable[np.ndarray]) -> None:
    """Write both files into a folder. pieces: the tensors' values in order, in pieces of any size. OSError where there is no room."""
    places = layout(tensors, bits)
    files = {name: room_for(folder / name, sum(place.size for place in places.values() if place.file == name)) for name in (CODES, VALUES)}

    def view(name: str) -> np.ndarray:
        place = places[name]
        return files[place.file][place.offset : place.offset + place.size].view(place.kind).reshape(place.shape)

    rows = _rows(tensors, pieces)
    for tensor in tensors:
        if len(tensor.shape) != 2:
            view(tensor.name)[...] = next(rows)[1].reshape(tensor.shape)
            continue
        codes, scales = view(codes_name(tensor.name, bits)), view(scale_name(tensor.name)).reshape(tensor.shape[1], -1)
        done = 0
        while done < tensor.shape[0]:
            first, weight = next(rows)
            packed, scale = quantised.blocks(weight, bits)
            place, done = first // quantised.BLOCK, first + len(weight)
            codes[:, place : place + packed.shape[1]] = packed
            scales[:, place : place + packed.shape[1]] = scale.reshape(len(scales), -1)


def _rows(tensors: Iterable[Tensor], pieces: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Each tensor in parts: of a matrix whole blocks of rows (and what is left at its end) with the first one's place, others at once."""
    given, waiting = iter(pieces), np.empty(0, np.float32)
    for tensor in tensors:
        width = tensor.shape[1] if len(tensor.shape) == 2 else 1
        least = quantised.BLOCK * width if len(tensor.shape) == 2 else tensor.size
        done = 0
        while done < tensor.size:
            while len(waiting) < min(least, tensor.size - done):
                waiting = np.concatenate([waiting, next(given)])
            here = min(len(waiting), tensor.size - done)
            here = here if here == tensor.size - done else here // least * least
            part, waiting = waiting[:here], waiting[here:].copy()
            yield done // width, part.reshape(-1, width)
            done += here
