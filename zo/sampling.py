"""Drawing batches from examples that are encoded."""

from collections.abc import Sequence

import numpy as np

from zo.batches import Batch, Encoded, collate
from zo.manifest import Task

ROOM = 4  # batches drawn together and sorted by length, so that short texts are not padded to long ones


class Sampler:
    """Random batches of `rows`, with replacement. balanced: all classes equally often, however rare."""

    def __init__(self, rows: Sequence[Encoded], task: Task, balanced: bool, generator: np.random.Generator) -> None:
        self._task, self._generator = task, generator
        self._classes = by_class(rows, balanced)
        self._ready: list[list[Encoded]] = []

    def draw(self, size: int) -> Batch:
        """A batch of `size` examples of similar length."""
        if not self._ready or len(self._ready[-1]) != size:
            rows = sorted((self._one() for _ in range(size * ROOM)), key=lambda row: len(row.ids))
            self._ready = [rows[start : start + size] for start in range(0, len(rows), size)]
            self._generator.shuffle(self._ready)
        return collate(self._ready.pop(), self._task)

    def _one(self) -> Encoded:
        rows = self._classes[self._generator.integers(len(self._classes))]
        return rows[self._generator.integers(len(rows))]


def by_class(rows: Sequence[Encoded], balanced: bool) -> list[list[Encoded]]:
    """Examples parted by class; all together where they are not balanced."""
    classes: dict[int, list[Encoded]] = {}
    for row in rows:
        classes.setdefault(row.label if balanced else 0, []).append(row)
    return list(classes.values())


def hold_out(rows: Sequence[Encoded], share: float, most: int) -> tuple[list[Encoded], list[Encoded]]:
    """Examples to measure with, the same each time and by length, and those to train on."""
    kept = min(int(len(rows) * share), most)
    order = np.random.default_rng(0).permutation(len(rows))
    held = sorted((rows[place] for place in order[:kept]), key=lambda row: len(row.ids))
    return held, [rows[place] for place in order[kept:]]


def measuring_batches(held_out: Sequence[Encoded], task: Task, balanced: bool, size: int) -> list[list[Batch]]:
    """Batches of each class of held-out examples."""
    classes = by_class(held_out, balanced)
    return [[collate(rows[start : start + size], task) for start in range(0, len(rows), size)] for rows in classes]
