"""`scripts/bench linear-probe`: the ceiling that a frozen encoder sets, by logistic regression on its sentence embeddings.

With gradients and all the data.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.bench import workload
from zo import evaluation
from zo.bundle import open_bundle
from zo.engine import Engine

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)  # L2, on the sum of squares
STEPS, RATE = 600, 0.05


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="as built by scripts/demo (OUT/bundle)")
    workload.add_data(parser, "folder with train, validation and test .jsonl")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(given.bundle, given.data)


def measure(bundle: Path, data: Path) -> dict[str, Any]:
    """Accuracy, balanced accuracy and loss on the test file, and on the validation file, by which the penalty is chosen."""
    opened = open_bundle(bundle)
    engine = Engine(opened, opened.parameters())
    splits = {name: _embedded(engine, evaluation.batches(opened, data / f"{name}.jsonl")) for name in ("train", "validation", "test")}
    classes = len(opened.manifest.task.labels)
    fitted = [_fit(*splits["train"], classes, penalty) for penalty in PENALTIES]
    best = min(fitted, key=lambda weights: _scores(weights, *splits["validation"])["loss"])
    return _scores(best, *splits["test"]) | {"validation": _scores(best, *splits["validation"])}


def _embedded(engine: Engine, batches: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of unit length with a constant 1 appended [rows, width + 1], and labels [rows]."""
    rows = np.concatenate([engine.head_input(batch) for batch in batches])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.c_[rows, np.ones(len(rows), np.float32)], np.concatenate([batch.fields["labels"] for batch in batches])


def _fit(rows: np.ndarray, labels: np.ndarray, classes: int, penalty: float) -> np.ndarray:
    """Weights [width + 1, classes] by Adam on the full batch."""
    wanted = np.eye(classes, dtype=np.float32)[labels]
    weights, mean, square = (np.zeros((rows.shape[1], classes), np.float32) for _ in range(3))
    for step in range(1, STEPS + 1):
        gradient = rows.T @ (_softmax(rows @ weights) - wanted) / len(rows) + 2 * penalty * weights
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        weights -= RATE * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weights


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _scores(weights: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    chances = _softmax(rows @ weights)
    hits = chances.argmax(axis=1) == labels
    return {
        "loss": round(float(-np.log(chances[np.arange(len(labels)), labels] + 1e-12).mean()), 4),
        "accuracy": round(float(hits.mean()), 4),
        "balanced_accuracy": round(float(np.mean([hits[labels == each].mean() for each in np.unique(labels)])), 4),
    }


def told(found: dict[str, Any]) -> str:
    """One line for a person."""
    return "linear probe on the test file: " + json.dumps(found)
