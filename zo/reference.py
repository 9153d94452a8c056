"""The plain definition of a probe, for tests and for reading: no graphs, no branches, nothing changed in place."""

from collections.abc import Callable, Mapping

import numpy as np

from zo.parameters import Parameters
from zo.plan import Node
from zo.terms import Term

Loss = Callable[[Mapping[str, np.ndarray]], float]
SIGNS = (1, -1)


def probe(parameters: Parameters, root: Node, loss: Loss) -> np.ndarray:
    """What `Engine.probe` approximates: losses at + and at - of every direction, lowest level first: float64 [2 * scalars].

    A level is tried where the direction below stands at +E and where it stands at -E, and its loss is the mean of both; while a
    level is tried, those above it are unperturbed. In the joint form both levels move together; in the clean one every level moves
    alone, to +E, and the loss at -E is what a straight line through the unperturbed one makes of it. loss: nats, from the
    trainable tensors by name. `parameters` stays untouched; every probe starts from a copy of it, so no error of one can reach
    the next. Says nothing of stages, batches or cost. RangeError where a probe would leave the lattice.
    """

    def at(terms: tuple[Term, ...]) -> float:
        perturbed = parameters.copy()
        perturbed.add(terms)
        return loss(perturbed.tensors())

    if root.joint and root.child:
        low, high = root, root.child
        pairs = [(a, a * high.count + b) for a in range(low.count) for b in range(high.count)]
        return np.array([at((*low.terms(a, sign), *high.terms(b, sign))) for a, b in pairs for sign in SIGNS])
    if root.clean:
        middle, ahead = at(()), [at(node.terms(direction, 1)) for node, total in root.levels() for direction in range(total)]
        return np.array([loss for each in ahead for loss in (each, 2 * middle - each)])
    found: list[float] = []
    standing: list[list[tuple[Term, ...]]] = [[()]]  # for every direction below: the places where it left the levels below
    for node, _ in root.levels():
        tried = [(places, which * node.count + own) for which, places in enumerate(standing) for own in range(node.count)]
        for places, direction in tried:
            found += [float(np.mean([at((*place, *node.terms(direction, sign))) for place in places])) for sign in SIGNS]
        standing = [[(*place, *node.terms(direction, sign)) for sign in SIGNS for place in places] for places, direction in tried]
    return np.array(found, np.float64)
