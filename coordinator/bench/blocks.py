"""`scripts/bench blocks`: the allocator on random fleets: how long it takes, how near it comes to the best, what memory it saves.

The best is found by mixed-integer programming, where that finishes; for the convergence proxy alone, and then for memory within a slack.
Blocks are of unequal sizes there, as after pruning: where they are alike, which they mostly are, taking the rarest first is the best.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.allocation import Asking, Base, allocate, exact, greedy, in_turns
from coordinator.allocation.problem import Problem, proxy
from coordinator.bench.random_fleets import ASKED, fleet, fleets, manifest_of
from zo.errors import ConfigError
from zo.manifest import Manifest

SMALL, LARGE, BLOCKS = "bert-base", "llama-360m", 12  # the large one has 32
FLEETS, MOST = 200, 20
UNEQUAL = (0.5, 1.5)
SLACK = 0.05


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=int, default=1000, help="of the large fleet [1000]")
    parser.add_argument("--slack", type=float, default=SLACK, help=f"of the convergence proxy, for less memory [{SLACK}]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if given.devices < 1 or not 0 < given.slack < 10:
        raise ConfigError("--devices must be at least 1, and --slack above 0 and below 10")
    return measure(given.devices, given.slack)


def measure(devices: int, slack: float = SLACK, count: int = FLEETS) -> dict[str, Any]:
    """All figures. devices: of the large fleet. count: of small ones."""
    manifest, generator = manifest_of(SMALL), np.random.default_rng(1)
    rows = [_compared(each, manifest, slack, generator.uniform(*UNEQUAL, BLOCKS)) for each in fleets(count, MOST, manifest)]
    found: dict[str, Any] = {"devices": devices, "slack": slack, "fleets": count, **_large(devices, slack)}
    for name in ("greedy_gap", "rarest_first_gap", "memory_gap"):
        gaps = [row[name] for row in rows if name in row]
        found |= {
            f"{name}_p95": float(f"{np.quantile(gaps, 0.95):.3g}"),
            f"{name}_most": float(f"{max(gaps):.3g}"),
            f"{name}_of": len(gaps),
        }
    saved = [1 - sum(row[kind] for row in rows) / sum(row["everything"] for row in rows) for kind in ("taken", "taken_with_slack")]
    return found | {
        "memory_saved": round(saved[0], 4),
        "memory_saved_with_slack": round(saved[1], 4),
        "windows": max(r["window"] for r in rows),
    }


def _large(devices: int, slack: float) -> dict[str, float]:
    """Seconds for one fleet, without slack and with it."""
    manifest, found = manifest_of(LARGE), {}
    many = fleet(np.random.default_rng(0), manifest, devices)
    for name, each in (("seconds", 0.0), ("seconds_with_slack", slack)):
        began = time.perf_counter()
        allocate(many, manifest, ASKED, each)
        found[name] = round(time.perf_counter() - began, 3)
    return found


def _compared(devices: dict[int, Asking], manifest: Manifest, slack: float, unequal: np.ndarray) -> dict[str, float]:
    """Gaps of one fleet to the best, relative, where it is found; and bytes taken, by all devices over the window.

    unequal: times its size, of every block.
    """
    base = Base(manifest, ASKED)
    able = [found for each in devices.values() if (found := base.fit(each.profile).capacity)]
    bottom = min(each.lowest for each in able)
    sizes = tuple(int(factor * group.size) for factor, group in zip(unequal, manifest.groups, strict=False))[bottom:]
    problem, held = in_turns(sizes, [replace(each, lowest=each.lowest - bottom) for each in able])
    light = replace(problem, slack=slack)
    lighter = greedy.solve(light)
    row: dict[str, float] = {
        "window": len(problem.capacities) // len(able),
        "taken": _bytes(base, held),
        "taken_with_slack": _bytes(base, lighter),
        "everything": len(held) * base.needed(len(base.blocks)),
    }
    if (best := exact.solve(problem)) is not None:
        row["greedy_gap"] = _gap(problem, held, best)
        row["rarest_first_gap"] = _gap(problem, greedy.rarest_first(problem), best)
    if (lightest := exact.solve(light)) is not None:
        row["memory_gap"] = _bytes(base, lighter) / _bytes(base, lightest) - 1
    return row


def _gap(problem: Problem, held: np.ndarray, best: np.ndarray) -> float:
    return proxy(problem.sizes, held) / proxy(problem.sizes, best) - 1


def _bytes(base: Base, held: np.ndarray) -> int:
    return sum(base.needed(int(count)) for count in held.sum(axis=1))


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    large = f"{found['seconds']} s; {found['seconds_with_slack']} s with a slack of {found['slack']:g}"
    saved = f"{found['memory_saved']:.1%}; {found['memory_saved_with_slack']:.1%} with slack"
    return "\n".join(
        [
            f"{found['devices']} devices, 32 blocks: {large}",
            f"{found['fleets']} fleets of up to {MOST} devices, 12 blocks, against the best (where the search ends):",
            f"  convergence proxy {_gap_told(found, 'greedy_gap')}; rarest first, without moves: {_gap_told(found, 'rarest_first_gap')}",
            f"  memory within the slack {_gap_told(found, 'memory_gap')}",
            f"memory saved, against all blocks on every device: {saved}",
            f"all blocks have had their turn after {found['windows']} rounds at most",
        ]
    )


def _gap_told(found: dict[str, Any], name: str) -> str:
    return f"{found[f'{name}_p95']:.2%} worse at the 95th percentile, {found[f'{name}_most']:.2%} at most (of {found[f'{name}_of']})"
