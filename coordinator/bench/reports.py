"""`scripts/bench round`: what a report costs the coordinator, without the network: read, validate, store and sync; then the commit."""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.bench import scratch, workload
from coordinator.config import Round, RunConfig
from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from zo import wire
from zo.bundle import open_bundle
from zo.errors import UserError
from zo.messages import Report, Verdict
from zo.recipe import directions

GROUP = 16  # reports with one sync: what 3000 a second come to in the 5 ms that a group gathers


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reports", type=int, default=2000, help="a round [2000]")
    parser.add_argument("--repeats", type=int, default=5, help="[5]")
    workload.add_bundle(parser)
    scratch.add_disk(parser)


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(workload.bundle(given, folder), given.reports, given.repeats, folder)


def measure(bundle: Path, reports: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Milliseconds a report, medians over rounds that alternate: every report with a sync of its own, and in groups with one.

    commit: of the round, divided by its reports. reading: of the bytes, a part of both.
    """
    opened = open_bundle(bundle)
    config = RunConfig(bundle=str(bundle), rounds=2 * repeats, round=Round(reports, reports), algorithm="mezo")
    store = SqliteStore(folder / "run.sqlite", create=True)
    rounds = Rounds(store, store.open_run(config.name, bundle, opened.digest), opened, config)
    for device in range(reports):
        rounds.enrol(device)
    found: dict[str, list[float]] = {name: [] for name in ("coordinator", "grouped", "reading", "commit")}
    draw = np.random.default_rng(0)
    for number in range(2 * repeats):
        bodies = [wire.encode(_report(rounds, device, draw)) for device in range(reports)]
        found["reading"].append(_seconds(lambda bodies=bodies: [READ(body) for body in bodies]))
        name, size = (("coordinator", 1), ("grouped", GROUP))[number % 2]
        found[name].append(_seconds(lambda bodies=bodies, size=size: accept(rounds, bodies, size)))
        found["commit"].append(_seconds(rounds.close_if_due))
    store.close()
    medians = {f"{name}_ms_per_report": round(1000 * statistics.median(each) / reports, 4) for name, each in found.items()}
    return {**medians, "group": GROUP, "reports": reports, "directions": directions("mezo", config.probe)}


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    says = {
        "coordinator": "read, validated, stored; each with a sync of its own",
        "grouped": f"the same, {found['group']} with one sync",
        "reading": "of these: reading the bytes",
        "commit": "the commit of the round, by its reports",
    }
    lines = [f"{found['reports']} reports a round, of {found['directions']} directions", "ms a report"]
    return "\n".join([*lines, *(f"{found[f'{name}_ms_per_report']:11.4f}  {what}" for name, what in says.items())])


READ = wire.decoder(Report)


def accept(rounds: Rounds, bodies: Sequence[bytes], size: int) -> None:
    """As the service does with what comes over the wire, `size` with one sync."""
    for start in range(0, len(bodies), size):
        answers = rounds.accept_all([READ(body) for body in bodies[start : start + size]])
        if any(answer is not Verdict.ACCEPTED for answer in answers):
            raise UserError(f"a report of the benchmark was not accepted: {answers}")


def _report(rounds: Rounds, device: int, draw: np.random.Generator) -> Report:
    probe, precision = rounds.config.probe, rounds.bundle.manifest.precision
    scalars = draw.integers(-2000, 2000, rounds.plans.node(rounds.round, device, precision).scalars)
    digest = rounds.ledger.digest() if rounds.round % rounds.config.digest_every == 0 else None
    plan = rounds.plan_id(device, precision)
    return Report(rounds.run.id, device, rounds.round, scalars, probe.examples, precision, digest=digest, plan=plan)


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
