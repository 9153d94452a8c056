"""The plain definition of a probe, for tests and for reading: no graphs, no branches, nothing changed in place."""

from collections.abc import Callable, Mapping

import numpy as np

from zo.parameters import Parameters
from zo.plan import Node


def probe(parameters: Parameters, node: Node, loss: Callable[[Mapping[str, np.ndarray]], float]) -> np.ndarray:
    """What `Engine.probe` approximates: the loss at theta + E z, then at theta - E z, of every direction: float64 [2 * count].

    loss: nats, from the trainable tensors by name. `parameters` stays untouched; every probe starts from a copy of it,
    so no error of one can reach the next. Says nothing of stages, batches or cost. ValueError where the plan has
    children; RangeError where a probe would leave the lattice.
    """
    if node.children:
        raise ValueError("only plans of one level are defined")
    losses = []
    for direction in range(node.count):
        for sign in (1, -1):
            perturbed = parameters.copy()
            perturbed.add(node.terms(direction, sign))
            losses.append(loss(perturbed.tensors()))
    return np.array(losses, np.float64)
