"""`scripts/bench fleet`: agents that each have room for one or two blocks of an encoder in `full` mode, and the same with room for all."""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.bench import scratch, tiny_models
from coordinator.bench.resident import high_water
from coordinator.build.build import draft, seal
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import Training
from coordinator.demo import shares
from coordinator.demo.fleet import Fleet
from zo.bundle import Bundle
from zo.examples import Example
from zo.manifest import Calibration, Precision, Task
from zo.memory.engine import SESSIONS, Device, need, row_bytes
from zo.memory.shapes import table_bytes
from zo.memory.units import FLOAT

AGENTS, ROWS, EXAMPLES, TOKENS = 8, 64, 2, 16
MOST_ACTIVE = (1, 2, 1, 2, 1, 2, 1, 2)  # blocks that each agent's budget leaves room for: together all twelve, once
JOINED = 10_000_000  # bytes of a connection, encoded examples, and what the tokenizer leaves
LOOK = 0.1  # seconds between looks at the agents' memory
BASES: tuple[Precision, ...] = ("fp32", "w4")
FLOOR = "import edge_agent.cli, edge_agent.daemon; from zo.memory import process; print(process.peak())"

BERT_BASE = tiny_models.BERT | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 30_522,
    "max_position_embeddings": 512,
}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=6, help="[6]")
    parser.add_argument("--base", choices=BASES, default="fp32", help="of the agents with room for all blocks [fp32]")
    scratch.add_keep(parser, "bundle, stores and logs")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(folder, BERT_BASE, given.rounds, given.base)


def failed(found: dict[str, Any]) -> bool:
    return not found["digests_equal"] or found["over_budget_mb"] > 0 or not found["all_blocks_covered"]


@dataclass(frozen=True)
class Run:
    """What a fleet came to. peaks: most bytes resident, by agent. digests: theirs, and the last entry's. tried: groups, by round."""

    peaks: tuple[int, ...]
    digests: frozenset[str]
    active: tuple[int, ...]
    tried: tuple[frozenset[int], ...]
    seconds: float


def measure(folder: Path, config: dict[str, Any], rounds: int, other: Precision = "fp32") -> dict[str, Any]:
    """Both fleets, one after the other, over one bundle of a random model. other: base of the fleet whose agents hold all blocks."""
    bundle = random_bundle(folder, config)
    _write_texts(folder / "data.jsonl", config["vocab_size"])
    floor = int(subprocess.run([sys.executable, "-c", FLOOR], check=True, capture_output=True, text=True).stdout)
    device = Device(floor + JOINED + SESSIONS)
    budgets = [budget(bundle.at("w4"), most, device) for most in MOST_ACTIVE]
    some = train(folder / "some", bundle, folder / "data.jsonl", rounds, [f"--memory.budget={each}" for each in budgets])
    every = train(folder / "every", bundle, folder / "data.jsonl", rounds, [f"--precision={other}"] * AGENTS)
    blocks = {group.id for group in bundle.manifest.groups if group.kind == "body"}
    above = [sum(peak - floor for peak in each.peaks) for each in (some, every)]
    return {
        "memory_saving": round(1 - above[0] / above[1], 4),
        "over_budget_mb": round(max(peak - most for peak, most in zip(some.peaks, budgets, strict=True)) / 1e6, 1),
        "digests_equal": len(some.digests) == len(every.digests) == 1,
        "all_blocks_covered": blocks <= frozenset().union(*some.tried),
        "most_active": max(some.active),
        "import_floor_mb": round(floor / 1e6, 1),
        "budgets_mb": [round(each / 1e6, 1) for each in budgets],
        "peaks_mb": [round(peak / 1e6, 1) for peak in some.peaks],
        "predicted_mb": [round(predicted(bundle.at("w4"), most, device) / 1e6, 1) for most in some.active],
        "all_active_peaks_mb": [round(peak / 1e6, 1) for peak in every.peaks],
        "all_active_over_weights_and_activations": round(above[1] / AGENTS / _least(bundle.at(other)), 3),
        "all_active_base": other,
        "all_active_weights_mb": round(_weights(bundle.at(other)) / 1e6, 1),
        "blocks_by_round": [len(blocks & tried) for tried in some.tried],
        "seconds": [round(each.seconds, 1) for each in (some, every)],
    }


