"""Simulated fleets of devices of unequal rank, each run of one side, seed and rate: what `scripts/bench ranks` compares."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coordinator.bench.flexlora import Flex
from coordinator.bench.rank_search import Loss, Losses
from coordinator.bench.rank_sides import DEVICES, RANKS, SIDES, Side
from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.config import Ranks, Round, RunConfig
from coordinator.demo import shares
from coordinator.simulation import Simulation
from zo import evaluation, examples
from zo.bundle import Bundle, open_bundle
from zo.manifest import Precision, Task, TrainableSet
from zo.rates import decay, default_rate
from zo.recipe import Probe, Rate

BATCH, VALIDATION, UNEVEN = 4, 256, 0.3
TRAINED_A = "trained-a"


def build_bundles(model: Path, folder: Path, data: Path, task: Task, precision: Precision, top_blocks: int) -> None:
    """All that the sides train, with adapters at a scale of 1: one bundle by ranks, and one whose A is trained as well."""
    rows = examples.read(data / "validation.jsonl", task).examples
    for ranks in dict.fromkeys(side.bundle for side in SIDES.values()):
        build(model, folder / _name(ranks), task, _training("lora-fa", precision, ranks, top_blocks), rows)
    build(model, folder / TRAINED_A, task, _training("lora", precision, RANKS, top_blocks), rows)


def _training(trainable: TrainableSet, precision: Precision, ranks: tuple[int, ...], top_blocks: int) -> Training:
    return Training(trainable, precision, alpha=float(ranks[-1]), top_blocks=top_blocks, ranks=ranks)


def _name(ranks: tuple[int, ...]) -> str:
    return "-".join(map(str, ranks))


def _loss(metrics: Mapping[str, float]) -> Loss:
    return Loss(metrics["loss"], metrics["balanced_loss"])


class Fleets:
    """Runs on one data set. folder: of the bundles. balanced: whether devices draw their classes equally often."""

    def __init__(self, folder: Path, data: Path, rounds: int, balanced: bool) -> None:
        self.rounds, self.balanced = rounds, balanced
        self.bundles = {side.bundle: open_bundle(folder / _name(side.bundle)) for side in SIDES.values()}
        self.trained_a = open_bundle(folder / TRAINED_A)
        task = self.trained_a.manifest.task
        self._private = examples.read(data / "train.jsonl", task).examples
        self._validation = evaluation.batches(self.bundles[RANKS], data / "validation.jsonl", VALIDATION)
        self.usual = default_rate(task)

    def run(self, side: Side, kind: type[Simulation], seed: int, rate: float, prefixes: Sequence[int]) -> Losses:
        """Validation losses at the end, of these prefixes. rate: times the default. seed: of shares, batches and directions."""
        opened = self.bundles[side.bundle]
        bundle = Bundle(opened.folder, replace(opened.manifest, run_key=seed))
        blind = tuple(float(rank == side.bundle[-1]) for rank in side.bundle)
        config = RunConfig(
            str(bundle.folder),
            rounds=self.rounds,
            held_out_every=0,  # the autopilot leaves rates and the run as they are
            round=Round(len(side.devices), len(side.devices)),
            algorithm="mezo",
            probe=Probe(directions=1, examples=BATCH),
            rate=Rate(body=rate * self.usual, head=0.0),
            ranks=Ranks() if side.truncated else Ranks(blind),
        )
        fleet = kind(bundle, config, self.shares(seed)[-len(side.devices) :], seed, ranks=side.devices, balanced=self.balanced)
        while not fleet.over:
            fleet.step()
        found = {}
        for rank in prefixes:
            with fleet.engine.cut(rank):
                found[rank] = _loss(evaluation.evaluate(fleet.engine, self._validation))
        return found

    def flex(self, seed: int, rate: float, prefixes: Sequence[int]) -> Losses:
        """The same of FlexLoRA."""
        fleet = Flex(self.trained_a, self.bundles[RANKS].manifest, DEVICES, self.shares(seed), seed, BATCH, self.balanced)
        for number in range(self.rounds):
            fleet.step(rate * self.usual * decay(Rate(), number + 1, self.rounds))
        return {rank: _loss(fleet.metrics(self._validation, rank)) for rank in prefixes}

    def start(self) -> Loss:
        """Before training."""
        opened = self.bundles[RANKS]
        fleet = Simulation(opened, RunConfig(str(opened.folder), probe=Probe(examples=BATCH)), self.shares(0), 0)
        return _loss(evaluation.evaluate(fleet.engine, self._validation))

    def shares(self, seed: int) -> list[list[examples.Example]]:
        """Of the devices."""
        return shares.divide(self._private, len(DEVICES), seed, UNEVEN)
