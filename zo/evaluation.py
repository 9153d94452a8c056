"""How good a model is on labelled files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zo import examples
from zo.batches import Batch, collate, encode
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import DataError

BATCH = 16
CAUSAL_BATCH = 2  # every token has logits over the vocabulary


def evaluate(engine: Engine, batches: Sequence[Batch]) -> dict[str, Any]:
    """Mean and class-balanced loss (nats) and accuracy over all rows. For language modelling a row is a token, and the two agree."""
    losses, hits, labels = [], [], []
    for batch in batches:
        logits = engine.forward(batch)[1].astype(np.float64)
        wanted = batch.fields["labels"]
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses.append(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(wanted)), wanted])
        hits.append(logits.argmax(axis=1) == wanted)
        labels.append(wanted)
    loss, hit, label = np.concatenate(losses), np.concatenate(hits), np.concatenate(labels)
    by_class = [label == each for each in np.unique(label)] if engine.manifest.task.labels else [np.full(len(label), True)]
    return {
        "loss": float(loss.mean()),
        "accuracy": float(hit.mean()),
        "balanced_loss": float(np.mean([loss[rows].mean() for rows in by_class])),
        "balanced_accuracy": float(np.mean([hit[rows].mean() for rows in by_class])),
        "rows": len(loss),
    }


def batches(bundle: Bundle, path: Path, most: int = 0) -> list[Batch]:
    """Batches of a JSONL file, of similar lengths. most: use a fixed sample of this many examples (and rows); 0 uses all."""
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    found = examples.read(path, task).examples
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
