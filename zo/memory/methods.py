"""What training by each method takes, of any shape: with gradients, and with forward passes only (docs/memory.md derives the formulas).

With gradients everything is float32 but, where that is said, the base; attention is fused, so that no scores are kept (its best case), and
imports are taken to be ours. All weights of the blocks are trained in `full`, adapters on query and value in LoRA; tables never.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from zo.memory.engine import HEAD_ROOM, Device, Need, base_bytes, row_bytes
from zo.memory.shapes import ModelShape, table_bytes, weight_bytes
from zo.memory.units import FLOAT

RANK = 8  # of adapters
CLASSES = 2
HEAD_DIRECTIONS = 256  # of FedSPZO


@dataclass(frozen=True)
class Work:
    """One step. directions: of forward-only methods, side by side. every_token: a loss at each token; else one an example."""

    examples: int = 8
    tokens: int = 128
    directions: int = 1
    every_token: bool = False

    @property
    def rows(self) -> int:
        """Tokens of the batch."""
        return self.examples * self.tokens


Method = Callable[[ModelShape, Work, Device], Need]


def backprop(
    model: ModelShape,
    work: Work,
    device: Device,
    *,
    states: int = 0,
    adapters: bool = False,
    checkpoints: bool = False,
    precision: str = "fp32",
) -> Need:
    """states: values of the optimiser for each trained one (SGD 0, Adam 2). adapters: LoRA on a frozen base of that precision."""
    trained = model.adapters(RANK) if adapters else model.blocks * model.block_weights + model.head_weights
    base = base_bytes(model, precision) - (0 if adapters else weight_bytes(precision, trained, model.width))
    block = saved_row_bytes(model, adapters)
    kept = model.blocks * FLOAT * model.width + block if checkpoints else model.blocks * block
    logits = _losses(work) * _classes(model, work)
    return Need(
        imports=device.imports,
        base=base,
        trainables=2 * FLOAT * trained,  # values and gradients
        optimiser=states * FLOAT * trained,
        activations=work.rows * kept,
        logits=3 * FLOAT * logits,  # logits, their exponentials, their gradients
        caches=0,
    )


def saved_row_bytes(model: ModelShape, adapters: bool) -> int:
    """Bytes of a row that one block keeps for its gradients.

    Both inputs of the norms, what they put out for the products that follow, query, key, value and the mixed values; the
    feed-forward part before and behind its activation. A frozen matrix needs no input: with adapters, only what enters
    norms, attention and activation stays, and the input of query and value.
    """
    wide = 2 if model.gated else 1
    if adapters:
        values = 3 * model.width + model.query_width + 2 * model.kv_width + wide * model.feed_forward
    else:
        values = 4 * model.width + 2 * model.query_width + 2 * model.kv_width + (wide + 1) * model.feed_forward
    return FLOAT * values


def mezo_full(model: ModelShape, work: Work, device: Device) -> Need:
    """Weights perturbed in place (arXiv 2305.17333): one probe at a time."""
    trained = model.blocks * model.block_weights + model.head_weights
    return Need(
        imports=device.imports,
        base=table_bytes("fp32", model.tables, model.width),
        trainables=FLOAT * trained,
        optimiser=0,
        activations=round(work.rows * row_bytes(model, work.tokens, device.held("fp32"))),
        logits=2 * FLOAT * _losses(work) * _classes(model, work),
        caches=0,
    )


def mezo_adapters(model: ModelShape, work: Work, device: Device, *, precision: str = "fp32") -> Need:
    """Adapters, all branches side by side on one base."""
    branches, trained = 2 * work.directions, model.adapters(RANK)
    return Need(
        imports=device.imports,
        base=base_bytes(model, precision),
        trainables=FLOAT * trained * (1 + branches),
        optimiser=0,
        activations=round(branches * work.rows * row_bytes(model, work.tokens, device.held(precision))),
        logits=2 * FLOAT * branches * _losses(work) * _classes(model, work),
        caches=0,
    )


def fedspzo(model: ModelShape, work: Work, device: Device, *, precision: str = "fp32") -> Need:
    """Adapters, and HEAD_DIRECTIONS of the head on both outputs that each direction of the adapters leaves (arXiv 2502.10239)."""
    below = mezo_adapters(model, replace(work, directions=1), device, precision=precision)
    outputs = 2 * _losses(work) * model.width * FLOAT
    head = min(HEAD_ROOM, 2 * HEAD_DIRECTIONS * FLOAT * (3 * model.width * CLASSES + 4 * _losses(work) * CLASSES))
    return replace(below, caches=outputs, logits=max(below.logits, head))


METHODS: dict[str, Method] = {
    "backprop, full, Adam": partial(backprop, states=2),
    "backprop, full, SGD": backprop,
    "backprop, full, SGD, checkpoints": partial(backprop, checkpoints=True),
    "backprop, LoRA, Adam": partial(backprop, states=2, adapters=True),
    "backprop, LoRA, Adam, checkpoints, w4 base": partial(backprop, states=2, adapters=True, checkpoints=True, precision="w4"),
    "MeZO, full": mezo_full,
    "MeZO, adapters": mezo_adapters,
    "MeZO, adapters, int8 base": partial(mezo_adapters, precision="int8"),
    "MeZO, adapters, w4 base": partial(mezo_adapters, precision="w4"),
    "FedSPZO, adapters": fedspzo,
    "FedSPZO, adapters, int8 base": partial(fedspzo, precision="int8"),
    "FedSPZO, adapters, w4 base": partial(fedspzo, precision="w4"),
}


def _losses(work: Work) -> int:
    return work.rows if work.every_token else work.examples


def _classes(model: ModelShape, work: Work) -> int:
    return model.vocabulary if work.every_token else CLASSES
