"""The device's own examples: encoded once, a share held out, batches drawn at random."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edge_agent.config import AgentConfig
from edge_agent.solo_config import SoloConfig
from zo import examples
from zo.batches import Batch, Encoded, collate, encode
from zo.bundle import Bundle
from zo.errors import DataError
from zo.examples import Reading
from zo.manifest import Task

log = logging.getLogger(__name__)

ROOM = 4  # batches drawn together and sorted by length, so that short texts are not padded to long ones


class Dataset:
    """Encoded examples in memory; text is dropped once encoded.

    held_out_share, held_out_most: how many examples are kept for measuring. balanced: classes equally often. DataError
    where the folder holds no usable example.
    """

    def __init__(self, path: Path, task: Task, tokenizer: Tokenizer, *, held_out_share: float, held_out_most: int, balanced: bool) -> None:
        self.task = task
        self.reading: Reading = examples.read(path, task)
        rows = [row for example in self.reading.examples for row in encode(example, task, tokenizer)]
        if not rows:
            raise DataError(f"{path} holds no usable example: its texts have fewer than two tokens; give longer ones")
        self.summary = self.reading.summary()
        self.reading.examples.clear()
        rows = [replace(row, key=place) for place, row in enumerate(rows)]
        kept = min(int(len(rows) * held_out_share), held_out_most)
        order = np.random.default_rng(0).permutation(len(rows))
        self.held_out = sorted((rows[place] for place in order[:kept]), key=lambda row: len(row.ids))
        self.training = [rows[place] for place in order[kept:]]
        classes: dict[int, list[Encoded]] = {}
        for row in self.training:
            classes.setdefault(row.label if balanced else 0, []).append(row)
        self._classes = list(classes.values())
        self._generator = np.random.default_rng()
        self._ready: list[list[Encoded]] = []
        self._maker = ThreadPoolExecutor(1, "batches")
        self._coming: tuple[int, Future[Batch]] | None = None

    @classmethod
    def of(cls, config: AgentConfig | SoloConfig, bundle: Bundle) -> "Dataset":
        """The examples that the settings name, for the bundle's task; the log says what they are."""
        made = cls(
            Path(config.data),
            bundle.manifest.task,
            bundle.tokenizer(),
            held_out_share=config.held_out_share,
            held_out_most=config.held_out_most,
            balanced=config.balanced,
        )
        log.info("%s: %s, %d held out", config.data, made.summary, len(made.held_out))
        return made

    @property
    def counts(self) -> dict[str, int]:
        """What `status` tells of them."""
        return {"examples": len(self.training) + len(self.held_out), "held_out": len(self.held_out), "skipped": self.reading.skipped}

    def draw(self, size: int) -> Batch:
        """A random batch of `size` training examples of similar length; the next is made ready while this one is worked on."""
        if self._coming is None or self._coming[0] != size:
            self._coming = (size, self._maker.submit(self._make, size))
        batch = self._coming[1].result()
        self._coming = (size, self._maker.submit(self._make, size))
        return batch

    def _make(self, size: int) -> Batch:
        if not self._ready or len(self._ready[-1]) != size:
            rows = sorted((self._one() for _ in range(size * ROOM)), key=lambda row: len(row.ids))
            self._ready = [rows[start : start + size] for start in range(0, len(rows), size)]
            self._generator.shuffle(self._ready)
        return collate(self._ready.pop(), self.task)

    def held_out_batches(self, size: int) -> list[Batch]:
        """The held-out examples, always the same."""
        return [collate(self.held_out[start : start + size], self.task) for start in range(0, len(self.held_out), size)]

    def _one(self) -> Encoded:
        rows = self._classes[self._generator.integers(len(self._classes))]
        return rows[self._generator.integers(len(rows))]
