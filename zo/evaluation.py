"""How good a model is on labelled files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zo import examples
from zo.batches import Batch, collate, encode
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import DataError
from zo.manifest import Task

BATCH = 16
CAUSAL_BATCH = 2  # every token has logits over the vocabulary


@dataclass(frozen=True)
class Rows:
    """What a model makes of labelled rows, each an array [rows]: loss (nats), whether the answer is right, and the label."""

    losses: np.ndarray
    hits: np.ndarray
    labels: np.ndarray


def answers(engine: Engine, batches: Sequence[Batch]) -> Rows:
    """The model's answers. For language modelling a row is a token."""
    return judged((engine.forward(batch)[1] for batch in batches), batches)


def judged(logits: Iterable[np.ndarray], batches: Sequence[Batch]) -> Rows:
    """What logits [rows, classes], those of each batch, are as answers."""
    losses, hits, labels = [], [], []
    for each, batch in zip(logits, batches, strict=True):
        wanted = batch.fields["labels"]
        shifted = each.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        losses.append(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(wanted)), wanted])
        hits.append(each.argmax(axis=1) == wanted)
        labels.append(wanted)
    return Rows(np.concatenate(losses), np.concatenate(hits), np.concatenate(labels))


def evaluate(engine: Engine, batches: Sequence[Batch]) -> dict[str, Any]:
    """Mean and class-balanced loss (nats) and accuracy over all rows. For language modelling the two agree."""
    return metrics(answers(engine, batches), engine.manifest.task)


def metrics(rows: Rows, task: Task) -> dict[str, Any]:
    """See `evaluate`."""
    by_class = _by_class(rows, task)
    return {
        "loss": float(rows.losses.mean()),
        "accuracy": float(rows.hits.mean()),
        "balanced_loss": float(np.mean([rows.losses[each].mean() for each in by_class])),
        "balanced_accuracy": float(np.mean([rows.hits[each].mean() for each in by_class])),
        "rows": len(rows.losses),
    }


def gain(before: Rows, after: Rows, task: Task) -> tuple[float, float]:
    """How much lower the class-balanced loss (nats) is on the same rows, and the standard error of that."""
    lower = before.losses - after.losses
    by_class = [lower[each] for each in _by_class(after, task)]
    error = np.sqrt(sum(each.var(ddof=1) / len(each) for each in by_class if len(each) > 1)) / len(by_class)
    return float(np.mean([each.mean() for each in by_class])), float(error)


def compared(start: Rows, over: tuple[int, Rows], found: Rows, task: Task) -> dict[str, Any]:
    """The metrics of `found`; as "gain" and "gain_error" its gain over `start`; as "rise" and "rise_error" its loss less that of
    another entry, which is told as "over".
    """
    (mean, error), (fall, fall_error) = gain(start, found, task), gain(over[1], found, task)
    return metrics(found, task) | {"gain": mean, "gain_error": error, "over": over[0], "rise": -fall, "rise_error": fall_error}


def _by_class(rows: Rows, task: Task) -> list[np.ndarray]:
    return [rows.labels == each for each in np.unique(rows.labels)] if task.labels else [np.full(len(rows.labels), True)]


def batches(bundle: Bundle, path: Path, most: int = 0) -> list[Batch]:
    """Batches of a JSONL file, of similar lengths. most: use a fixed sample of this many examples (and rows); 0 uses all."""
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    found = examples.load(path, task)
    if most and len(found) > most:
        found = [found[place] for place in np.random.default_rng(0).permutation(len(found))[:most]]
    encoded = [row for example in found for row in encode(example, task, tokenizer)]
    if most and len(encoded) > most:  # long texts become many rows
        encoded = [encoded[place] for place in np.random.default_rng(0).permutation(len(encoded))[:most]]
    rows = sorted(encoded, key=lambda row: len(row.ids))
    if not rows:
        raise DataError(f"{path} holds no usable example: its texts have fewer than two tokens")
    together = BATCH if task.labels else CAUSAL_BATCH
    return [collate(rows[start : start + together], task) for start in range(0, len(rows), together)]
