"""Walking a work plan: each level's directions on the stage outputs that the level below left (DESIGN section 6, FedSPZO)."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from zo.batches import Batch
from zo.engine.stages import Values, share
from zo.plan import Node
from zo.terms import Term, negated

if TYPE_CHECKING:
    from zo.engine.engine import Engine


class EnoughProbed(Exception):
    """Raised by `go_on` to end a walk early, for want of memory say: losses found so far count, the others are NaN."""


Steps = Generator[tuple[int, list[Values]], None, None]  # the first of some directions, and what every cache has come to, by branch


@dataclass(frozen=True)
class Cache:
    """What a part of the batch has come to at one stage.

    batch: the examples, once for every kept output. values: batch fields and stage outputs. weight: share of the part in the
    losses. pair: name of the output whose branch axis is 2, at +E and at -E of the level below; empty but in the joint form.
    """

    batch: Batch
    values: Values
    weight: float
    pair: str = ""

    def side_by_side(self, count: int) -> Values:
        """The values for `count` directions in one run."""
        if not self.pair:
            return self.values
        pair = self.values[self.pair].numpy()
        return self.values | {self.pair: share(np.tile(pair, (count, *[1] * (pair.ndim - 1))))}

    def side(self, place: int) -> Values:
        """The values for + (0) or - (1) of one direction."""
        return self.values | {self.pair: share(self.values[self.pair].numpy()[place : place + 1])} if self.pair else self.values


class Walk:
    """One walk over the tree of `root`; `go_on` is called before each run of the model."""

    def __init__(self, engine: Engine, root: Node, go_on: Callable[[], None]) -> None:
        self._engine, self._root, self._go_on = engine, root, go_on
        self._signs = (1,) if root.clean else (1, -1)
        self._found = {node.stage: np.zeros(len(self._signs) * total) for node, total in root.levels()}
        self._known = {node.stage: np.zeros(len(self._signs) * total, bool) for node, total in root.levels()}
        self._middle = np.nan

    def losses(self, caches: list[Cache]) -> np.ndarray:
        """Losses of every direction, + then -, lowest level first: float64 [2 * scalars]; NaN where the walk ended before."""
        with suppress(EnoughProbed):
            if self._root.clean:
                self._clean(caches)
            else:
                self._level(self._root, 0, caches)
        known = [np.where(known, found, np.nan) for known, found in zip(self._known.values(), self._found.values(), strict=True)]
        found = np.concatenate(known[-1 if self._root.joint else 0 :])
        return np.stack([found, 2 * self._middle - found], axis=1).reshape(-1) if self._root.clean else found

    def _clean(self, caches: list[Cache]) -> None:
        """Every direction alone, at +E; at -E the loss is taken to be as far on the other side of the unperturbed one."""
        self._engine.inputs.refresh()
        nodes = list(self._root.levels())
        kept = [caches]
        for (low, _), (high, _) in pairwise(nodes):
            kept.append([self._unperturbed(cache, low.stage, high.stage) for cache in kept[-1]])
        self._middle = sum(
            cache.weight * float(self._run(cache.values, nodes[-1][0].stage, len(self._engine.stages))["loss"].numpy()[0])
            for cache in kept[-1]
        )
        for (node, total), below in zip(nodes, kept, strict=True):
            self._level(replace(node, count=total, child=None), 0, below)

    def _unperturbed(self, cache: Cache, first: int, stop: int) -> Cache:
        """What the stages from `first` make of a cache; nothing else of what went in is kept."""
        name = self._engine.manifest.stages[stop - 1].outputs[0]
        fields = {field: cache.values[field] for field in cache.batch.fields}
        return Cache(cache.batch, fields | {name: self._run(cache.values, first, stop)[name]}, cache.weight)

    def _level(self, node: Node, first: int, caches: list[Cache]) -> None:
        """Directions first..first + count of a level, and of those above it."""
        stop = node.child.stage if node.child else len(self._engine.stages)
        step = self._in_place if self._engine.in_place(node) else self._side_by_side
        with closing(step(node, first, caches, stop)) as outputs:  # so that what ends the walk restores at once
            for direction, found in outputs:
                if node.child:
                    self._above(node, node.child, direction, caches, found)
                else:
                    self._note(node, direction, caches, [each["loss"].numpy() for each in found])

    def _above(self, node: Node, child: Node, first: int, caches: list[Cache], found: list[Values]) -> None:
        """What becomes of a level's outputs, + and - of the directions from `first` on: its own losses, and the level above."""
        name = self._engine.manifest.stages[child.stage - 1].outputs[0]
        if not node.joint:
            self._engine.inputs.refresh()
            self._note(node, first, caches, [self._run(each, child.stage, len(self._engine.stages))["loss"].numpy() for each in found])
        hidden = [each[name].numpy() for each in found]
        for place in range(len(hidden[0]) // 2):
            kept = [
                self._kept(cache, name, each[2 * place : 2 * place + 2], node.joint) for cache, each in zip(caches, hidden, strict=True)
            ]
            self._level(child, (first + place) * child.count, kept)

    def _kept(self, cache: Cache, name: str, pair: np.ndarray, joint: bool) -> Cache:
        """The cache of the level above: outputs at + and - of one direction, [2, ...], laid behind each other, or as a pair."""
        if joint:
            return Cache(cache.batch, cache.values | {name: share(np.ascontiguousarray(pair))}, cache.weight, name)
        batch = cache.batch.repeated(2)
        values = {field: share(array) for field, array in batch.fields.items()}
        return Cache(batch, values | {name: share(pair.reshape(1, -1, *pair.shape[2:]))}, cache.weight)

    def _side_by_side(self, node: Node, first: int, caches: list[Cache], stop: int) -> Steps:
        """Directions along the branch axis; theta stays untouched. Yields the first of some directions, and every cache's outputs."""
        engine = self._engine
        groups = [group for size in node.probe_sizes for group in size.groups]
        names = [tensor.name for group in groups for tensor in engine.parameters.groups[group].tensors]
        together = self._together(node, caches[-1].batch)
        for start in range(first, first + node.count, together):
            count = min(together, first + node.count - start)
            out, bound = engine.inputs.branches(names, len(self._signs) * count, engine.rank)
            for size in node.probe_sizes:
                engine.parameters.probes(size.groups, node.first_seed + start, count, [sign << size.log2_e for sign in self._signs], out)
            tensors = engine.live | bound
            yield start, [self._run(cache.side_by_side(count), node.stage, stop, tensors) for cache in caches]

    def _in_place(self, node: Node, first: int, caches: list[Cache], stop: int) -> Steps:
        """Probes one by one; restoring the last and setting up the next is one addition. Yields as above, one direction at a time."""
        offset: tuple[Term, ...] = ()
        name = self._engine.manifest.stages[stop - 1].outputs[0]
        try:
            for direction in range(first, first + node.count):
                sides = []
                for place, sign in enumerate(self._signs):
                    following = node.terms(direction, sign)
                    self._engine.parameters.add((*negated(offset), *following))
                    offset = following
                    sides.append([self._run(cache.side(place), node.stage, stop) for cache in caches])
                joined = [{name: share(np.concatenate([side[name].numpy() for side in pair]))} for pair in zip(*sides, strict=True)]
                yield direction, [each | new for each, new in zip(sides[0], joined, strict=True)]
        finally:
            self._engine.parameters.postpone(negated(offset))  # with the update that follows, and the next perturbation, one pass

    def _run(self, values: Values, first: int, stop: int, tensors: Values | None = None) -> Values:
        self._go_on()
        return self._engine.stages.run(values, first, stop, self._engine.live if tensors is None else tensors)

    def _note(self, node: Node, first: int, caches: list[Cache], losses: list[np.ndarray]) -> None:
        """Add what parts of the batch contribute to the losses of the directions from `first` on."""
        found = self._found[node.stage][len(self._signs) * first :]
        for cache, each in zip(caches, losses, strict=True):
            found[: len(each)] += cache.weight * each.astype(np.float64)
        start = len(self._signs) * first
        self._known[node.stage][start : start + len(losses[0])] = True

    def _together(self, node: Node, batch: Batch) -> int:
        """Directions in one run."""
        engine = self._engine
        if node.stage < len(engine.stages) - 1:
            return max(1, engine.max_rows // (len(self._signs) * batch.examples * batch.tokens))
        values = sum(engine.parameters.groups[group].size for size in node.probe_sizes for group in size.groups)
        branch = 4 * (3 * values + 2 * batch.losses * engine.stages.classes)  # tensors, what is made of them, and logits
        return max(1, engine.HEAD_ROOM // (len(self._signs) * branch))
