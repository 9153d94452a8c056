"""`scripts/bench split`: what equal progress costs plain MeZO and FedSPZO (arXiv 2502.10239), in simulated fleets on real data.

Cost is counted in forward passes of the full model on one batch, and in seconds of the devices' work. Both sides get the same data,
shares, batches and probe sizes, and each the best rate of the same sweep.
"""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.config import Round, RunConfig
from coordinator.demo import shares
from coordinator.simulation import Point, Simulation
from zo import aggregation, evaluation, examples, split
from zo.bundle import Bundle, open_bundle
from zo.engine.stages import Stages, Values
from zo.manifest import Task
from zo.plan import Shape
from zo.planning import lowest_stage, one_level, tree
from zo.recipe import Algorithm, Probe, Rate, Split
from zo.timing import turns

DEVICES, VALIDATION = 8, 256
LOOKS = {*range(1, 8), *range(8, 20, 3), *range(20, 10_000, 10)}  # rounds after which the validation loss is measured
SWEEP = (0.5, 1.0, 2.0, 4.0, 8.0)  # times the default rate
TURNS = 15


@dataclasses.dataclass(frozen=True)
class Trace:
    """One run: validation loss against full forward passes and seconds of a device."""

    algorithm: Algorithm
    rate: float
    shape: Shape
    forwards: tuple[float, ...]
    seconds: tuple[float, ...]
    losses: tuple[float, ...]

    def cost(self, loss: float) -> tuple[float, float]:
        """Forward passes and seconds until the validation loss was first this low; infinite where it never was."""
        reached = next((place for place, each in enumerate(self.losses) if each <= loss), None)
        return (self.forwards[reached], self.seconds[reached]) if reached is not None else (float("inf"), float("inf"))


class Fleets:
    """Runs on one data set with one bundle."""

    def __init__(self, bundle: Bundle, data: Path, rounds: int, shape: Shape | None) -> None:
        self.bundle, self.rounds = bundle, rounds
        self._private = examples.read(data / "train.jsonl", bundle.manifest.task).examples
        self._validation = evaluation.batches(bundle, data / "validation.jsonl", VALIDATION)
        self.shape = shape or self._planned()

    def run(
        self, algorithm: Algorithm, seed: int, rate: float, body: float = 1.0, looks: Collection[int] = LOOKS, target: float = 0.0
    ) -> Trace:
        """rate: times the default. body: times that, for the body. target: validation loss at which the run is over."""
        usual = rate * aggregation.default_rate(self.bundle.manifest.task)
        simulation = self._simulation(algorithm, seed, Rate(body=usual * body, head=usual))
        points: list[Point] = list(simulation.run(self._validation, looks, lambda point: point.metrics["loss"] <= target))
        shape = simulation.rounds.planner.usual
        step = self.forwards(shape) / (2 * shape.counts[0])  # of a probe of the lowest part
        losses = tuple(point.metrics["loss"] for point in points)
        return Trace(algorithm, rate, shape, tuple(step * p.probes for p in points), tuple(p.seconds for p in points), losses)

    def forwards(self, shape: Shape) -> float:
        """Full forward passes of a step, as predicted."""
        return split.forwards(shape, self._shares.cost, self._lowest)

    def measured(self, repeats: int) -> dict[str, float]:
        """A split step over a plain one: branches counted as they run, and milliseconds in alternating turns."""
        simulation = self._simulation("mezo", 0, Rate())
        engine, batch = simulation.engine, simulation.draw()
        log2_eps = aggregation.sizes(Probe(), self.bundle.manifest)
        plain, cut = one_level(self.bundle.manifest, log2_eps, 0, self.shape.counts[0]), tree(self.bundle.manifest, log2_eps, self.shape)
        taken = np.array(turns([partial(engine.probe, node, batch) for node in (plain, cut)], repeats))
        counted = []
        for node in (plain, cut):
            stages, engine.stages = engine.stages, (counting := Counting(engine.stages))  # type: ignore[assignment]
            engine.probe(node, batch)
            engine.stages = stages
            counted.append(sum(cost * counting.branches[stage] for stage, cost in enumerate(self._shares.cost)))
        predicted = self.forwards(self.shape) / self.forwards(Shape(self.shape.counts[:1]))
        ratios = {"forward_ratio": counted[1] / counted[0], "forward_ratio_predicted": predicted}
        return {name: round(each, 4) for name, each in ratios.items()} | {"time_ratio": round(float(np.median(taken[1] / taken[0])), 3)}

    @property
    def _lowest(self) -> int:
        return lowest_stage(self.bundle.manifest, aggregation.sizes(Probe(), self.bundle.manifest))

    def _planned(self) -> Shape:
        """The shape that the planner chooses here; the times of the stages are kept for the cost of all runs."""
        simulation = self._simulation("fedspzo", 0, Rate())
        self.rows = simulation.rounds.planner.table(self.bundle.manifest.precision, simulation.stage_ns)
        return split.choose(self.rows).shape

    def _simulation(self, algorithm: Algorithm, seed: int, rate: Rate) -> Simulation:
        cut = Split(self.shape.cuts, self.shape.counts[1:], self.shape.joint) if hasattr(self, "shape") and self.shape.cuts else Split()
        config = RunConfig(
            str(self.bundle.folder),
            rounds=self.rounds,
            round=Round(DEVICES, DEVICES),
            algorithm=algorithm,
            probe=Probe(directions=self.shape.counts[0] if hasattr(self, "shape") else 1),
            split=cut,
            rate=rate,
        )
        simulation = Simulation(self.bundle, config, shares.divide(self._private, DEVICES, seed), seed)
        if not hasattr(self, "_shares"):
            self._shares = split.shares(self.bundle.manifest, aggregation.sizes(Probe(), self.bundle.manifest), simulation.stage_ns)
        return simulation


