"""A parameter group: which tensors it has, and where each lies among the group's values (DESIGN section 3)."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """A trainable tensor: its name in the graphs and its shape (without the branch axis)."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Count of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Group:
    """A parameter group: the smallest set of tensors that is perturbed alone, on one lattice.

    id: 0 <= id < 2**32. kind: "body" or "head", the class that shares probe size and rate. log2_unit: exponent of
    the unit. tensors: in the order of the direction stream.
    """

    id: int
    kind: str
    log2_unit: int
    tensors: tuple[Tensor, ...]

    @cached_property
    def size(self) -> int:
        """Count of values of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def unit(self) -> float:
        """The lattice spacing, a power of two."""
        return math.ldexp(1.0, self.log2_unit)

    def split(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views of the tensors in a row of the group's values; leading axes of `flat` are kept."""
        return {t.name: flat[..., start:stop].reshape((*flat.shape[:-1], *t.shape)) for t, (start, stop) in self._spans}

    def tensor_at(self, place: int) -> Tensor:
        """The tensor that the value at a place of the group's row belongs to."""
        return next(tensor for tensor, (_, stop) in self._spans if place < stop)

    @cached_property
    def _spans(self) -> list[tuple[Tensor, tuple[int, int]]]:
        """Where each tensor lies in the group's values."""
        stops = list(accumulate(tensor.size for tensor in self.tensors))
        return list(zip(self.tensors, zip([0, *stops], stops, strict=False), strict=True))
