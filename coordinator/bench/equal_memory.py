"""`scripts/bench equal-memory`: the whole of MiniLM trained forward-only, against what backprop can train of it in the same memory.

Memory is what a process takes beyond its imports, so that the size of PyTorch's libraries decides nothing. Backprop gets as many blocks as
fit into what the forward-only run took, with all weights of those blocks trained, or with adapters. Both have one thread.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.bench import pytorch
from coordinator.bench.child_process import figures
from zo import aggregation, split
from zo.batches import Batch, collate, encode
from zo.bundle import Bundle, open_bundle
from zo.engine import Engine
from zo.estimators import Grid, scalars
from zo.evaluation import batches, evaluate
from zo.examples import Example, read
from zo.ledger import Entry
from zo.manifest import PRECISIONS
from zo.memory import process
from zo.messages import Report
from zo.planning import seeded, tree
from zo.rates import Rates
from zo.recipe import Probe, Rate
from zo.replica import Replica
from zo.sampling import Sampler
from zo.timing import stage_ns

EXAMPLES, VALIDATION, MAX_ROWS, TRIAL = 8, 300, 384, 5
GRID = Grid(14, 2.0)
RATES = {"full": 5e-5, "adapters": 1e-3}
Trace = list[tuple[float, float]]  # seconds of training, balanced accuracy


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with train, validation .jsonl and labels.json")
    parser.add_argument("--precision", choices=PRECISIONS, default="int8", help="of the forward-only run [int8]")
    parser.add_argument(
        "--memory", type=float, default=0.0, metavar="MB", help="for backprop, beyond imports [what the forward-only run took]"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, each [60]")
    parser.add_argument("--plot", type=Path, help="write a picture of accuracy over time")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from coordinator import task as task_file  # here, since the processes that are measured need none of these
    from coordinator.bench.workload import build_bundle
    from coordinator.build.layers import Training
    from coordinator.demo.packaged import packaged_model

    pytorch.require("equal-memory")
    task, training = task_file.read(given.data / "labels.json", 64), Training("lora-fa", given.precision)
    bundle = build_bundle(packaged_model(), folder / "bundle", given.data, task, training)
    return measure(bundle.folder, packaged_model(), given.data, given.seconds, given.memory, given.plot)


def measure(bundle: Path, model: Path, data: Path, seconds: float, memory: float, plot: Path | None) -> dict[str, Any]:
    """Memory, depth and traces of all three. seconds: of training, each. memory: MB for backprop; 0: what the forward-only run took."""
    whole = open_bundle(bundle).manifest.dimensions.blocks
    rows = {"forward-only": {"blocks": whole} | _child("forward", bundle, model, data, seconds)}
    allowed = memory or rows["forward-only"]["memory_mb"]
    for way in RATES:
        taken = {blocks: _memory(bundle, model, data, way, blocks) for blocks in range(whole + 1)}
        depth = max((blocks for blocks, each in taken.items() if each <= allowed), default=None)
        name = f"backprop, {way}, Adam"
        rows[name] = {"blocks": depth, "memory_mb_by_blocks": taken}
        rows[name] |= {} if depth is None else _child(way, bundle, model, data, seconds, depth)
    if plot:
        _draw({name: row["trace"] for name, row in rows.items() if "trace" in row}, plot)
    return {"allowed_mb": allowed, "rows": rows}


def told(found: dict[str, Any]) -> str:
    """A table for a person."""
    lines = ["                              blocks   MB beyond imports   balanced accuracy after seconds of the processor"]
    for name, row in found["rows"].items():
        blocks = "" if "trace" not in row and "memory_mb" in row else str(row.get("blocks"))
        points = "  ".join(f"{accuracy:.3f} ({seconds:.0f} s)" for seconds, accuracy in _few(row.get("trace", [])))
        lines.append(f"{name:30}{blocks:>6}{row.get('memory_mb', float('nan')):18.1f}   {points}")
        if "memory_mb_by_blocks" in row:
            lines.append(
                "    needs, by blocks: " + ", ".join(f"{blocks}: {size:.0f}" for blocks, size in row["memory_mb_by_blocks"].items())
            )
    return "\n".join([*lines, f"backprop was allowed {found['allowed_mb']:.0f} MB beyond imports"])


def _few(trace: Trace) -> Trace:
    return [trace[round(place)] for place in np.linspace(0, len(trace) - 1, 6)] if len(trace) > 6 else trace


def _memory(bundle: Path, model: Path, data: Path, way: str, blocks: int) -> float:
    return _child(way, bundle, model, data, 0.0, blocks)["memory_mb"]


def _child(what: str, bundle: Path, model: Path, data: Path, seconds: float, blocks: int = 0) -> dict[str, Any]:
    return figures("coordinator.bench.equal_memory", what, bundle, model, data, seconds, blocks)


class _Device:
    """A device alone that trains as `edge-agent train --local` does: parts tried apart where its own times say that it pays."""

    def __init__(self, bundle: Bundle, sampler: Sampler) -> None:
        self.engine, self._sampler, self._manifest = Engine(bundle, bundle.parameters(), max_rows=MAX_ROWS), sampler, bundle.manifest
        self._replica = Replica(self.engine.parameters, bytes(32), bundle.initial_tensors)
        self._rates = Rates.of(Probe(), Rate(), bundle.manifest)
        times = stage_ns(self.engine, sampler.draw(4))
        shape = split.choose(split.plan_table(bundle.manifest, self._rates.log2_eps, 1, times)).shape
        self._tree = tree(bundle.manifest, self._rates.log2_eps, shape)

    def step(self) -> None:
        """One round."""
        number, batch = self._replica.entry + 1, self._sampler.draw(EXAMPLES)
        node = seeded(self._tree, self._manifest.run_key, number, 0)
        found, dropped = scalars(self.engine.probe(node, batch), GRID)
        report = Report(0, 0, number, found, batch.examples, self._manifest.precision, dropped, shape=node.shape)
        factors = dict.fromkeys(self._rates.by_kind, 1.0)
        terms = aggregation.aggregate([report], [node], self._rates, factors, self._manifest, GRID)
        self._replica.apply(Entry(number, number, 1, terms))


def _forward(given: argparse.Namespace) -> dict[str, Any]:
    before, bundle = process.resident(), open_bundle(given.bundle)
    sampler, validation = _data(bundle, given.data)
    device = _Device(bundle, sampler)
    trace = _train(device.step, lambda: evaluate(device.engine, validation)["balanced_accuracy"], given.seconds)
    return {"memory_mb": round((process.peak() - before) / 1e6, 1), "trace": trace}


def _backprop(given: argparse.Namespace) -> dict[str, Any]:
    from coordinator.bench.backprop_torch import BackpropTorch

    before, bundle = process.resident(), open_bundle(given.bundle)
    sampler, validation = _data(bundle, given.data)
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    labels = collate([row for text in task.labels for row in encode(Example(text, 0), task, tokenizer)], task)
    trained = BackpropTorch(given.model, given.blocks, given.what == "adapters", labels, RATES[given.what])
    trace = _train(lambda: trained.train(sampler.draw(EXAMPLES)), lambda: trained.balanced_accuracy(validation), given.seconds)
    return {"memory_mb": round((process.peak() - before) / 1e6, 1), "trace": trace}


def _data(bundle: Bundle, data: Path) -> tuple[Sampler, list[Batch]]:
    """Batches of the private examples, and those of the validation file."""
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    rows = [row for each in read(data / "train.jsonl", task).examples for row in encode(each, task, tokenizer)]
    return Sampler(rows, task, True, np.random.default_rng(0)), batches(bundle, data / "validation.jsonl", VALIDATION)


def _train(step: Callable[[], object], score: Callable[[], float], seconds: float) -> Trace:
    """Steps until these seconds of the processor are used up, TRIAL at least; scored at growing intervals, which are not counted."""
    trace, spent = [(0.0, round(score(), 4))], 0.0
    looks: Iterator[float] = (seconds * (place / 12) ** 2 for place in itertools.count(1))
    look = next(looks)
    for number in itertools.count(1):
        began = time.process_time()
        step()
        spent += time.process_time() - began
        if 0 < look <= spent:  # nothing is scored in a trial of no seconds
            trace.append((round(spent, 2), round(score(), 4)))
            look = next(each for each in looks if each > spent)
        if number >= TRIAL and spent >= seconds:
            return trace
    raise AssertionError("it counts for ever")


def _draw(traces: dict[str, Trace], plot: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, trace in traces.items():
        axes.plot(*zip(*trace, strict=True), "-" if name == "forward-only" else "--", label=name)
    axes.set(xlabel="seconds of the processor, one thread", ylabel="balanced accuracy, validation file")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["forward", *RATES])
    for name in ("bundle", "model", "data"):
        parser.add_argument(name, type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("blocks", type=int)
    arguments = parser.parse_args()
    print(json.dumps(_forward(arguments) if arguments.what == "forward" else _backprop(arguments)))
