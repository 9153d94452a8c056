"""The trainable tensors at entry 0, read from the bundle's file as they are asked for: no more of it is in memory than that."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from zo.errors import BundleError
from zo.group import Group


class Initial(Mapping[str, np.ndarray]):
    """Tensors of a safetensors file by name; each is read anew. BundleError where the file cannot be read, or holds other than float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "numpy"):  # checks the header against the file
                pass
            self._places = _places(path)
        except (OSError, SafetensorError, ValueError) as error:
            raise BundleError(f"{path} cannot be read ({error}); download the bundle again") from None

    def __getitem__(self, name: str) -> np.ndarray:
        offset, shape = self._places[name]
        return self._read(np.empty(shape, np.float32), offset)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def check(self, group: Group) -> None:
        """BundleError unless all tensors of the group are here, in their shapes."""
        for tensor in group.tensors:
            if tensor.name not in self._places or self._places[tensor.name][1] != tensor.shape:
                raise BundleError(f"{self.path.name} holds no tensor {tensor.name!r} of shape {tensor.shape}; build the bundle again")

    def read(self, group: Group, start: int, out: np.ndarray) -> None:
        """Values of the group from `start` on, in the order of the direction stream, into float32 [n]."""
        first = 0
        for tensor in group.tensors:
            low, high = max(start, first), min(start + len(out), first + tensor.size)
            if low < high:
                self._read(out[low - start : high - start], self._places[tensor.name][0] + 4 * (low - first))
            first += tensor.size

    def _read(self, out: np.ndarray, offset: int) -> np.ndarray:
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            if file.readinto(out.reshape(-1).view(np.uint8).data) != out.nbytes:
                raise BundleError(f"{self.path} ends too early; download the bundle again")
        return out


def _places(path: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """By name, where in the file a tensor begins, and its shape."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    other = sorted(name for name, entry in header.items() if entry["dtype"] != "F32")
    if other:
        raise ValueError(f"tensor {other[0]!r} is not float32")
    return {name: (8 + length + entry["data_offsets"][0], tuple(entry["shape"])) for name, entry in header.items()}
