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
from zo.batches import Batch, encode
from zo.bundle import Bundle
from zo.errors import DataError
from zo.examples import Reading
from zo.manifest import Task
from zo.sampling import Sampler, hold_out, measuring_batches

log = logging.getLogger(__name__)


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
        self.held_out, self.training = hold_out(rows, held_out_share, held_out_most)
        self._balanced = balanced
        self._sampler = Sampler(self.training, task, balanced, np.random.default_rng())
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
            self._coming = (size, self._maker.submit(self._sampler.draw, size))
        batch = self._coming[1].result()
        self._coming = (size, self._maker.submit(self._sampler.draw, size))
        return batch

    def held_out_batches(self, size: int) -> list[list[Batch]]:
        """The held-out examples by class, always the same."""
        return measuring_batches(self.held_out, self.task, self._balanced, size)
