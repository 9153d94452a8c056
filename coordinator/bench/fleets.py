"""Simulated fleets on real data, each run at one shape, rate and batch size: what `scripts/bench split` compares."""

import dataclasses
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np

from coordinator.bench.counting import Counting
from coordinator.config import Round, RunConfig
from coordinator.demo import shares
from coordinator.simulation import Point, Simulation
from zo import evaluation, examples, split
from zo.bundle import Bundle
from zo.plan import Shape
from zo.planning import lowest_stage, sized_tree, sizes
from zo.rates import default_rate
from zo.recipe import Algorithm, Probe, Rate, Split
from zo.timing import stage_ns, turns

DEVICES, EXAMPLES, VALIDATION = 8, 8, 256
TURNS = 15


@dataclasses.dataclass(frozen=True)
class Trace:
    """One run: validation loss against full forward passes and seconds of a device. examples: in a batch."""

    shape: Shape
    rate: float
    examples: int
    forwards: tuple[float, ...]
    seconds: tuple[float, ...]
    losses: tuple[float, ...]

    def least(self) -> dict[str, float]:
        """The least loss, and of which settings."""
        return {"rate": self.rate, "batch": self.examples, "loss": round(min(self.losses), 4)}

    def cost(self, loss: float) -> tuple[float, float]:
        """Forward passes and seconds until the validation loss was first this low; infinite where it never was."""
        reached = next((place for place, each in enumerate(self.losses) if each <= loss), None)
        return (self.forwards[reached], self.seconds[reached]) if reached is not None else (float("inf"), float("inf"))


class Fleets:
    """Runs on one data set with one bundle.

    rounds: of plain MeZO with one direction and batches of EXAMPLES. shape: of the other side; None plans it. most: validation
    examples used; 0 uses all.
    """

    def __init__(self, bundle: Bundle, data: Path, rounds: int, shape: Shape | None, most: int = VALIDATION) -> None:
        self.bundle, self.rounds, manifest = bundle, rounds, bundle.manifest
        self._private = examples.read(data / "train.jsonl", manifest.task).examples
        self._validation = evaluation.batches(bundle, data / "validation.jsonl", most)
        self._log2_eps = sizes(Probe(), manifest)
        fleet = self._simulation(Shape((1,)), 0, Rate())
        taken = stage_ns(fleet.engine, fleet.draw(), TURNS)
        self._shares = split.shares(manifest, taken)
        self.shape = shape or split.choose(split.plan_table(manifest, self._log2_eps, 1, taken)).shape
        self.plain = Shape(self.shape.counts[:1])

    def run(
        self,
        shape: Shape,
        seed: int,
        rate: float,
        body: float = 1.0,
        batch: int = EXAMPLES,
        rounds: int | None = None,
        looks: Collection[int] | None = None,
        target: float = 0.0,
    ) -> Trace:
        """rate: times the default. body: times that, for the body. rounds: as many as cost what the fleet's of plain MeZO do, if left out.
        looks: rounds after which the validation loss is measured. target: validation loss at which the run is over.
        """
        step = self.forwards(shape) * batch / EXAMPLES
        rounds = rounds or max(1, round(self.rounds * 2 / step))
        usual = rate * default_rate(self.bundle.manifest.task)
        simulation = self._simulation(shape, seed, Rate(body=usual * body, head=usual), batch, rounds)
        looked = simulation.run(self._validation, _looks(rounds) if looks is None else looks, lambda p: p.metrics["loss"] <= target)
        points: list[Point] = list(looked)
        losses = tuple(point.metrics["loss"] for point in points)
        forwards = tuple(DEVICES * step * point.round for point in points)
        return Trace(shape, rate, batch, forwards, tuple(point.seconds for point in points), losses)

    def forwards(self, shape: Shape) -> float:
        """Full forward passes of a step, as predicted."""
        return split.forwards(shape, self._shares.cost, lowest_stage(self.bundle.manifest, self._log2_eps))

    def measured(self, repeats: int) -> dict[str, float]:
        """A split step over a plain one: branches counted as they run, and milliseconds in alternating turns."""
        simulation = self._simulation(self.plain, 0, Rate())
        engine, batch = simulation.engine, simulation.draw()
        nodes = [sized_tree(Probe(), self.bundle.manifest, shape) for shape in (self.plain, self.shape)]
        taken = np.array(turns([partial(engine.probe, node, batch) for node in nodes], repeats))
        counted = []
        for node in nodes:
            stages, engine.stages = engine.stages, (counting := Counting(engine.stages, batch))  # type: ignore[assignment]
            engine.probe(node, batch)
            engine.stages = stages
            counted.append(sum(cost * counting.branches[stage] for stage, cost in enumerate(self._shares.cost)))
        predicted = self.forwards(self.shape) / self.forwards(self.plain)
        ratios = {"forward_ratio": counted[1] / counted[0], "forward_ratio_predicted": predicted}
        return {name: round(each, 4) for name, each in ratios.items()} | {"time_ratio": round(float(np.median(taken[1] / taken[0])), 3)}

    def _simulation(self, shape: Shape, seed: int, rate: Rate, batch: int = EXAMPLES, rounds: int = 1) -> Simulation:
        config = RunConfig(
            str(self.bundle.folder),
            rounds=rounds,
            held_out_every=0,  # the autopilot leaves rates and the run as they are
            round=Round(DEVICES, DEVICES),
            algorithm=_algorithm(shape),
            probe=Probe(directions=shape.counts[0], examples=batch),
            split=Split(shape.cuts, shape.counts[1:], shape.joint, shape.clean),
            rate=rate,
        )
        return Simulation(self.bundle, config, shares.divide(self._private, DEVICES, seed), seed)


def _algorithm(shape: Shape) -> Algorithm:
    return "fedspzo" if shape.cuts else "mezo"


def _looks(rounds: int) -> set[int]:
    """Rounds after which the validation loss is measured: the first few, and some hundred later ones."""
    return {*range(1, 8), *range(8, 20, 3), *range(20, rounds, max(10, rounds // 100))}
