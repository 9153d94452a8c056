"""What a base's probes take here, and what they are worth: signal per second (DESIGN sections 5 and 6)."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from zo.batches import Batch, Encoded, collate
from zo.engine import Engine
from zo.engine.stages import share
from zo.manifest import Task
from zo.planning import one_level

HEAD_BRANCHES = 256


def alternating(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median milliseconds of each call, taken in turns so that drifts of the machine hit all alike; the first turn warms up."""
    return [float(np.median(times)) for times in turns(calls, repeats)]


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
    plan = one_level(engine.manifest, sizes, 0, 1, engine.rank)
    return lambda: engine.probe(plan, batch, go_on)


def signal_per_second(correlation: float, milliseconds: float) -> float:
    """What probe pairs are worth: one of correlation r with the exact one is worth r**2 of those, and nothing below 0."""
    return max(0.0, correlation) ** 2 * 1e3 / max(milliseconds, 1e-3)


def stage_ns(engine: Engine, batch: Batch, repeats: int = 3, alone: bool = False) -> tuple[int, ...]:
    """Nanoseconds that a branch of an example takes in each stage, measured as branches run: two at a time, hundreds of a head's own.

    alone: one at a time instead, as the unperturbed model runs. Of as many examples of the batch as one run may have.
    """
    batch = batch.split(max(1, engine.max_rows // (2 * batch.tokens)))[0]
    stages, values, found = engine.stages, {name: share(array) for name, array in batch.fields.items()}, []
    engine.inputs.refresh()
    for number, stage in enumerate(engine.manifest.stages):
        groups, head = engine.parameters.groups, number == len(stages) - 1
        held = {tensor.name for group in stage.groups if group in groups for tensor in groups[group].tensors}
        held, tensors = held & engine.inputs.branched, engine.live
        branches = 1 if alone else HEAD_BRANCHES if head and held else 2 if number or held else 1
        if branches > 1 and held and (head or not number):  # the first takes no branches in
            out, bound = engine.inputs.branches(held, branches, engine.rank)
            for name, array in out.items():
                array[...] = engine.parameters.tensor(name)
            tensors = tensors | bound
        elif number:
            name = engine.manifest.stages[number - 1].outputs[0]
            values[name] = share(np.concatenate([values[name].numpy()] * branches))
        taken = alternating([partial(stages.run, values, number, number + 1, tensors)], repeats)[0]
        found.append(min(max(1, round(taken * 1e6 / branches / batch.examples)), 2**32 - 1))
        after = stages.run(values, number, number + 1, tensors)
        values[stage.outputs[0]] = share(after[stage.outputs[0]].numpy()[:1])
    return tuple(found)
