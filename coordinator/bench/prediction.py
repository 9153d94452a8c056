"""`scripts/bench prediction`: predicted against measured peak resident memory, over a grid of shapes, models and precisions."""

import argparse
import dataclasses
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from coordinator.bench.memory import child
from coordinator.bench.step import TASK
from coordinator.build import chain
from coordinator.build.build import draft
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import Training
from coordinator.demo.packaged import packaged_model
from zo.bundle import open_bundle
from zo.manifest import Calibration, Precision
from zo.memory import PUBLISHED, ModelShape, need
from zo.memory.engine import Device

GRID = (  # directions side by side x examples x tokens
    (1, 1, 16),
    (1, 4, 16),
    (1, 8, 32),
    (1, 8, 64),
    (1, 8, 128),
    (1, 8, 256),
    (1, 1, 256),
    (1, 16, 64),
    (2, 8, 32),
    (4, 8, 32),
    (8, 4, 16),
    (8, 8, 64),
    (4, 4, 128),
    (16, 2, 32),
)
MODELS = ("minilm-l6", "bert-base")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
LONGEST = dataclasses.replace(TASK, max_tokens=256)


def options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Per model and precision: what calibration found, and each shape's prediction, measurement and relative error."""
    rows = []
    bert = random_bert(folder / "bert-base", PUBLISHED["bert-base"])
    for name, model in zip(MODELS, (packaged_model(), bert), strict=True):
        for precision in PRECISIONS:
            bundle = unmeasured(folder / f"{name}-{precision}", model, precision)
            rows.append({"model": name, "base": precision} | _compare(bundle))
            shutil.rmtree(bundle)
    errors = [abs(shape["error"]) for row in rows for shape in row["shapes"]]
    return {"rows": rows, "median_error": statistics.median(errors), "worst_error": max(errors)}


def told(found: dict[str, Any]) -> str:
    """Two tables for a person."""
    lines = [
        "peak resident, MB: predicted / measured",
        "shape      " + "".join(f"{row['model'] + ' ' + row['base']:>22}" for row in found["rows"]),
    ]
    for place, (directions, examples, tokens) in enumerate(GRID):
        cells = [row["shapes"][place] for row in found["rows"]]
        figures = [f"{cell['predicted'] / 1e6:.0f} / {cell['measured'] / 1e6:.0f} ({cell['error']:+.1%})" for cell in cells]
        lines.append(f"{f'{directions}x{examples}x{tokens}':11}" + "".join(f"{each:>22}" for each in figures))
    lines += ["", "model      base    imports MB  hidden states a row   median error   worst"]
    for row in found["rows"]:
        errors = [abs(shape["error"]) for shape in row["shapes"]]
        fitted = f"{row['imports'] / 1e6:11.1f}{row['hidden']:21.1f}"
        lines.append(f"{row['model']:11}{row['base']:7}{fitted}{statistics.median(errors):15.1%}{max(errors):8.1%}")
    lines.append(f"all together: median {found['median_error']:.1%}, worst {found['worst_error']:.1%}")
    return "\n".join(lines)


def random_bert(folder: Path, shape: ModelShape) -> Path:
    """A Hugging Face folder of an encoder of this shape with random weights, and MiniLM's tokenizer."""
    folder.mkdir()
    config = json.loads((packaged_model() / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": shape.width, "intermediate_size": shape.feed_forward, "num_hidden_layers": shape.blocks}
    config |= {"num_attention_heads": shape.heads, "vocab_size": shape.vocabulary, "max_position_embeddings": shape.positions}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(packaged_model() / "tokenizer.json", folder)
    generator, weights = np.random.default_rng(0), {}

    def linear(name: str, outer: int, inner: int) -> None:
        weights[f"{name}.weight"] = generator.standard_normal((outer, inner), np.float32) * np.float32(0.02)
        weights[f"{name}.bias"] = np.zeros(outer, np.float32)

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = np.ones(shape.width, np.float32), np.zeros(shape.width, np.float32)

    for table, rows in (("word", shape.vocabulary), ("position", shape.positions), ("token_type", 2)):
        values = generator.standard_normal((rows, shape.width), np.float32)
        weights[f"embeddings.{table}_embeddings.weight"] = values * np.float32(0.02)
    norm("embeddings.LayerNorm")
    for number in range(shape.blocks):
        name = f"encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{name}.attention.{part}", shape.width, shape.width)
        norm(f"{name}.attention.output.LayerNorm")
        linear(f"{name}.intermediate.dense", shape.feed_forward, shape.width)
        linear(f"{name}.output.dense", shape.width, shape.feed_forward)
        norm(f"{name}.output.LayerNorm")
    save_file(weights, folder / "model.safetensors")
    return folder


def unmeasured(folder: Path, model: Path, precision: Precision) -> Path:
    """A bundle with made-up probe sizes: memory does not depend on them, and calibrating a large model takes minutes."""
    training = Training("lora-fa", precision)
    bundle = draft(Checkpoint(model), folder, LONGEST, training, (precision,), None, folder.name)
    made_up = tuple(Calibration(kind, -4, 1.0, 0.0, 0.0, 1.0, 1.0) for kind in ("body", "head"))
    bases = {precision: dataclasses.replace(bundle.manifest.base, calibration=made_up)}
    dataclasses.replace(bundle.manifest, bases=bases, files=chain.digests(folder)).write(folder)
    return folder


def _compare(bundle: Path) -> dict[str, Any]:
    fitted = child("calibrate", bundle)
    manifest, device = open_bundle(bundle).manifest, Device(**fitted)
    shapes = []
    for directions, examples, tokens in GRID:
        predicted = need(manifest, 2 * directions * examples * tokens, tokens, device, pairs=directions).total
        measured = child("shape", bundle, directions, examples, tokens)["peak"]
        shapes.append({"predicted": predicted, "measured": measured, "error": round(predicted / measured - 1, 4)})
    return fitted | {"shapes": shapes}
