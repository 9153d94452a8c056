"""What a base's probes take here, and what they are worth: signal per second (DESIGN sections 5 and 6)."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zo.batches import Batch, Encoded, collate
from zo.calibration import one_level
from zo.engine import Engine
from zo.manifest import Task


def alternating(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median milliseconds of each call, taken in turns so that drifts of the machine hit all alike; the first turn warms up."""
    return [statistics.median(times) for times in turns(calls, repeats)]


def turns(calls: Sequence[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Milliseconds of each call in every turn but the first."""
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, times in zip(calls, taken, strict=True):
            began = time.perf_counter()
            call()
            if turn:
                times.append((time.perf_counter() - began) * 1e3)
    return taken


def random_batch(task: Task, vocabulary: int, examples: int, tokens: int) -> Batch:
    """Examples of random tokens below `vocabulary`, all of one length."""
    length = tokens + (not task.labels)  # a language model is given all but the last
    ids = np.random.default_rng(0).integers(0, vocabulary, (examples, length)).astype(np.int32)
    return collate([Encoded(row, np.zeros(length, np.int8), 0 if task.labels else -1) for row in ids], task)


def probe_pair(engine: Engine, batch: Batch, go_on: Callable[[], None] = lambda: None) -> Callable[[], object]:
    """One direction of plain MeZO, at the probe sizes of the engine's base: +E and -E of all groups."""
    sizes = {each.kind: each.log2_eps for each in engine.manifest.calibration}
    plan = one_level(engine.manifest, sizes, 0, 1)
    return lambda: engine.probe(plan, batch, go_on)


def signal_per_second(correlation: float, milliseconds: float) -> float:
    """What probe pairs are worth: one of correlation r with the exact one is worth r**2 of those, and nothing below 0."""
    return max(0.0, correlation) ** 2 * 1e3 / max(milliseconds, 1e-3)
