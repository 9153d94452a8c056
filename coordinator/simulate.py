"""`edge-coordinator simulate`: a run as it would go, with all its devices in this process."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coordinator.config import Round, RunConfig
from coordinator.demo import shares
from coordinator.simulation import Point, Simulation
from coordinator.status import describe
from zo import config, evaluation, examples
from zo.bundle import open_whole
from zo.errors import ConfigError, DataError


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl, divided among the devices, and validation.jsonl")
    parser.add_argument("--devices", type=int, default=8, help="[8]")
    parser.add_argument("--seed", type=int, default=0, help="of shares and batches [0]")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    config.add_flags(parser, RunConfig)


def run(given: argparse.Namespace) -> Iterator[tuple[Point, dict[str, Any]]]:
    """Where the fleet is after every evaluation, and the summary of the last round. ConfigError, DataError: what does not fit."""
    settings = config.load(RunConfig, given, "EDGE_COORDINATOR")
    if given.devices < 1:
        raise ConfigError(f"--devices {given.devices} must be at least 1")
    if not 0 <= given.seed < 2**32:
        raise ConfigError(f"--seed {given.seed} must be from 0 to 2**32 - 1")
    bundle = open_whole(Path(settings.bundle))
    for name in ("train", "validation"):
        if not (given.data / f"{name}.jsonl").is_file():
            raise DataError(f"{given.data} has no {name}.jsonl")
    private = examples.load(given.data / "train.jsonl", bundle.manifest.task)
    validation = evaluation.batches(bundle, given.data / "validation.jsonl", settings.evaluation.most)
    settings = dataclasses.replace(settings, round=Round(given.devices, given.devices))
    simulation = Simulation(bundle, settings, shares.divide(private, given.devices, given.seed), given.seed)
    rounds = simulation.rounds
    for point in simulation.run(validation, range(0, settings.rounds, settings.evaluation.every)):
        summaries = rounds.store.summaries(rounds.run.id)
        yield point, summaries[-1] if summaries else {}


def told(point: Point, summary: dict[str, Any]) -> str:
    """A line for a person."""
    return f"round {point.round:>5}, {point.probes:>6} probes: {describe(point.metrics)}; {summary.get('autopilot', 'not begun')}"
