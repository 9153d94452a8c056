"""`edge-agent plan`: what the stages of a bundle cost on this device, and which way to cut them would be the cheapest."""

import argparse
import dataclasses
from typing import Any

from zo import split
from zo.aggregation import sizes
from zo.bundle import open_bundle
from zo.engine import Engine
from zo.errors import ConfigError
from zo.plan import MOST_DIRECTIONS
from zo.recipe import Probe
from zo.timing import random_batch, stage_ns


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Nanoseconds a stage and the predictions, the chosen one named. ConfigError where the shape asked for cannot be."""
    bundle = open_bundle(given.bundle, given.precision or "")
    manifest = bundle.manifest
    if not (1 <= given.directions <= MOST_DIRECTIONS and given.examples >= 1 and 1 <= given.tokens <= manifest.task.max_tokens):
        raise ConfigError(
            f"--directions must be 1 to {MOST_DIRECTIONS}, --examples at least 1, --tokens 1 to the bundle's {manifest.task.max_tokens}"
        )
    engine = Engine(bundle, bundle.parameters(), threads=given.threads)
    taken = stage_ns(engine, random_batch(manifest.task, bundle.tokenizer().get_vocab_size(), given.examples, given.tokens))
    rows = split.plan_table(manifest, sizes(Probe(), manifest), given.directions, taken, clean=given.clean)
    if given.algorithm == "mezo":
        rows = rows[:1]
    return {
        "stage_ns": dict(zip((stage.file for stage in manifest.stages), taken, strict=True)),
        "table": [dataclasses.asdict(row) for row in rows],
        "chosen": dataclasses.asdict(split.choose(rows)),
        "told": split.told(rows),
    }


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = ["stage                 microseconds a branch of an example"]
    lines += [f"{file:22}{taken / 1000:10.2f}" for file, taken in found["stage_ns"].items()]
    return "\n".join([*lines, "", found["told"]])
