"""How much runs in each stage: what forward passes are counted with."""

from collections import Counter

from zo.batches import Batch
from zo.engine.stages import Stages, Values


class Counting:
    """Stages that count what they run of a batch: branches of the whole of it, by stage."""

    def __init__(self, stages: Stages, batch: Batch) -> None:
        self._stages, self._batch, self.branches = stages, batch, Counter[int]()
        self.classes, self.ranks = stages.classes, stages.ranks

    def __len__(self) -> int:
        return len(self._stages)

    def run(self, values: Values, first: int, stop: int, tensors: Values, logits: bool = False) -> Values:
        """As Stages.run."""
        for stage in range(first, stop):
            values = self._stages.run(values, stage, stage + 1, tensors, logits)
            self.branches[stage] += self._width(values, stage)
        return values

    def _width(self, values: Values, stage: int) -> int:
        """Branches times copies of the batch in the last run of a stage."""
        if "loss" in values and stage == len(self._stages) - 1:
            return values["loss"].shape()[0] * values["labels"].shape()[0] // self._batch.losses
        last = [value for name, value in values.items() if name.startswith("hidden")][-1]
        branches, rows = last.shape()[:2]
        selected = stage == len(self._stages) - 2  # what goes into the head: positions with a label, or one state an example
        return branches * rows // (self._batch.losses if selected else self._batch.examples)
