"""`scripts/bench autopilot`: runs with every setting at 'auto' against the best of a sweep by hand, in simulated fleets on real data."""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any

from coordinator import replay
from coordinator import task as task_file
from coordinator.bench import workload
from coordinator.build.layers import Training
from coordinator.config import Round, RunConfig
from coordinator.demo import household, shares
from coordinator.simulation import Simulation
from zo import evaluation, examples
from zo.bundle import Bundle, open_bundle
from zo.examples import Example
from zo.manifest import Precision, TrainableSet
from zo.planning import sizes
from zo.rates import default_rate
from zo.recipe import Probe, Rate

DEVICES, VALIDATION, TEST, LOOKS = 8, 256, 512, 8
CASES: tuple[tuple[TrainableSet, Precision], ...] = (("lora-fa", "int8"), ("lora-fa", "fp32"), ("norms", "fp32"), ("full", "fp32"))
SWEPT = (("lora-fa", "int8"),)  # the others would take too long for what they add
RATES, EPS = (0.5, 1.0, 2.0, 4.0), (-2, 0, 2)  # times the default rate; log2 of times the calibrated probe size
SWEEP_SEEDS = 2  # the best of a dozen single runs would be the luckiest one


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, action="append", help="folder as of 'split'; may be repeated [generated household commands]")
    parser.add_argument("--swept", type=int, metavar="N", help="of the folders, the first that are swept by hand too [all]")
    workload.add_model(parser)
    parser.add_argument("--seeds", type=int, default=3, help="[3]")
    parser.add_argument("--rounds", type=int, default=40, help="of 8 devices, 2 probes each [40]")
    parser.add_argument("--max-tokens", type=int, default=32, help="[32]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All runs of all data sets, as many at once as there are processors."""
    model, jobs, built = workload.model(given), [], []
    folders = given.data or [_household(folder / "household")]
    with ProcessPoolExecutor(cpu_count(), get_context("spawn")) as pool:
        for data, case in itertools.product(folders, CASES):
            bundle, task = folder / f"{data.name}-{'-'.join(case)}", task_file.of_data(data, given.max_tokens)
            built.append(pool.submit(_build, model, bundle, data, task, Training(*case)))
            jobs += [Job(data, bundle, case, seed, given.rounds) for seed in range(given.seeds)]
            by_hand = case in SWEPT and data in folders[: given.swept]
            swept = itertools.product(RATES, EPS, range(min(given.seeds, SWEEP_SEEDS))) if by_hand else ()
            jobs += [Job(data, bundle, case, seed, given.rounds, rate, eps) for rate, eps, seed in swept]
        for each in built:
            each.result()
        return _summed(list(pool.map(fly, jobs)))


def _build(*arguments: Any) -> None:
    workload.build_bundle(*arguments)


def _household(folder: Path) -> Path:
    """The commands of the demonstration, of all homes together."""
    folder.mkdir()
    made = household.generate(0, DEVICES)
    made.write(folder)
    shares.write(folder / "train.jsonl", [Example(**row) for row in itertools.chain(*made.homes)])
    return folder


Setup = tuple[Path, tuple[str, str]]


@dataclass(frozen=True)
class Job:
    """One run. rate: times the default one, with `log2_eps` added to the probe sizes; both None on autopilot."""

    data: Path
    bundle: Path
    case: tuple[str, str]
    seed: int
    rounds: int
    rate: float | None = None
    log2_eps: int | None = None

    @property
    def setup(self) -> Setup:
        """What is trained on what."""
        return self.data, self.case


@dataclass(frozen=True)
class Outcome:
    """Class-balanced losses (nats): test file at the start and at the exported entry; validation file there, by probes on the way."""

    job: Job
    test: tuple[float, float]
    validation: float
    way: tuple[tuple[int, float], ...]
    told: tuple[str, ...]

    def probes_to(self, share: float) -> int:
        """Probes until this share of the whole gain in validation loss was reached."""
        start, target = self.way[0][1], self.way[0][1] - share * (self.way[0][1] - self.validation)
        return next(probes for probes, loss in self.way if loss <= target or start <= self.validation)


def fly(job: Job) -> Outcome:
    """Run it."""
    bundle = open_bundle(job.bundle)
    private = examples.read(job.data / "train.jsonl", bundle.manifest.task).examples
    held = {
        name: evaluation.batches(bundle, job.data / f"{name}.jsonl", most) for name, most in (("validation", VALIDATION), ("test", TEST))
    }
    simulation = Simulation(bundle, _settings(job, bundle), shares.divide(private, DEVICES, job.seed), job.seed)
    rounds, looks = simulation.rounds, range(0, job.rounds, max(1, job.rounds // LOOKS))
    before = evaluation.evaluate(simulation.engine, held["test"])["balanced_loss"]
    way = tuple((point.probes, point.metrics["balanced_loss"]) for point in simulation.run(held["validation"], looks))
    best = replay.best_entry(rounds.store, rounds.run.id)
    replay.move(rounds.ledger.replica, rounds.store, rounds.run, best)
    after = evaluation.evaluate(simulation.engine, held["test"])["balanced_loss"]
    found = rounds.store.evaluations(rounds.run.id, "validation")[best]["balanced_loss"]
    told = tuple(f"{kind}: {text}" for _, kind, text in rounds.store.events(rounds.run.id))
    return Outcome(job, (before, after), found, way, told)


def _settings(job: Job, bundle: Bundle) -> RunConfig:
    """On autopilot as they come, but for the count of rounds; or by hand."""
    base = RunConfig(str(job.bundle), rounds=job.rounds, round=Round(DEVICES, DEVICES))
    if job.rate is None:
        return base
    rate = job.rate * default_rate(bundle.manifest.task)
    eps = {kind: log2 + (job.log2_eps or 0) for kind, log2 in sizes(Probe(), bundle.manifest).items()}
    probe = Probe(log2_eps_body=eps["body"], log2_eps_head=eps.get("head", "auto"))
    return RunConfig(str(job.bundle), rounds=job.rounds, round=base.round, probe=probe, rate=Rate(rate, rate), held_out_every=0)


def _summed(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The best by hand is the setting with the lowest mean over its seeds; a run is compared with that setting's of the same seed."""
    alone = [each for each in outcomes if each.job.rate is None]
    swept: dict[Setup, dict[tuple[float, int], list[Outcome]]] = {}
    for each in outcomes:
        if (rate := each.job.rate) is not None:
            swept.setdefault(each.job.setup, {}).setdefault((rate, each.job.log2_eps or 0), []).append(each)
    best = {setup: min(tried.values(), key=lambda runs: statistics.fmean(run.validation for run in runs)) for setup, tried in swept.items()}
    losses = {(setup, run.job.seed): run.validation for setup, runs in best.items() for run in runs}
    over = [each.validation / losses[key] for each in alone if (key := (each.job.setup, each.job.seed)) in losses]
    found: dict[str, Any] = {"worse_than_start": sum(each.test[1] > each.test[0] for each in alone)}
    if over:
        found["loss_over_best_sweep"] = {"median": round(statistics.median(over), 3), "worst": round(max(over), 3)}
    found["probes_to_90_percent_of_gain"] = statistics.median(each.probes_to(0.9) for each in alone)
    found["runs"] = [_row(each) for each in alone]
    by_hand = [run for settings in swept.values() for runs in settings.values() for run in runs]
    found["sweeps"] = [_row(each) | {"rate": each.job.rate, "log2_eps": each.job.log2_eps} for each in by_hand]
    return found


def _row(outcome: Outcome) -> dict[str, Any]:
    job = outcome.job
    row = {"data": job.data.name, "trainable": job.case[0], "precision": job.case[1], "seed": job.seed}
    losses = {"test_before": outcome.test[0], "test_after": outcome.test[1], "validation": outcome.validation}
    return row | {name: round(loss, 4) for name, loss in losses.items()} | {"probes": outcome.way[-1][0], "events": list(outcome.told)}


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = ["data             trained  base  seed  test loss          validation  events"]
    for row in found["runs"]:
        name = f"{row['data']:16} {row['trainable']:8} {row['precision']:5} {row['seed']:4}"
        kinds = ", ".join(event.partition(": ")[0] + ": " + event.split(": ")[1] for event in row["events"])
        lines.append(f"{name}  {row['test_before']:.4f} -> {row['test_after']:.4f}  {row['validation']:10.4f}  {kinds}")
    if found["sweeps"]:
        lines.append("by hand: validation loss by rate (times the default), probe size (log2 of times the calibrated) and seed")
    lines += [
        f"{row['data']:16} x {row['rate']:<4g} {row['log2_eps']:+3d} {row['seed']:4}  {row['validation']:.4f}" for row in found["sweeps"]
    ]
    lines.append(f"worse than the start: {found['worse_than_start']} of {len(found['runs'])} runs")
    if ratio := found.get("loss_over_best_sweep"):
        lines.append(f"validation loss over the best of the sweep: median {ratio['median']}, worst {ratio['worst']}")
    return "\n".join([*lines, f"probes to 90 % of the gain: {found['probes_to_90_percent_of_gain']:g}"])
