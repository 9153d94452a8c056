"""`scripts/bench activation`: some blocks a device against all on every device, with a frozen head (ZorBA, arXiv 2603.04436).

The rule, fixed before the runs: simulated fleets with the same shares, batches and probe sizes, rates falling as in any run. Each
side's rate is the one of a sweep that ends lowest in the mean of seeds which count for nothing else, at its count of rounds.
All-active has so many rounds, the others as many, and once more MOST times as many. What counts is the loss on the whole
validation file at the end, less all-active's of the same seed: its mean and standard error.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coordinator import task as task_file
from coordinator.allocation import Base, in_turns, moved
from coordinator.allocation.problem import Capacity
from coordinator.bench import workload
from coordinator.bench.standard_error import standard_error
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
RATES = (4, 8, 16)  # times the default
RATE_SEEDS = (1000, 1001, 1002)  # by which rates are chosen
MOST = 1.3  # of all-active's rounds
DEADLINE = 60.0


def options(parser: argparse.ArgumentParser) -> None:
    workload.add_data(parser)
    workload.add_model(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="int8", help="[int8]")
    parser.add_argument("--rounds", type=int, default=50, help="of 8 devices with all blocks, 2 probes each [50]")
    parser.add_argument("--seeds", type=int, default=8, help="[8]")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="times the default, of all sides [4 8 16]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model, task = workload.model(given), task_file.read(given.data / "labels.json", 64)
    bundle = workload.build_bundle(model, folder / "bundle", given.data, task, Training("lora-fa", given.precision), 6)
    return measure(Fleets(bundle, given.data, given.rounds), given.seeds, given.rates)


class Roomy(Simulation):
    """Devices that have room for so many blocks each, whatever they tell: memory of adapters hardly differs by block."""

    held: np.ndarray  # bool [devices, blocks], in round 0
    body: Sequence[int]  # ids of the blocks' groups

    def work(self, device: int, precision: Precision) -> WorkPlan | None:
        tried = moved(np.flatnonzero(self.held[device]), self.rounds.round, len(self.body))
        return self.rounds.plan(device, precision, self._profiles[device].stage_ns, tuple(self.body[block] for block in tried))


Make = Callable[[RunConfig, int], Simulation]


class Job(NamedTuple):
    """One run. multiple: of the rounds of all-active. rate: times the default."""

    side: str
    multiple: float
    rate: float
    seed: int


SIDES = (("all", 1.0), ("by memory", 1.0), ("by memory", MOST), ("by time", 1.0), ("by time", MOST))


class Fleets:
    """Runs with one bundle on one data set."""

    def __init__(self, bundle: Bundle, data: Path, rounds: int) -> None:
        self.bundle, self.data, self.rounds = bundle, data, rounds
        self._private = examples.read(data / "train.jsonl", bundle.manifest.task).examples
        self._validation = evaluation.batches(bundle, data / "validation.jsonl", 0)
        self.sides: dict[str, Make] = {"all": self._all, "by memory": self._by_memory, "by time": self._by_time}

    def loss(self, job: Job) -> float:
        """That a run ends at."""
        *_, last = self.side(job.side, job.seed, job.rate, job.multiple).run(self._validation, ())
        return float(last.metrics["loss"])

    def start(self) -> float:
        """The loss before any round."""
        return float(next(iter(self.side("all", 0, 1.0, 1.0).run(self._validation, ()))).metrics["loss"])

    def side(self, name: str, seed: int, rate: float, multiple: float) -> Simulation:
        """A fleet that has not begun."""
        config = RunConfig(
            str(self.bundle.folder),
            rounds=max(1, round(self.rounds * multiple)),
            held_out_every=0,  # the autopilot leaves rates and the run as they are
            round=Round(DEVICES, DEVICES, DEADLINE),
            algorithm="mezo",
            probe=Probe(directions=1),
            rate=Rate(body=rate * default_rate(self.bundle.manifest.task), head=0.0),
        )
        return self.sides[name](config, seed)

    def _shares(self, seed: int) -> list[Any]:
        return shares.divide(self._private, DEVICES, seed)

    def _all(self, config: RunConfig, seed: int) -> Simulation:
        return Simulation(self.bundle, dataclasses.replace(config, blocks="all"), self._shares(seed), seed)

    def _by_memory(self, config: RunConfig, seed: int) -> Simulation:
        made = Roomy(self.bundle, config, self._shares(seed), seed)
        body = [group for group in self.bundle.manifest.groups if group.kind == "body"]
        _, made.held = in_turns(tuple(group.size for group in body), [Capacity(most) for most in ROOMS])
        made.body = [group.id for group in body]
        return made

    def _by_time(self, config: RunConfig, seed: int) -> Simulation:
        base = Base(self.bundle.manifest, asked(config))
        told = [_slow(base, len(self.bundle.manifest.stages), lowest) for lowest in LOWEST]
        return Simulation(self.bundle, config, self._shares(seed), seed, told)


def _slow(base: Base, stages: int, lowest: int) -> Profile:
    """Of a device that is just fast enough for the blocks from `lowest` on."""
    second = Profile(0, (10**9,) * stages, (10**9,) * stages)
    each = (int(0.99e9 * DEADLINE / base.seconds(second)[base.stages[min(lowest, len(base.stages) - 1)]]),) * stages
    return Profile(0, each, each)


def measure(fleets: Fleets, seeds: int, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """All figures; as many runs at once as there are processors."""
    sweep = [Job(side, multiple, rate, seed) for side, multiple in SIDES for rate in rates for seed in RATE_SEEDS]
    arguments = (fleets.bundle.folder, fleets.data, fleets.rounds)
    with ProcessPoolExecutor(cpu_count(), get_context("spawn"), _open, arguments) as pool:
        tried = dict(zip(sweep, pool.map(_loss, sweep), strict=True))
        best = best_rates(tried)
        jobs = [Job(side, multiple, rate, seed) for (side, multiple), rate in best.items() for seed in range(seeds)]
        found = dict(zip(jobs, pool.map(_loss, jobs), strict=True))
    setting = {"rounds": fleets.rounds, "devices": DEVICES, "rooms": ROOMS, "lowest": LOWEST, "start": round(fleets.start(), 4)}
    return setting | summed(found) | {"tried": [[*job[:3], job.seed, round(loss, 4)] for job, loss in tried.items()]}


def best_rates(tried: Mapping[Job, float]) -> dict[tuple[str, float], float]:
    """The rate with the least mean loss, of every side and multiple."""
    by_rate: dict[tuple[str, float], dict[float, list[float]]] = {}
    for job, loss in tried.items():
        by_rate.setdefault(job[:2], {}).setdefault(job.rate, []).append(loss)
    return {side: min(found, key=lambda rate: statistics.fmean(found[rate])) for side, found in by_rate.items()}


def summed(found: Mapping[Job, float]) -> dict[str, Any]:
    """Losses by side and seed, and how much higher than all-active's of the same seed: mean and standard error."""
    by_seed: dict[tuple[str, float], dict[int, float]] = {}
    rates = {}
    for job, loss in found.items():
        by_seed.setdefault(job[:2], {})[job.seed] = loss
        rates[job[:2]] = job.rate
    told: dict[str, Any] = {}
    for (side, multiple), losses in by_seed.items():
        name = side.replace(" ", "_") + (f"_{multiple:g}" if multiple != 1 else "")
        told[f"loss_{name}"] = {"mean": round(statistics.fmean(losses.values()), 4), "rate": rates[side, multiple]}
        told[f"loss_{name}"]["seeds"] = [round(losses[seed], 4) for seed in sorted(losses)]
        if side != "all":
            more = [loss - by_seed["all", 1.0][seed] for seed, loss in losses.items()]
            told[f"excess_{name}"] = {"mean": round(statistics.fmean(more), 4), "se": round(standard_error(more), 4)}
    return told


_fleets: dict[str, Fleets] = {}  # of a process of the pool


def _open(folder: Path, data: Path, rounds: int) -> None:
    _fleets["all"] = Fleets(open_bundle(folder), data, rounds)


def _loss(job: Job) -> float:
    return _fleets["all"].loss(job)


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    probes = 2 * DEVICES * found["rounds"]
    every = found["loss_all"]
    lines = [
        f"validation loss {found['start']} -> {every['mean']} after {probes} probes of all blocks on every device, rate x {every['rate']:g}"
    ]
    for name, text in (
        ("by_memory", f"room for {list(found['rooms'])} blocks"),
        ("by_time", f"too slow for blocks below {list(found['lowest'])}"),
    ):
        lines.append(text)
        for multiple, end in ((1.0, ""), (MOST, f"_{MOST:g}")):
            loss, more = found[f"loss_{name}{end}"], found[f"excess_{name}{end}"]
            lines.append(
                f"  after {multiple * probes:.0f} probes {loss['mean']}, rate x {loss['rate']:g}: {more['mean']:+} +- {more['se']}"
            )
    return "\n".join(lines)
