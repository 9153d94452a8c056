"""`scripts/bench precisions`: what each base precision costs, and which gives most signal per second (DESIGN sections 5 and 6).

The signal of a probe is the squared correlation of the body's scalar, at the eps that calibration chose, with the float32
model's at a small eps: probes with correlation r are worth r**2 as many exact ones.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from coordinator import task as task_file
from coordinator.bench import workload
from coordinator.bench.child_process import figures
from coordinator.build.build import build, calibration_batches
from coordinator.build.layers import Training
from zo import examples
from zo.batches import Batch
from zo.bundle import Bundle, open_bundle, open_whole
from zo.calibration import SMALL_LOG2_EPS
from zo.engine import Engine
from zo.estimators import half_differences
from zo.examples import Example
from zo.manifest import PRECISIONS, TRAINABLE_SETS, Precision, Task, TrainableSet
from zo.planning import one_level
from zo.timing import alternating, probe_pair, random_batch, signal_per_second

SHAPES = ((8, 32), (8, 64), (1, 16))  # examples x tokens
DIRECTIONS = 48  # a batch, for the correlation
UNSPLIT = 1 << 20  # max_rows: both probes of a batch in one run
FIRST_SEED = 1 << 32  # not those of calibration


def options(parser: argparse.ArgumentParser) -> None:
    workload.add_data(parser)
    workload.add_model(parser)
    parser.add_argument("--trainable", choices=[each for each in TRAINABLE_SETS if each != "full"], default="lora-fa", help="[lora-fa]")
    parser.add_argument("--repeats", type=int, default=15, help="[15]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    task = task_file.read(given.data / "labels.json")
    held_out, private = (examples.read(given.data / f"{split}.jsonl", task).examples for split in ("validation", "train"))
    bundle = build_all(workload.model(given), folder / "bundle", task, given.trainable, held_out)
    return measure(bundle, private, given.repeats)


def build_all(model: Path, folder: Path, task: Task, trainable: TrainableSet, found: Sequence[Example]) -> Bundle:
    """A calibrated bundle of the model with a base in every precision."""
    first, *others = PRECISIONS
    build(model, folder, task, Training(trainable, first), found, others=others)
    return open_whole(folder)


def measure(bundle: Bundle, found: Sequence[Example], repeats: int, directions: int = DIRECTIONS) -> dict[str, Any]:
    """Figures by precision, signal per second by shape, and the best precision of each shape.

    bundle: with all its bases, fp32 among them. found: labelled examples for the correlation; best others than the bundle was
    calibrated with.
    """
    bases = {precision: bundle.at(precision) for precision in bundle.manifest.bases}
    rows: dict[str, dict[str, Any]] = {precision: {"ms": {}} | _in_child(bundle.folder, precision) for precision in bases}
    engines = {precision: Engine(base, base.parameters(), max_rows=UNSPLIT) for precision, base in bases.items()}
    task, vocabulary = bundle.manifest.task, bundle.tokenizer().get_vocab_size()
    for shape in SHAPES:
        calls = [probe_pair(engine, random_batch(task, vocabulary, *shape)) for engine in engines.values()]
        for row, taken in zip(rows.values(), alternating(calls, repeats), strict=True):
            row["ms"]["x".join(map(str, shape))] = round(taken, 1)
    for precision, correlation in correlations(engines, calibration_batches(bundle, found), directions).items():
        base = bases[precision].manifest
        rows[precision] |= {"log2_eps_body": base.log2_eps("body"), "correlation": round(correlation, 4)}
        rows[precision]["bundle_mb"] = round(sum((bundle.folder / name).stat().st_size for name in base.needed) / 1e6, 1)
    signal = {shape: _signal(rows, shape) for shape in rows["fp32"]["ms"]}
    best = {shape: max(each, key=lambda name: each[name]) for shape, each in signal.items()}
    return {"precisions": rows, "signal_per_second": signal, "best": best}


def _signal(rows: Mapping[str, Mapping[str, Any]], shape: str) -> dict[str, float]:
    """Signal per second at a shape, by precision."""
    return {name: round(signal_per_second(row["correlation"], row["ms"][shape]), 2) for name, row in rows.items()}


def correlations(engines: Mapping[Precision, Engine], batches: Sequence[Batch], directions: int) -> dict[Precision, float]:
    """Of every engine's body scalars, at its calibrated eps, with float32's at a small one; not centred, as in calibration."""

    def scalars(engine: Engine, log2_eps: int) -> np.ndarray:
        plan = one_level(engine.manifest, {"body": log2_eps}, FIRST_SEED, directions)
        return np.concatenate([half_differences(engine.probe(plan, batch)) for batch in batches])

    units = [group.log2_unit for group in engines["fp32"].manifest.groups if group.kind == "body"]
    true = scalars(engines["fp32"], max(SMALL_LOG2_EPS, *units))
    found = {precision: scalars(engine, engine.manifest.log2_eps("body")) for precision, engine in engines.items()}
    return {precision: float(each @ true / (np.linalg.norm(each) * np.linalg.norm(true) or 1)) for precision, each in found.items()}


def _in_child(folder: Path, precision: Precision) -> dict[str, float]:
    """Resident memory of a process that holds nothing but this base."""
    return figures("coordinator.bench.precisions", folder, precision)


def _memory(bundle: Bundle) -> dict[str, float]:
    """Resident MB after the sessions are loaded, and after one probe of the first shape; in this process."""
    engine = Engine(bundle, bundle.parameters(), max_rows=UNSPLIT)
    loaded = _resident_mb()
    probe_pair(engine, random_batch(bundle.manifest.task, bundle.tokenizer().get_vocab_size(), *SHAPES[0]))()
    return {"loaded_mb": loaded, "resident_mb": _resident_mb()}


def _resident_mb() -> float:
    return round(psutil.Process().memory_info().rss / 1e6, 1)


def told(found: dict[str, Any]) -> str:
    """Two tables for a person; the best precision of each shape is starred."""
    shapes = list(found["best"])
    lines = ["      bundle MB  loaded MB  with 8x32     eps  correlation" + "".join(f"{'ms ' + shape:>10}" for shape in shapes)]
    for name, row in found["precisions"].items():
        eps = f"2**{row['log2_eps_body']}"
        held = f"{name:6}{row['bundle_mb']:9.1f}{row['loaded_mb']:11.1f}{row['resident_mb']:11.1f}{eps:>8}{row['correlation']:13.3f}"
        lines.append(held + "".join(f"{row['ms'][shape]:10.1f}" for shape in shapes))
    lines += ["", "signal (squared correlation of the body's scalars) per second; * the most"]
    for name in found["precisions"]:
        marks = [f"{found['signal_per_second'][shape][name]:.1f}{'*' if found['best'][shape] == name else ' '}" for shape in shapes]
        lines.append(f"{name:58}" + "".join(f"{mark:>10}" for mark in marks))
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("precision", choices=PRECISIONS)
    given = parser.parse_args()
    print(json.dumps(_memory(open_bundle(given.bundle, given.precision))))
