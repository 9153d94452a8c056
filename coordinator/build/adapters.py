"""Low-rank adapters (LoRA, arXiv 2106.09685; with a frozen A, LoRA-FA, arXiv 2308.03303), whole or in slices (docs/ranks.md)."""

import numpy as np

from coordinator.build.layers import Layers, Training
from zo import directions, ranks
from zo.consistency import MOST_ALPHA
from zo.errors import BundleError

A_GROUP = 2**32 - 1  # the direction stream from which A is drawn


def check(training: Training) -> None:
    """BundleError where no adapters can be as is asked for."""
    if training.rank < 1:
        raise BundleError(f"adapters of rank {training.rank} cannot be; give 1 or more")
    if not 0 < training.alpha <= MOST_ALPHA:
        raise BundleError(f"adapters of alpha {training.alpha} cannot be; give more than 0, and at most {MOST_ALPHA:g}")
    try:
        ranks.check(training.ranks)
    except ValueError as error:
        raise BundleError(f"--{error}") from None
    if training.ranks and training.trainable not in ("lora", "lora-fa"):
        raise BundleError(f"trainable {training.trainable!r} has no adapters; --ranks needs 'lora-fa' or 'lora'")
    if training.ranks and training.top_blocks == 0:
        raise BundleError("the head alone has no adapters; --ranks needs a block that is trained")
    if training.adapter and training.trainable != "lora":
        raise BundleError(
            f"an adapter to begin with needs trainable 'lora', as both of its matrices are its own, not {training.trainable!r}"
        )
    if training.adapter and training.adapter.rank != training.largest_rank:
        raise BundleError(f"the adapter in {training.adapter.folder} has rank {training.adapter.rank}, not {training.largest_rank}")


def linear(layers: Layers, x: str, name: str) -> str:
    """The linear layer `name` of x, with an adapter where the trainable set has them."""
    y = layers.linear(x, name)
    if layers.trainable not in ("lora", "lora-fa"):
        return y
    return layers.graph.op("Add", y, _adapter(layers, x, name))


def _adapter(layers: Layers, x: str, name: str) -> str:
    """scale * x A B for x [P, batch, tokens, in]. A is +-1/sqrt(in), frozen and pre-scaled in `lora-fa`; B starts at zero."""
    training, (out, width) = layers.training, layers.checkpoint.shape(f"{name}.weight")
    rank, scale = training.largest_rank, training.alpha / training.largest_rank
    if rank > min(width, out):
        flag = "smaller --ranks" if training.ranks else "a smaller --rank"
        raise BundleError(f"rank {rank} is larger than layer {name!r} of {width} x {out}; give {flag}")
    signs = directions.signs(training.run_key, A_GROUP, np.array([len(layers.adapted)], np.uint64), 0, width * rank)
    layers.adapted.append(name)
    if training.ranks:
        a, b = _begun(layers, name, signs.reshape(rank, width).T / np.sqrt(np.float32(width)), out)
        return _nested(layers, x, name, a, b, scale)
    a, b = _begun(layers, name, signs.reshape(width, rank) / np.sqrt(np.float32(width)), out)
    g = layers.graph
    if training.trainable == "lora":
        branches_a = g.op("Unsqueeze", layers.trained(f"{name}.lora_A", a), g.indices(1))
        low = g.op("Mul", g.op("MatMul", x, branches_a), g.constant(scale))
    else:
        low = g.op("MatMul", x, g.weight(f"{name}.lora_A", a * np.float32(scale)))
    branches_b = layers.trained(f"{name}.lora_B", b)
    return g.op("MatMul", low, g.op("Unsqueeze", branches_b, g.indices(1)))


def _nested(layers: Layers, x: str, name: str, a: np.ndarray, b: np.ndarray, scale: float) -> str:
    """The same in slices: the rank that is bound decides how many dimensions are computed."""
    g = layers.graph
    branches_b = layers.trained_in_slices(f"{name}.lora_B", b)
    if layers.training.trainable == "lora":
        branches_a = g.op("Transpose", layers.trained_in_slices(f"{name}.lora_A", a.T), perm=[0, 2, 1])
        low = g.op("Mul", g.op("MatMul", x, g.op("Unsqueeze", branches_a, g.indices(1))), g.constant(scale))
    else:
        held = g.weight(f"{name}.lora_A", a * np.float32(scale))
        bound = g.op("Shape", branches_b, start=1, end=2)
        low = g.op("MatMul", x, g.op("Slice", held, g.indices(0), bound, g.indices(1)))
    return g.op("MatMul", low, g.op("Unsqueeze", branches_b, g.indices(1)))


def _begun(layers: Layers, name: str, a: np.ndarray, out: int) -> tuple[np.ndarray, np.ndarray]:
    """What A [in, rank] and B [rank, out] of a layer begin as: drawn and zero, or as the adapter that is given has them.

    Drawn dimension by dimension where there are slices, so that a smaller rank's A is the beginning of a larger one's.
    """
    given = layers.training.adapter
    if given is None:
        return a, np.zeros((a.shape[1], out), np.float32)
    if name not in given.layers:
        raise BundleError(f"the adapter in {given.folder} has nothing for layer {name!r}")
    found = given.layers[name]
    if found[0].shape != a.shape or found[1].shape != (a.shape[1], out):
        raise BundleError(f"the adapter in {given.folder} is not of this model: its layer {name!r} has other dimensions")
    return found
