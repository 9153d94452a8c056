"""`edge-agent plan`: what fits into memory, by method; of a bundle also what its stages cost here, and the best way to cut it."""

import argparse
import dataclasses
from typing import Any

from edge_agent import memory
from edge_agent.config import AgentConfig, refuse_threads
from edge_agent.guest_config import Memory
from zo import split
from zo.bundle import Bundle, open_bundle, read_manifest
from zo.engine import Engine
from zo.errors import ConfigError
from zo.manifest import Manifest
from zo.memory import PUBLISHED, table, units
from zo.memory.methods import Work
from zo.plan import MOST_DIRECTIONS
from zo.planning import sizes
from zo.recipe import Probe
from zo.structure import nearest
from zo.timing import random_batch, stage_ns

TOKENS = 32  # of an example, unless told otherwise


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The figures; of a bundle that fits also nanoseconds a stage. ConfigError where what is asked for cannot be."""
    if given.bundle and given.shape:
        raise ConfigError("--bundle and --shape name two models; give one of them")
    if given.shape and given.shape not in PUBLISHED:
        raise ConfigError(f"--shape {given.shape!r} is not known{nearest(given.shape, PUBLISHED)}; known are {', '.join(PUBLISHED)}")
    refuse_threads(given.threads)
    try:
        config = AgentConfig("", threads=given.threads, memory=Memory(budget=given.memory) if given.memory else Memory())
    except ValueError as error:
        raise ConfigError(f"--memory: {error}") from None
    manifest = read_manifest(given.bundle) if given.bundle else None
    if manifest and given.precision:
        manifest = manifest.at(given.precision)
    usual = min(TOKENS, manifest.task.max_tokens) if manifest else TOKENS
    work = Work(given.examples, usual if given.tokens is None else given.tokens, given.directions, given.every_token)
    if not (1 <= work.directions <= MOST_DIRECTIONS and work.examples >= 1 and work.tokens >= 1):
        raise ConfigError(f"--directions must be 1 to {MOST_DIRECTIONS}, --examples and --tokens at least 1")
    room = memory.room(config)
    found: dict[str, Any] = {"memory": {"budget": round(room.budget), "allowed": round(room.allowed)}, "work": dataclasses.asdict(work)}
    model = manifest.model if manifest else PUBLISHED.get(given.shape)
    if manifest and model:
        found["memory"]["bases"] = {name: _base(manifest.at(name), config) for name in manifest.bases}
    if given.memory or not manifest:
        found["methods"] = table.rows(model, work, memory.here(), room.budget)
    if manifest and (not model or found["memory"]["bases"][manifest.precision]["fits"]):
        found |= _stages(open_bundle(given.bundle, given.precision or ""), work, given)
    return found


def _base(manifest: Manifest, config: AgentConfig) -> dict[str, Any]:
    """What an agent needs with one base: with the smallest runs, with those of the settings, and the runs that fit."""
    device, least = memory.here(), 2 * manifest.task.max_tokens
    usual = max(least, config.max_rows)
    needs = {name: memory.predicted(manifest, each, config, device).total for name, each in (("least", least), ("usual", usual))}
    return needs | {"rows": memory.most_rows(manifest, config, device), "fits": needs["least"] <= memory.room(config).allowed}


def _stages(bundle: Bundle, work: Work, given: argparse.Namespace) -> dict[str, Any]:
    """Nanoseconds a stage and the predictions, the chosen one named."""
    manifest = bundle.manifest
    if work.tokens > manifest.task.max_tokens:
        raise ConfigError(f"--tokens must be 1 to the bundle's {manifest.task.max_tokens}")
    engine = Engine(bundle, bundle.parameters(), threads=given.threads)
    taken = stage_ns(engine, random_batch(manifest.task, bundle.tokenizer().get_vocab_size(), work.examples, work.tokens))
    rows = split.plan_table(manifest, sizes(Probe(), manifest), work.directions, taken, clean=given.clean)
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
    room = found["memory"]
    parts = [f"memory: {units.told(room['budget'])} at most, of which {units.told(room['allowed'])} are planned with"]
    if "bases" in room:
        lines = ["base    needs at least   with runs of max_rows   fits"]
        for name, row in room["bases"].items():
            mark = f"in runs of up to {row['rows']} rows" if row["fits"] else "no"
            lines.append(f"{name:6}{units.told(row['least']):>16}{units.told(row['usual']):>24}   {mark}")
        parts.append("\n".join(lines))
    if "methods" in found:
        parts.append(table.told(found["methods"], Work(**found["work"])))
    if "stage_ns" in found:
        lines = ["stage                 microseconds a branch of an example"]
        lines += [f"{file:22}{taken / 1000:10.2f}" for file, taken in found["stage_ns"].items()]
        parts += ["\n".join(lines), found["told"]]
    return "\n\n".join(parts)
