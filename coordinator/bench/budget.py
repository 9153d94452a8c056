"""`scripts/bench budget`: an agent and a process that takes and frees memory, in one real cgroup that cannot hold what both would like."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from coordinator.bench.memory import write_random_texts
from coordinator.bench.memory_group import MemoryGroup
from coordinator.bench.step import TASK
from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.demo.fleet import Fleet
from coordinator.demo.packaged import packaged_model
from zo.bundle import Bundle, open_bundle
from zo.memory import need, process
from zo.memory.engine import Device

LIMIT = 300_000_000  # bytes of the cgroup
BUDGET = 220_000_000  # that the owner allows the agent
PEAKS = (172_000_000, 120_000_000)  # of the neighbour, in turn; with the first there is too little for both
ROWS, DIRECTIONS, EXAMPLES, TOKENS, TEXTS = 4096, 8, 8, 32, 400
LOOK = 0.02  # seconds between looks at the memory of both


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=100, help="[100]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(given.rounds, folder)


def measure(rounds: int, folder: Path) -> dict[str, Any]:
    """One run of the agent beside the neighbour, to its end."""
    build(packaged_model(), folder / "bundle", TASK, Training("lora-fa", "int8"), [])
    bundle = open_bundle(folder / "bundle")
    write_random_texts(folder / "data.jsonl", bundle, TEXTS, TOKENS)
    settings = {
        "rounds": str(rounds),
        "held-out-every": "0",
        "round.goal": "1",
        "probe.examples": str(EXAMPLES),
        "probe.directions": str(DIRECTIONS),
    }
    fleet = Fleet(folder / "fleet", bundle.folder, settings | {"algorithm": "mezo"})
    with MemoryGroup(LIMIT) as group:
        neighbour = None
        try:
            fleet.start_coordinator()
            flags = (f"--memory.budget={BUDGET}", f"--max-rows={ROWS}")
            fleet.start_agent("agent", folder / "data.jsonl", *flags, before=group.command())
            _wait_for_a_round(fleet)
            neighbour = psutil.Popen(group.command(sys.executable, "-m", "coordinator.bench.hog", *map(str, PEAKS)))
            seen = _watch(fleet, group, neighbour)
            fleet.check()
            return seen | _outcome(fleet, bundle, group, seen)
        finally:
            fleet.stop()
            if neighbour:
                neighbour.kill()
                neighbour.wait()


def failed(found: dict[str, Any]) -> bool:
    kept = not found["oom_kills"] and found["over_budget_minus_micro_batch_mb"] <= 0 and found["digests_equal"]
    return not (kept and found["sheds"] and found["rounds_completed"])


def _wait_for_a_round(fleet: Fleet) -> None:
    """So that what the neighbour takes meets an agent at work, on a slow machine and on a fast one."""
    store = fleet.store()
    while not store.summaries(store.runs()[0].id):
        fleet.check()
        time.sleep(LOOK)
    store.close()


def _watch(fleet: Fleet, group: MemoryGroup, neighbour: psutil.Popen) -> dict[str, Any]:
    """Highest of everything until the agent ends."""
    agent, high = fleet.agents["agent"], {"agent": 0, "neighbour": 0, "group": 0}
    began = time.monotonic()
    while agent.poll() is None:
        now = {"agent": process.resident(agent.pid), "neighbour": process.resident(neighbour.pid), "group": group.used}
        high = {name: max(value, now[name]) for name, value in high.items()}
        time.sleep(LOOK)
    return {"seconds": round(time.monotonic() - began, 1)} | {f"{name}_peak_mb": round(value / 1e6, 1) for name, value in high.items()}


def _outcome(fleet: Fleet, bundle: Bundle, group: MemoryGroup, seen: dict[str, Any]) -> dict[str, Any]:
    """What must hold."""
    store, status = fleet.store(), fleet.status("agent")
    summaries = store.summaries(store.runs()[0].id)
    store.close()
    planned = status["memory"]
    micro_batch = need(bundle.manifest, planned["most_rows"], TOKENS, Device()).activations / 1e6
    peak = max(seen["agent_peak_mb"], status["peak_memory_mib"] * 2**20 / 1e6)
    return {
        "cgroup_version": group.version,
        "limit_mb": LIMIT / 1e6,
        "budget_mb": BUDGET / 1e6,
        "micro_batch_mb": round(micro_batch, 1),
        "oom_kills": group.oom_kills,
        "over_budget_minus_micro_batch_mb": round(peak - BUDGET / 1e6 - micro_batch, 1),
        "most_rows": planned["most_rows"],
        **{name: planned[name] for name in ("sheds", "trims", "pauses", "abandoned")},
        "rounds_completed": len(summaries),
        "digests_equal": summaries[-1]["digest"] == status.get("digest"),
    }
