"""`scripts/bench activation`: some blocks a device against all on every device, with a frozen head (ZorBA, arXiv 2603.04436).

The rule, fixed before the runs: simulated fleets with the same shares and batches, all under the autopilot, as runs are, from one rate
(the default, unless another is given for all). All-active has so many rounds, the others as many, and once more MOST times as many.
What counts is the loss on the whole validation file at the end, less all-active's of the same seed: its mean and standard error.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any, NamedTuple

from coordinator import task as task_file
from coordinator.allocation import Base, blocks, by_block, turn
from coordinator.bench import workload
from coordinator.bench.standard_error import compared
from coordinator.blocks import asked
from coordinator.build.layers import Training
from coordinator.config import Round, RunConfig
from coordinator.demo import shares
from coordinator.simulation import Simulation
from zo import evaluation, examples
from zo.bundle import Bundle, open_bundle
from zo.manifest import PRECISIONS, Precision
from zo.messages import Profile
from zo.plan import WorkPlan
from zo.rates import default_rate
from zo.recipe import Probe, Rate

DEVICES = 8
ROOMS = (1, 1, 2, 2, 3, 3, 6, 6)  # blocks that a device has room for
LOWEST = (0, 0, 1, 2, 3, 4, 5, 5)  # block below which a device is too slow
MOST = 1.3  # of all-active's rounds
DEADLINE = 60.0


def options(parser: argparse.ArgumentParser) -> None:
    workload.add_data(parser)
    workload.add_model(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="int8", help="[int8]")
    parser.add_argument("--rounds", type=int, default=50, help="of 8 devices with all blocks, 2 probes each [50]")
    parser.add_argument("--seeds", type=int, default=8, help="[8]")
    parser.add_argument("--rate", type=float, default=1.0, help="that all sides begin with, times the default [1]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model, task = workload.model(given), task_file.of_data(given.data, 64)
    bundle = workload.build_bundle(model, folder / "bundle", given.data, task, Training("lora-fa", given.precision), 6)
    return measure(Fleets(bundle, given.data, given.rounds, given.rate), given.seeds)


class Roomy(Simulation):
    """Devices that have room for so many blocks each, whatever they tell: memory of adapters hardly differs by block."""

    def work(self, device: int, precision: Precision) -> WorkPlan | None:
        groups = blocks(self.engine.manifest)
        room = min(ROOMS[device], len(groups))
        tried = turn(by_block(groups, self.rounds.course.planner.slopes), room, self.rounds.round, device)
        return self.rounds.plan(device, precision, self._profiles[device].stage_ns, tuple(id for block in tried for id in groups[block]))


Make = Callable[[RunConfig, int], Simulation]


class Job(NamedTuple):
    """One run. multiple: of the rounds of all-active."""

    side: str
    multiple: float
    seed: int


SIDES = (("all", 1.0), ("by memory", 1.0), ("by memory", MOST), ("by time", 1.0), ("by time", MOST))


class Fleets:
    """Runs with one bundle on one data set. rate: that they begin with, times the default."""

    def __init__(self, bundle: Bundle, data: Path, rounds: int, rate: float = 1.0) -> None:
        self.bundle, self.data, self.rounds, self.rate = bundle, data, rounds, rate
        self._private = examples.read(data / "train.jsonl", bundle.manifest.task).examples
        self._validation = evaluation.batches(bundle, data / "validation.jsonl", 0)
        self.sides: dict[str, Make] = {"all": self._all, "by memory": self._by_memory, "by time": self._by_time}

    def loss(self, job: Job) -> float:
        """That a run ends at."""
        *_, last = self.side(job).run(self._validation, ())
        return float(last.metrics["loss"])

    def start(self) -> float:
        """The loss before any round."""
        return float(next(iter(self.side(Job("all", 1.0, 0)).run(self._validation, ()))).metrics["loss"])

    def side(self, job: Job) -> Simulation:
        """A fleet that has not begun."""
        config = RunConfig(
            str(self.bundle.folder),
            rounds=max(1, round(self.rounds * job.multiple)),
            least_gain=0.0,  # all rounds, however little they bring
            round=Round(DEVICES, DEVICES, DEADLINE),
            algorithm="mezo",
            probe=Probe(directions=1),
            rate=Rate(body=self.rate * default_rate(self.bundle.manifest.task), head=0.0),
        )
        return self.sides[job.side](config, job.seed)

    def _shares(self, seed: int) -> list[Any]:
        return shares.divide(self._private, DEVICES, seed)

    def _all(self, config: RunConfig, seed: int) -> Simulation:
        return Simulation(self.bundle, dataclasses.replace(config, blocks="all"), self._shares(seed), seed)

    def _by_memory(self, config: RunConfig, seed: int) -> Simulation:
        return Roomy(self.bundle, config, self._shares(seed), seed)

    def _by_time(self, config: RunConfig, seed: int) -> Simulation:
        base = Base(self.bundle.manifest, asked(config))
        told = [_slow(base, len(self.bundle.manifest.stages), lowest) for lowest in LOWEST]
        return Simulation(self.bundle, config, self._shares(seed), seed, told)


def _slow(base: Base, stages: int, lowest: int) -> Profile:
    """Of a device that is just fast enough for the blocks from `lowest` on."""
    second = Profile(0, (10**9,) * stages, (10**9,) * stages)
    each = (int(0.99e9 * DEADLINE / base.seconds(second)[base.stages[min(lowest, len(base.stages) - 1)]]),) * stages
    return Profile(0, each, each)


def measure(fleets: Fleets, seeds: int) -> dict[str, Any]:
    """All figures; as many runs at once as there are processors."""
    jobs = [Job(side, multiple, seed) for side, multiple in SIDES for seed in range(seeds)]
    arguments = (fleets.bundle.folder, fleets.data, fleets.rounds, fleets.rate)
    with ProcessPoolExecutor(cpu_count(), get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(partial(_loss, arguments), jobs), strict=True))
    setting = {"rounds": fleets.rounds, "devices": DEVICES, "rooms": ROOMS, "lowest": LOWEST, "rate": fleets.rate}
    return setting | {"start": round(fleets.start(), 4)} | summed(found)


def summed(found: Mapping[Job, float]) -> dict[str, Any]:
    """Losses by side and seed, and how much higher than all-active's of the same seed: mean, standard error, and two of them above."""
    by_seed: dict[tuple[str, float], dict[int, float]] = {}
    for job, loss in found.items():
        by_seed.setdefault(job[:2], {})[job.seed] = loss
    told: dict[str, Any] = {}
    for (side, multiple), losses in by_seed.items():
        name = side.replace(" ", "_") + (f"_{multiple:g}" if multiple != 1 else "")
        seeds = sorted(losses)
        told[f"loss_{name}"] = {"mean": round(statistics.fmean(losses.values()), 4), "seeds": [round(losses[seed], 4) for seed in seeds]}
        if side != "all":
            told[f"excess_{name}"] = compared([losses[seed] for seed in seeds], [by_seed["all", 1.0][seed] for seed in seeds])
    return told


