"""Strides: the way that the parameters went over the last entries, and what further steps along it, or back, would do to the loss."""

from collections.abc import Callable, Sequence

import numpy as np

from zo.batches import Batch
from zo.engine import Engine
from zo.lattice import RangeError
from zo.manifest import Manifest
from zo.planning import kinds
from zo.terms import Term, negated


def changes(manifest: Manifest, stride: Sequence[Term]) -> list[tuple[Term, ...]]:
    """None; then the part of the stride that each kind of group has, once more and taken back."""
    found: list[tuple[Term, ...]] = [()]
    for kind in kinds(manifest):
        ids = {group.id for group in manifest.groups if group.kind == kind}
        cut = [(tuple(group for group in term.groups if group in ids), term) for term in stride]
        part = tuple(Term(groups, term.first_seed, term.steps) for groups, term in cut if groups)
        found += [part, negated(part)]
    return found


def losses(
    engine: Engine, classes: Sequence[Sequence[Batch]], stride: Sequence[Term] = (), go_on: Callable[[], None] = lambda: None
) -> list[float]:
    """Mean loss (nats) of some examples where the parameters are; with a stride, also with each of its `changes`.

    classes: batches of each class, which count evenly. Empty where there are none, or the loss is not finite; without the
    changes where one of those is not, or leaves the lattice. The parameters are restored exactly.
    """
    try:
        found = _means(engine, classes, changes(engine.manifest, stride) if stride else [()], go_on)
    except RangeError:
        found = _means(engine, classes, [()], go_on)
    if np.all(np.isfinite(found)):
        return found
    return found[:1] if np.isfinite(found[0]) else []


def _means(engine: Engine, classes: Sequence[Sequence[Batch]], ways: Sequence[Sequence[Term]], go_on: Callable[[], None]) -> list[float]:
    by_class = []
    for batches in classes:
        total = np.zeros(len(ways))
        for batch in batches:
            go_on()
            total += engine.losses(batch, ways) * batch.losses
        by_class.append(total / sum(batch.losses for batch in batches))
    return np.mean(by_class, axis=0).tolist() if by_class else [float("nan")]