def random_bundle(folder: Path, config: dict[str, Any]) -> Bundle:
    """A bundle of a BERT with random weights, every block a stage; probe sizes are stated, since nothing is to be learnt."""
    words = [f"w{number}" for number in range(config["vocab_size"] - len(tiny_models.SPECIAL))]
    model = tiny_models.save(folder / "model", config, tiny_models.bert_weights(config=config), words)
    task = Task("classification", TOKENS, "linear", ("w1", "w2"))
    bundle = draft(Checkpoint(model), folder / "bundle", task, Training("full", "fp32", run_key=7), BASES, None, "fleet")
    stated = [Calibration(kind, -10, 1e-3, 0.0, 0.0, 1e-3, 1.0) for kind in ("body", "head")]
    seal(bundle, dict.fromkeys(BASES, stated))
    return bundle


def budget(bundle: Bundle, active: int, device: Device) -> int:
    """Bytes with which so many blocks can be active, and no more: the soft line lies halfway between what these need, and one more."""
    return round((predicted(bundle, active, device) + predicted(bundle, active + 1, device)) / 2 / 0.85)


def predicted(bundle: Bundle, active: int, device: Device) -> int:
    """Bytes of an agent with so many active blocks, in the smallest runs."""
    return need(bundle.manifest, 2 * TOKENS, TOKENS, device, active=active).total


def train(folder: Path, bundle: Bundle, data: Path, rounds: int, flags: list[str]) -> Run:
    """A coordinator and its agents, to the end of the run. flags: one more of each agent."""
    settings = {
        "rounds": str(rounds),
        "held-out-every": "0",
        "least-gain": "0",
        "digest-every": "2",
        "algorithm": "mezo",
        "probe.directions": "1",
        "probe.examples": str(EXAMPLES),
        "round.goal": str(len(flags)),
        "round.minimum": str(len(flags)),
        "round.deadline": "600",
        "rate.body": "0.01",
        "rate.head": "0.01",
    }
    fleet = Fleet(folder, bundle.folder, settings)
    names, peaks, began = [f"agent{place}" for place in range(len(flags))], dict[str, int](), time.monotonic()
    try:
        fleet.start_coordinator()
        for name, flag in zip(names, flags, strict=True):
            fleet.start_agent(name, data, f"--max-rows={ROWS}", "--refresh=3", "--disk-bytes-per-day=1e12", "--prefix.memory=0", flag)
        while any(agent.poll() is None for agent in fleet.agents.values()):
            for name, agent in fleet.agents.items():
                peaks[name] = max(peaks.get(name, 0), high_water(agent.pid))
            fleet.check()
            time.sleep(LOOK)
        store, status = fleet.store(), [fleet.status(name) for name in names]
        run_id = store.runs()[0].id
        entries, last = store.entries(run_id, 0), store.summaries(run_id)[-1]
        store.close()
        return Run(
            tuple(max(peaks[name], said["peak_memory_mib"] << 20) for name, said in zip(names, status, strict=True)),
            frozenset([last["digest"], *(said.get("digest", said["state"]) for said in status)]),
            tuple(said["active_blocks"] for said in status),
            tuple(frozenset(group for term in entry.terms for group in term.groups) for entry in entries),
            time.monotonic() - began,
        )
    finally:
        fleet.stop()


def _weights(bundle: Bundle) -> int:
    """Bytes of the model with all blocks in float32, and the base's tables."""
    model, values = bundle.manifest.dimensions, sum(group.size for group in bundle.manifest.groups)
    return FLOAT * values + table_bytes(bundle.manifest.precision, model.tables, model.width)


def _least(bundle: Bundle) -> int:
    """Of an agent with all blocks: weights, and the activations of a run."""
    return _weights(bundle) + round(ROWS * row_bytes(bundle.manifest.dimensions, TOKENS, Device().held(bundle.manifest.precision)))


def _write_texts(path: Path, vocabulary: int) -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(0, vocabulary - len(tiny_models.SPECIAL), (64, TOKENS - 2))
    shares.write(path, [Example(" ".join(f"w{word}" for word in row), place % 2) for place, row in enumerate(words.tolist())])