class Counting:
    """Stages that count what they run: branches of the whole batch, by stage."""

    def __init__(self, stages: Stages) -> None:
        self._stages, self.branches, self.classes, self.ranks = stages, Counter[int](), stages.classes, stages.ranks
        self._examples: int | None = None

    def __len__(self) -> int:
        return len(self._stages)

    def run(self, values: Values, first: int, stop: int, tensors: Values, logits: bool = False) -> Values:
        """As Stages.run."""
        for stage in range(first, stop):
            values = self._stages.run(values, stage, stage + 1, tensors, logits)
            self.branches[stage] += self._width(values, stage, tensors)
        return values

    def _width(self, values: Values, stage: int, tensors: Values) -> int:
        """Branches times copies of the batch in the last run of a stage."""
        if "loss" in values and stage == len(self._stages) - 1:
            rows, branches = values["labels"].shape()[0], values["loss"].shape()[0]
        else:
            last = [value for name, value in values.items() if name.startswith("hidden")][-1]
            branches, rows = last.shape()[:2]
        self._examples = self._examples or rows
        return branches * rows // self._examples


def build_bundle(model: Path, folder: Path, data: Path, task: Task, training: Training) -> Bundle:
    """A bundle calibrated on the validation file."""
    build(model, folder, task, training, examples.read(data / "validation.jsonl", task).examples)
    return open_bundle(folder)


def savings(fleets: Fleets, seeds: Sequence[int]) -> tuple[list[dict[str, Any]], list[Trace]]:
    """By seed: the loss that plain MeZO comes to at its best rate, and what that loss costs both sides. And all runs."""
    found, traces = [], []
    for seed in seeds:
        sides = {"mezo": [fleets.run("mezo", seed, rate) for rate in SWEEP]}
        target = min(min(trace.losses) for trace in sides["mezo"])
        sides["fedspzo"] = [fleets.run("fedspzo", seed, rate, target=target) for rate in SWEEP]
        costs = {name: min((trace.cost(target), trace.rate) for trace in each) for name, each in sides.items()}
        (plain, plain_seconds), plain_rate = costs["mezo"]
        (cut, cut_seconds), cut_rate = costs["fedspzo"]
        row = {"seed": seed, "loss": round(target, 4), "forwards": {"mezo": round(plain, 1), "fedspzo": round(cut, 1)}}
        row |= {"rate": {"mezo": plain_rate, "fedspzo": cut_rate}, "saving": round(plain / cut, 2)}
        found.append(row | {"saving_seconds": round(plain_seconds / cut_seconds, 2)})
        traces += [trace for each in sides.values() for trace in each]
    return found, traces


def body_gain(fleets: Fleets, seeds: Sequence[int]) -> dict[str, Any]:
    """Validation loss with the head's directions only, less that with both, at equal probes and batches; paired by seed."""
    losses = [[fleets.run("fedspzo", seed, 1.0, body, looks=()).losses[-1] for body in (0.0, 1.0)] for seed in seeds]
    gains = [head - both for head, both in losses]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    mean = {"mean": round(statistics.fmean(gains), 4), "se": round(error, 4)}
    return mean | {"losses": {"head only": [round(each[0], 4) for each in losses], "both": [round(each[1], 4) for each in losses]}}


def measure(fleets: Fleets, seeds: int, body_seeds: int, plot: Path | None) -> dict[str, Any]:
    """All of it. plot: where a picture of loss against compute is written."""
    found: dict[str, Any] = {"shape": dataclasses.asdict(fleets.shape), "rounds": fleets.rounds, "devices": DEVICES}
    found |= fleets.measured(TURNS)
    rows, traces = savings(fleets, range(seeds)) if seeds else ([], [])
    if rows:
        found |= {"savings": rows, "median_saving": statistics.median(row["saving"] for row in rows)}
    if body_seeds:
        found["body_gain"] = body_gain(fleets, range(body_seeds))
    if plot and traces:
        draw(traces, plot)
    return found


def draw(traces: Sequence[Trace], path: Path) -> None:
    """Validation loss against full forward passes; a line a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for trace in traces:
        colour, label = ("tab:orange", "plain MeZO") if trace.algorithm == "mezo" else ("tab:blue", "FedSPZO, until it has its best loss")
        axes.plot(trace.forwards[1:], trace.losses[1:], color=colour, alpha=0.6, label=label)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys(), loc="upper right")
    axes.set(xlabel="forward passes of the full model (all devices)", ylabel="validation loss, nats", xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    shape = found["shape"]
    lines = [
        f"directions {' x '.join(map(str, shape['counts']))}, cut before stages {list(shape['cuts'])}{', joint' if shape['joint'] else ''}"
    ]
    lines.append(
        f"a split step over a plain one: {found['forward_ratio']} of its forward passes (predicted {found['forward_ratio_predicted']}),"
    )
    lines.append(f"  {found['time_ratio']} of its time")
    for row in found.get("savings", []):
        sides = {name: f"{row['forwards'][name]} forward passes (rate x {row['rate'][name]:g})" for name in ("mezo", "fedspzo")}
        lines.append(f"seed {row['seed']}: validation loss {row['loss']} for {sides['mezo']} of plain MeZO")
        lines.append(f"  and {sides['fedspzo']} of FedSPZO: {row['saving']} times as many")
    if "median_saving" in found:
        lines.append(f"median saving: {found['median_saving']}")
    if "body_gain" in found:
        gain = found["body_gain"]
        lines.append(f"validation loss that the body gains over the head alone: {gain['mean']} +- {gain['se']}")
        lines += [f"  {name}: {each}" for name, each in gain["losses"].items()]
    return "\n".join(lines)