@lru_cache(maxsize=1)  # once for all jobs of a process
def _opened(folder: Path, data: Path, rounds: int, rate: float) -> Fleets:
    return Fleets(open_bundle(folder), data, rounds, rate)


def _loss(arguments: tuple[Path, Path, int, float], job: Job) -> float:
    loss = _opened(*arguments).loss(job)
    print(f"{job}: {loss:.4f}", file=sys.stderr, flush=True)  # runs take long: where they stand
    return loss


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    probes = 2 * DEVICES * found["rounds"]
    every = found["loss_all"]
    lines = [
        f"validation loss {found['start']} -> {every['mean']} after {probes} probes of all blocks on every device, rate x {found['rate']:g}"
    ]
    for name, text in (
        ("by_memory", f"room for {list(found['rooms'])} blocks"),
        ("by_time", f"too slow for blocks below {list(found['lowest'])}"),
    ):
        lines.append(text)
        for multiple, end in ((1.0, ""), (MOST, f"_{MOST:g}")):
            loss, more = found[f"loss_{name}{end}"], found[f"excess_{name}{end}"]
            lines.append(
                f"  after {multiple * probes:.0f} probes {loss['mean']}: {more['mean']:+} +- {more['se']} (upper {more['upper']:+})"
            )
    return "\n".join(lines)
