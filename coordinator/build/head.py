"""Heads: from selected hidden states [P, rows, width] to logits [P, rows, classes] and the loss of every branch [P]."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from coordinator.build.graph import INT64
from coordinator.build.layers import Layers
from zo import directions
from zo.errors import BundleError

COSINE_SCALE = 20.0
INITIAL_WEIGHT = 0.02  # as BERT's initializer_range
HEAD_GROUP = 2**32 - 2  # the direction stream from which a new head is drawn


def mean_over_tokens(layers: Layers, x: str) -> str:
    """Mean of the real tokens: [P, batch, tokens, width] -> [P, batch, width]."""
    g = layers.graph
    mask = g.op("Unsqueeze", g.op("Cast", layers.tokens("attention_mask"), to=1), g.indices(2))
    total = g.op("ReduceSum", g.op("Mul", x, mask), g.indices(2), keepdims=0)
    return g.op("Div", total, g.op("ReduceSum", mask, g.indices(1), keepdims=0))


def first_token(layers: Layers, x: str) -> str:
    """The first token of each example: [P, batch, tokens, width] -> [P, batch, width]."""
    return layers.graph.op("Gather", x, layers.graph.constant(0, np.int64), axis=2)


def last_token(layers: Layers, x: str, width: int) -> str:
    """The last real token of each example: [P, batch, tokens, width] -> [P, batch, width]."""
    g, mask = layers.graph, layers.tokens("attention_mask")
    count = g.op("Squeeze", g.op("Shape", mask, start=0, end=1))
    starts = g.op("Mul", g.op("Range", g.constant(0, np.int64), count, g.constant(1, np.int64)), g.op("Shape", mask, start=1, end=2))
    last = g.op("Sub", g.op("ReduceSum", mask, g.indices(1), keepdims=0), g.indices(1))
    return g.op("Gather", g.op("Reshape", x, g.indices(0, -1, width)), g.op("Add", starts, last), axis=1)


def chosen_positions(layers: Layers, x: str, width: int) -> str:
    """The rows where a loss is due: `positions` [rows] index batch x tokens; -> [P, rows, width]."""
    g = layers.graph
    return g.op("Gather", g.op("Reshape", x, g.indices(0, -1, width)), g.input("positions", ["rows"], INT64), axis=1)


def unit_length(layers: Layers, x: str) -> str:
    """x / |x| along the last axis."""
    g = layers.graph
    squared = g.op("ReduceSum", g.op("Mul", x, x), g.indices(-1))
    return g.op("Div", x, g.op("Sqrt", g.op("Add", squared, g.constant(1e-12))))


def prototype_logits(layers: Layers, x: str, classes: int, width: int) -> str:
    """20 * cosine(x, prototype) + bias. The prototypes start at zero here and are filled from the label sentences."""
    g = layers.graph
    prototypes = unit_length(layers, layers.trained("head.prototypes", np.zeros((classes, width), np.float32)))
    cosine = g.op("MatMul", unit_length(layers, x), g.op("Transpose", prototypes, perm=[0, 2, 1]))
    return g.op("Add", g.op("Mul", cosine, g.constant(COSINE_SCALE)), layers.row("head.bias", np.zeros(classes, np.float32)))


def linear_logits(layers: Layers, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
    """x @ weight + bias, both trained; weight [width, classes]."""
    y = layers.graph.op("MatMul", x, layers.trained("head.weight", weight))
    return layers.graph.op("Add", y, layers.row("head.bias", bias))


def initial_weight(layers: Layers, width: int, classes: int) -> np.ndarray:
    """Small random weights [width, classes], from the run key; all zeros would give the body no slope."""
    signs = directions.signs(layers.training.run_key, HEAD_GROUP, np.zeros(1, np.uint64), 0, width * classes)
    return signs.reshape(width, classes) * np.float32(INITIAL_WEIGHT)


def token_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """The one token that each label word is. BundleError where it is none, several, or another label's."""
    found = []
    for word in words:
        ids = tokenizer.encode(word, add_special_tokens=False).ids
        if len(ids) == 1 and (read := tokenizer.decode(ids, skip_special_tokens=False)).strip() != word.strip():
            raise BundleError(f"label word {word!r} is no token of the model, which reads it as {read!r}; choose another")
        if len(ids) != 1:
            raise BundleError(f"label word {word!r} is not one token of the model, but {len(ids)}; choose another, or try it with a space")
        if ids[0] in found:
            raise BundleError(f"label word {word!r} is the same token as another; choose one that is not")
        found += ids
    return found


def finish(layers: Layers, logits: str, classes: int) -> None:
    """End the head stage: logits and, per branch, the mean cross-entropy over the rows (nats)."""
    g = layers.graph
    labels = g.op("Unsqueeze", g.input("labels", ["rows"], INT64), g.indices(0, 2))
    shape = g.op("Concat", g.op("Shape", logits, start=0, end=2), g.indices(1), axis=0)
    picked = g.op("Squeeze", g.op("GatherElements", logits, g.op("Expand", labels, shape), axis=2), g.indices(2))
    surprise = g.op("Sub", g.op("ReduceLogSumExp", logits, g.indices(2), keepdims=0), picked)
    loss = g.op("ReduceMean", surprise, g.indices(1), keepdims=0)
    layers.end({"loss": ["P"], "logits": ["P", "rows", classes]}, loss, logits)
