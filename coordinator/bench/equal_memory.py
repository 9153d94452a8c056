"""`scripts/bench equal-memory`: the whole of MiniLM trained forward-only, against what backprop can train of it in the same memory.

Memory is what a process takes beyond its imports, so that the size of PyTorch's libraries decides nothing. Backprop gets as many blocks as
fit into what the forward-only run took, with all weights of those blocks trained, or with adapters. Both have one thread.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zo.batches import Batch, collate, encode
from zo.bundle import Bundle, open_bundle
from zo.evaluation import batches
from zo.examples import Example, read
from zo.memory import process
from zo.sampling import Sampler

EXAMPLES, VALIDATION, MAX_ROWS, TRIAL = 8, 400, 384, 5
LOOKS = {*range(1, 8, 2), *range(8, 40, 8), *range(40, 10_000, 40)}  # rounds after which the forward-only run is scored
RATES = {"full": 5e-5, "adapters": 1e-3}
Trace = list[tuple[float, float]]  # seconds of training, balanced accuracy


def measure(bundle: Path, model: Path, data: Path, seconds: float, plot: Path | None) -> dict[str, Any]:
    """Memory, depth and traces of all three. seconds: of training, each."""
    whole = open_bundle(bundle).manifest.dimensions.blocks
    rows = {"forward-only": {"blocks": whole} | _child("forward", bundle, model, data, seconds)}
    allowed = rows["forward-only"]["memory_mb"]
    for way in RATES:
        depth = next((blocks for blocks in range(whole, -1, -1) if _memory(bundle, model, data, way, blocks) <= allowed), None)
        name = f"backprop, {way}, Adam"
        rows[name] = {"blocks": depth} if depth is None else {"blocks": depth} | _child(way, bundle, model, data, seconds, depth)
    rows |= {
        f"whole, {name}": {"memory_mb": _memory(bundle, model, data, way, whole)} for way in RATES for name in [f"backprop, {way}, Adam"]
    }
    if plot:
        _draw({name: row["trace"] for name, row in rows.items() if "trace" in row}, plot)
    return {"rows": rows}


def told(found: dict[str, Any]) -> str:
    """A table for a person."""
    lines = ["                              blocks   MB beyond imports   balanced accuracy after seconds of training"]
    for name, row in found["rows"].items():
        blocks = "" if "trace" not in row and "memory_mb" in row else str(row.get("blocks"))
        points = "  ".join(f"{accuracy:.3f} ({seconds:.0f} s)" for seconds, accuracy in _few(row.get("trace", [])))
        lines.append(f"{name:30}{blocks:>6}{row.get('memory_mb', float('nan')):18.1f}   {points}")
    return "\n".join(lines)


def _few(trace: Trace) -> Trace:
    return [trace[round(place)] for place in np.linspace(0, len(trace) - 1, 6)] if len(trace) > 6 else trace


def _memory(bundle: Path, model: Path, data: Path, way: str, blocks: int) -> float:
    return _child(way, bundle, model, data, 0.0, blocks)["memory_mb"]


def _child(what: str, bundle: Path, model: Path, data: Path, seconds: float, blocks: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "coordinator.bench.equal_memory", what, str(bundle), str(model), str(data), str(seconds), str(blocks)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def _forward(given: argparse.Namespace) -> dict[str, Any]:
    """One device that trains as an agent alone does, with the engine's usual runs."""
    from coordinator.config import Round, RunConfig
    from coordinator.simulation import Simulation
    from zo.recipe import Probe

    before, bundle = process.resident(), open_bundle(given.bundle)
    private, validation = _data(bundle, given.data)
    config = RunConfig(str(given.bundle), rounds=10**6, round=Round(1, 1), probe=Probe(examples=EXAMPLES))
    simulation = Simulation(bundle, config, [private], 0)
    simulation.engine.max_rows = MAX_ROWS

    points = simulation.run(validation, LOOKS, lambda point: point.seconds >= given.seconds)
    trace = [(round(point.seconds, 2), round(point.metrics["balanced_accuracy"], 4)) for point in points]
    return {"memory_mb": round((process.peak() - before) / 1e6, 1), "trace": trace}


def _backprop(given: argparse.Namespace) -> dict[str, Any]:
    from coordinator.bench.backprop_torch import BackpropTorch

    before, bundle = process.resident(), open_bundle(given.bundle)
    private, validation = _data(bundle, given.data)
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    labels = collate([row for text in task.labels for row in encode(Example(text, 0), task, tokenizer)], task)
    sampler = Sampler([row for each in private for row in encode(each, task, tokenizer)], task, True, np.random.default_rng(0))
    trained = BackpropTorch(given.model, given.blocks, given.what == "adapters", labels, RATES[given.what])
    trace = _train(lambda: trained.train(sampler.draw(EXAMPLES)), lambda: trained.balanced_accuracy(validation), given.seconds)
    return {"memory_mb": round((process.peak() - before) / 1e6, 1), "trace": trace}


def _data(bundle: Bundle, data: Path) -> tuple[list[Example], list[Batch]]:
    return read(data / "train.jsonl", bundle.manifest.task).examples, batches(bundle, data / "validation.jsonl", VALIDATION)


def _train(step: Callable[[], object], score: Callable[[], float], seconds: float) -> Trace:
    """Steps until the seconds are used up, TRIAL of them at least; scores between, which are not counted, at growing intervals."""
    trace, spent = [(0.0, round(score(), 4))], 0.0
    looks: Iterator[float] = (seconds * (place / 20) ** 2 for place in itertools.count(1))
    look = next(looks)
    for number in itertools.count(1):
        began = time.perf_counter()
        step()
        spent += time.perf_counter() - began
        if spent >= look:
            trace.append((round(spent, 2), round(score(), 4)))
            look = next(each for each in looks if each > spent)
        if number >= TRIAL and spent >= seconds:
            return trace
    raise AssertionError("it counts for ever")


def _draw(traces: dict[str, Trace], plot: Path) -> None:
    import matplotlib

    matplotlib.use("svg" if plot.suffix == ".svg" else "agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, trace in traces.items():
        axes.plot(*zip(*trace, strict=True), "-" if name == "forward-only" else "--", label=name)
    axes.set(xlabel="seconds of training, one thread", ylabel="balanced accuracy, validation file")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(plot)
    pyplot.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["forward", *RATES])
    for name in ("bundle", "model", "data"):
        parser.add_argument(name, type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("blocks", type=int)
    arguments = parser.parse_args()
    print(json.dumps(_forward(arguments) if arguments.what == "forward" else _backprop(arguments)))
