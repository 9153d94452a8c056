"""The trainable tensors as graphs take them: memory that ONNX Runtime shares, rank slices of an adapter side by side."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from zo import ranks
from zo.engine.stages import Values, share
from zo.errors import BundleError
from zo.group import Group
from zo.manifest import Manifest
from zo.parameters import Parameters


class Inputs:
    """Values of `parameters` for graphs whose inputs have `axes` axes, by name.

    Slices of one adapter lie in groups of their own, so what is bound is a copy, [branches, rank, width], of which smaller ranks
    are the first rows: `refresh` brings it up to date. All other tensors are bound where they are. rank: 0 is the largest.
    """

    def __init__(self, manifest: Manifest, parameters: Parameters, axes: Mapping[str, int]) -> None:
        self._parameters, self._ranks = parameters, manifest.ranks
        self._sliced = ranks.pieces(manifest)
        self._adapter = {piece.tensor: name for name, pieces in self._sliced.items() for piece in pieces}
        tensors = {tensor.name: tensor for group in parameters.groups.values() for tensor in group.tensors}
        if left := sorted(self._sliced.keys() - axes.keys()):
            raise BundleError(f"bundle {manifest.name!r} has no graph that takes {left[0]!r}; build it again")
        whole = [name for name in tensors if name not in self._adapter]
        self.branched = {name for name in whole if axes[name] > len(tensors[name].shape)} | self._adapter.keys()
        views = {name: parameters.tensor(name) for name in whole}
        self._whole = {name: share(view[None] if name in self.branched else view) for name, view in views.items()}
        widths = {name: tensors[pieces[0].tensor].shape[1] for name, pieces in self._sliced.items()}
        self._copies = {name: np.empty((1, self._ranks[-1], width), np.float32) for name, width in widths.items()}
        self._live: dict[int, Values] = {}
        self._buffers: dict[tuple[str, tuple[int, ...]], tuple[np.ndarray, Any]] = {}
        self.refresh()

    def live(self, rank: int) -> Values:
        """Unperturbed values, as they were when last refreshed; always the same objects."""
        if rank not in self._live:
            cut = {name: share(copy[:, : self._rows(rank)]) for name, copy in self._copies.items()}
            self._live[rank] = self._whole | cut
        return self._live[rank]

    def hold(self, group: Group) -> None:
        """Bind the values of a group that the parameters have come to hold, and that is perturbed in place."""
        self._whole |= {tensor.name: share(self._parameters.tensor(tensor.name)) for tensor in group.tensors}
        self._live.clear()

    def release(self, group: Group) -> None:
        """Let go of a group's values."""
        for tensor in group.tensors:
            self._whole.pop(tensor.name, None)
        self._live.clear()

    def refresh(self) -> None:
        """Settle the parameters, and copy the slices."""
        self._parameters.settle()
        self.copy()

    def copy(self) -> None:
        """Copy the slices, if there are any; all else stays as it is."""
        for name, pieces in self._sliced.items():
            for tensor, start, stop in pieces:
                self._copies[name][0, start:stop] = self._parameters.tensor(tensor)

    def branches(self, tensors: Collection[str], count: int, rank: int) -> tuple[dict[str, np.ndarray], Values]:
        """Room for branches of some tensors, by tensor [count, *shape], and what is bound instead of their live values.

        What is not among the tensors, of adapters that are, holds its live values. Tensors beyond the rank have no room.
        """
        out, bound, rows = dict[str, np.ndarray](), Values(), self._rows(rank)
        for name in dict.fromkeys(self._adapter.get(tensor, tensor) for tensor in tensors):
            if name not in self._sliced:
                out[name], bound[name] = self._buffer(name, (count, *self._parameters.tensor(name).shape))
                continue
            array, bound[name] = self._buffer(name, (count, rows, self._copies[name].shape[2]))
            for tensor, start, stop in self._sliced[name]:
                if stop <= rows and tensor in tensors:
                    out[tensor] = array[:, start:stop]
                elif stop <= rows:
                    array[:, start:stop] = self._parameters.tensor(tensor)
        return out, bound

    def trim(self) -> None:
        """Give back the branches."""
        self._buffers.clear()

    def _rows(self, rank: int) -> int:
        return rank or max(self._ranks, default=0)

    def _buffer(self, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, Any]:
        """An array, always the same for a shape, and the OrtValue over it."""
        if (name, shape) not in self._buffers:
            array = np.empty(shape, np.float32)
            self._buffers[name, shape] = (array, share(array))
        return self._buffers[name, shape]
