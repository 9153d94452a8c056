"""Examples, parameters and plans for bundles of tiny models, and an engine that counts how often each stage runs."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from coordinator.bench import tiny_models
from zo.batches import Batch, Encoded, collate, encode
from zo.bundle import Bundle
from zo.engine import Engine
from zo.engine.stages import Stages, Values
from zo.parameters import Parameters
from zo.plan import Node, Shape
from zo.planning import lowest_stage, one_level, seeded, tree
from zo.terms import Term

SIZES = {"body": -7, "head": -5}


def rows_of(bundle: Bundle, count: int = 4, seed: int = 3) -> list[Encoded]:
    """Examples of different lengths, numbered."""
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    rows = [row for example in tiny_models.examples(task, count, seed) for row in encode(example, task, tokenizer)]
    return [replace(row, key=key) for key, row in enumerate(rows)]


def batch_of(bundle: Bundle, count: int = 4, seed: int = 3) -> Batch:
    """All of `rows_of`."""
    return collate(rows_of(bundle, count, seed), bundle.manifest.task)


def moved(bundle: Bundle, seed: int = 99) -> Parameters:
    """Parameters away from entry 0, so that no adapter is zero: by 2**-5 along one direction."""
    parameters = bundle.parameters()
    parameters.add([Term((group.id,), seed, np.array([2 ** (-5 - group.log2_unit)])) for group in bundle.manifest.groups])
    return parameters


def plan(bundle: Bundle, count: int = 3, sizes: dict[str, int] = SIZES) -> Node:
    """A plan of plain MeZO."""
    return one_level(bundle.manifest, sizes, 1000, count)


def tree_of(bundle: Bundle, shape: Shape, sizes: dict[str, int] = SIZES) -> Node:
    """A tree whose levels begin with different seeds."""
    return seeded(tree(bundle.manifest, sizes, shape), bundle.manifest.run_key, 3, 1)


def boundaries(bundle: Bundle, sizes: dict[str, int] = SIZES) -> list[int]:
    """Stages before which the bundle can be cut, so that something is trained on either side."""
    stages = bundle.manifest.stages
    return [cut for cut in range(lowest_stage(bundle.manifest, sizes) + 1, len(stages)) if any(stage.groups for stage in stages[cut:])]


class CountingStages(Stages):
    """Counts the runs of every stage."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, 1)
        self.ran: Counter[int] = Counter()

    def run(self, values: Values, first: int, stop: int, tensors: Values, logits: bool = False) -> Values:
        self.ran.update(range(first, stop))
        return super().run(values, first, stop, tensors, logits)


class Watched(Engine):
    """An engine whose runs are counted."""

    def __init__(self, bundle: Bundle, parameters: Parameters, **settings: Any) -> None:
        super().__init__(bundle, parameters, **settings)
        self.stages = CountingStages(bundle)

    def taken(self) -> dict[int, int]:
        """Runs by stage since this was last asked."""
        ran, self.stages.ran = dict(self.stages.ran), Counter()
        return ran


class Stop(Exception):
    """What a preempted device raises."""


class Countdown:
    """A go_on that lets some runs pass and then raises Stop."""

    def __init__(self, runs: int) -> None:
        self.runs, self.called = runs, 0

    def __call__(self) -> None:
        self.called += 1
        if self.called > self.runs:
            raise Stop
