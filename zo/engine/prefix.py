"""The unperturbed prefix: outputs of the stages below every trained group, kept by example."""

from pathlib import Path

import numpy as np

from zo.batches import Batch
from zo.disk import room_for


class Prefix:
    """Hidden states by the key of their example, in a room of fixed size: [tokens, width], or [width] where only one is left of them.

    Who comes first stays: an epoch meets every example once, so whatever was thrown out would be met again before
    what takes its place. file: where the room is, instead of in memory; its name is gone at once, its blocks when the
    process ends. OSError where the disk has no room.
    """

    def __init__(self, room: float, *, float16: bool = False, file: Path | None = None) -> None:
        kind: type = np.float16 if float16 else np.float32
        size = int(room) // np.dtype(kind).itemsize
        self._room = np.empty(size, kind) if file is None else _mapped(file, kind, size)
        self._used = 0
        self._states: dict[int, np.ndarray] = {}

    def get(self, keys: np.ndarray, tokens: int) -> np.ndarray | None:
        """float32 [1, examples, tokens, width] with zeros for padding, or [1, examples, width]; None unless all are here."""
        found = [self._states[key] for key in keys.tolist() if key in self._states]
        if not found or len(found) < len(keys):
            return None
        if found[0].ndim == 1:
            return np.stack(found)[None].astype(np.float32, copy=False)
        values = np.zeros((1, len(found), tokens, found[0].shape[1]), np.float32)
        for place, states in enumerate(found):
            values[0, place, : len(states)] = states
        return values

    def put(self, batch: Batch, values: np.ndarray) -> None:
        """Keep what fits. values: [1, examples, tokens, width] or [1, examples, width]; other rows than one an example are not kept."""
        if values.shape[1] != batch.examples:
            return
        for key, length, states in zip(batch.keys.tolist(), batch.lengths.tolist(), values[0], strict=True):
            states = states[:length] if states.ndim == 2 else states
            stop = self._used + states.size
            if key >= 0 and key not in self._states and stop <= len(self._room):
                kept = self._room[self._used : stop].reshape(states.shape)
                with np.errstate(over="ignore"):
                    kept[...] = states
                if np.isfinite(kept).all():  # else beyond float16
                    self._states[key], self._used = kept, stop


def _mapped(file: Path, kind: type, size: int) -> np.ndarray:
    try:
        return room_for(file, size * np.dtype(kind).itemsize).view(kind)
    finally:
        file.unlink(missing_ok=True)
