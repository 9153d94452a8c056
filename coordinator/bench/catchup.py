"""`scripts/bench catchup`: what it takes a device to come back after ten thousand rounds, by each of the three ways."""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.bench import workload
from coordinator.bench.child_process import figures
from zo import aggregation, catchup, wire
from zo.bundle import Bundle, open_bundle
from zo.checkpoint import signs
from zo.estimators import Grid
from zo.ledger import Entry, Folding, Tile
from zo.messages import Offer, Report, Way
from zo.planning import one_level
from zo.rates import Rates, decay
from zo.recipe import Probe, Rate
from zo.replica import Replica
from zo.seeds import first_seed

DIRECTIONS = 8  # a report
GRID = Grid(14, 2.0)
LINK_SPEED = 125_000.0  # bytes a second: the agent's default
SAMPLE = 100  # entries whose replay is timed; the rest is in proportion


def options(parser: argparse.ArgumentParser) -> None:
    workload.add_bundle(parser)
    parser.add_argument("--rounds", type=int, default=10_000, help="[10000]")
    parser.add_argument("--reports", type=int, default=8, help="a round [8]")
    parser.add_argument("--pool", type=int, default=4096, help="seeds that the run shares; 0: every round its own [4096]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(workload.bundle(given, folder), given.rounds, given.reports, given.pool, folder)


def measure(path: Path, rounds: int, reports: int, pool: int, folder: Path) -> dict[str, Any]:
    """Bytes and seconds from zero by each way, on one core, and which one an agent would choose."""
    bundle = open_bundle(path)
    entries, replica = _ledger(bundle, rounds, reports, pool)
    bodies = [wire.encode(entry) for entry in entries]
    fold, snapshot = replica.checkpoint(), replica.snapshot()
    of_entries = sum(signs(entry.terms, replica.sizes) for entry in entries)
    sample = _timed(path, folder, Tile(tuple(entries[:SAMPLE])), "entries")
    of_fold, of_snapshot = _timed(path, folder, fold, "checkpoint"), _timed(path, folder, snapshot, "checkpoint")
    offers = [
        Offer(Way.ENTRIES, rounds, sum(map(len, bodies)), of_entries, fold.digest),
        Offer(Way.FOLD, rounds, len(wire.encode(fold)), signs(fold.terms, replica.sizes), fold.digest),
        Offer(Way.SNAPSHOT, rounds, len(wire.encode(snapshot)), 0, fold.digest),
    ]
    speed = of_fold["replay_speed"]
    return {
        "rounds": rounds,
        "reports": reports,
        "pool": pool,
        "values": sum(replica.sizes.values()),
        "entries_bytes": offers[0].size,
        "fold_bytes": offers[1].size,
        "snapshot_bytes": offers[2].size,
        "entries_replay_seconds": round(sample["seconds"] * len(entries) / min(SAMPLE, len(entries)), 1),
        "fold_replay_seconds": round(of_fold["seconds"], 3),
        "snapshot_replay_seconds": round(of_snapshot["seconds"], 3),
        "million_signs_per_second": round(speed / 1e6),
        "predicted_seconds": {offer.way.name.lower(): round(catchup.seconds(offer, LINK_SPEED, speed), 1) for offer in offers},
        "chosen": catchup.cheapest(tuple(offers), LINK_SPEED, speed).way.name.lower(),
        "digests_equal": of_fold["digest"] == of_snapshot["digest"] == fold.digest.hex(),
    }


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = [f"{found['rounds']} rounds of {found['reports']} reports, {found['values']:,} trained values, pool of {found['pool']} seeds"]
    lines.append("way            bytes  replay, one core  in all at 125 kB/s")
    for way, seconds in found["predicted_seconds"].items():
        lines += [f"{way:8} {found[f'{way}_bytes']:11,} {found[f'{way}_replay_seconds']:15.2f} s {seconds:17.1f} s"]
    return "\n".join([*lines, f"an agent chooses: {found['chosen']}"])


def _ledger(bundle: Bundle, rounds: int, reports: int, pool: int) -> tuple[list[Entry], Replica]:
    """A ledger such as training leaves: half differences drawn at random, as large as at calibration."""
    manifest, probe, rate = bundle.manifest, Probe(DIRECTIONS), Rate()
    rates, generator = Rates.of(probe, rate, manifest), np.random.default_rng(0)
    replica = Replica(bundle.parameters(), bytes(32), bundle.initial_tensors)
    everything = Folding(dict.fromkeys(replica.sizes, 10**9))
    entries = []
    for number in range(1, rounds + 1):
        nodes, sent = [], []
        for device in range(reports):
            first = first_seed(manifest.run_key, number, device, DIRECTIONS, pool)
            nodes.append(one_level(manifest, rates.log2_eps, first, DIRECTIONS))
            half = GRID.integers(generator.standard_normal(DIRECTIONS) * math.hypot(*rates.signal.values()))
            sent.append(Report(1, device, number, half, probe.examples, manifest.precision))
        factors = dict.fromkeys(rates.by_kind, decay(rate, number, rounds))
        terms = aggregation.aggregate(sent, nodes, rates, factors, manifest, GRID)
        entries.append(Entry(number, number, reports, terms))
        replica.advance(entries[-1])
        everything.add(terms)
    replica.parameters.add(everything.terms())
    return entries, replica


def _timed(bundle: Path, folder: Path, message: Any, kind: str) -> dict[str, Any]:
    """What a device with one core makes of it."""
    file = folder / "message"
    file.write_bytes(wire.encode(message))
    return figures("edge_agent.bench.replay", bundle, file, kind)
