"""`scripts/bench ranks`: one adapter for devices of unequal rank (PreLort, arXiv 2606.15963) against its peers, at equal probes.

Eight devices with ranks 2, 2, 4, 4, 8, 8, 16, 16 and uneven shares (Dirichlet 0.3), one direction a device and round, the head as it is,
so that adapters alone are measured. Each side has its own best rate, by the mean of seeds that count for nothing else, and the same
shares, batches and seeds of directions as the others. Losses are means over examples, by which rates are chosen too, and devices draw
examples as they come, so that this is what they lower; with --balanced classes equally often, as agents do unless told otherwise.
Differences are also told of class-balanced losses.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any

from coordinator import task as task_file
from coordinator.bench import rank_costs, workload
from coordinator.bench.rank_fleets import BATCH, UNEVEN, Fleets, build_bundles
from coordinator.bench.rank_search import TUNING_SEEDS, Fly, Job, Loss, Losses, Search, search
from coordinator.bench.rank_sides import BY_OWNERS, DEVICES, FLAT, RANKS, SIDES, PaddingByOwners
from coordinator.bench.standard_error import compared
from coordinator.build.build import build
from coordinator.build.layers import Training
from zo.bundle import open_bundle
from zo.lattice import RangeError
from zo.manifest import PRECISIONS

LARGE = (16, 64, 256)  # of which costs alone are measured

FLEX = "flexlora"
PEERS = ("zero_padded", "blind", "smallest_rank", "largest_rank", FLEX)
ALONE = {2: "smallest_rank", 4: "rank_4_alone", 8: "rank_8_alone", 16: "largest_rank"}  # all devices of one rank
OWNERS = {2: "smallest_rank", 4: "rank_4_by_owners", 8: "rank_8_by_owners", 16: "rank_16_by_owners"}  # those that bear it alone


def options(parser: argparse.ArgumentParser) -> None:
    workload.add_data(parser, "folder as of 'split'")
    workload.add_model(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="int8", help="[int8]")
    parser.add_argument("--max-tokens", type=int, default=32, help="[32]")
    parser.add_argument("--top-blocks", type=int, default=1, help="blocks that have adapters, those nearest the output [1]")
    parser.add_argument("--seeds", type=int, default=12, help="[12]")
    parser.add_argument("--rounds", type=int, default=80, help="of 8 devices, 2 probes each [80]")
    parser.add_argument("--balanced", action="store_true", help="devices draw their classes equally often")
    parser.add_argument("--repeats", type=int, default=25, help="of the steps that are timed, by rank [25]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model, task = workload.model(given), task_file.of_data(given.data, given.max_tokens)
    build_bundles(model, folder, given.data, task, given.precision, given.top_blocks)
    arguments = (folder, given.data, given.rounds, given.balanced)
    fleets = Fleets(*arguments)
    with ProcessPoolExecutor(cpu_count(), get_context("spawn")) as pool:
        found = measure(lambda jobs: pool.map(partial(_losses, arguments), jobs), given.seeds)
    found = {"top_blocks": given.top_blocks} | _setting(fleets) | found
    found["by_rank"] = rank_costs.measure(fleets.bundles[RANKS], given.repeats)
    if not given.model:
        build(model, folder / "large", task, Training(precision=given.precision, ranks=LARGE), [])
        found["by_large_rank"] = rank_costs.measure(open_bundle(folder / "large"), given.repeats)
    return found


_opened = lru_cache(maxsize=1)(Fleets)  # once for all jobs of a process


def _losses(arguments: tuple[Path, Path, int, bool], job: Job) -> Losses:
    fleets, side = _opened(*arguments), SIDES.get(job.side)
    every = side.bundle if side else RANKS
    prefixes = every[-1:] if job.seed in TUNING_SEEDS else every
    try:
        found = fleets.run(side, side.kinds[job.kind], job.seed, job.rate, prefixes) if side else fleets.flex(job.seed, job.rate, prefixes)
    except RangeError:  # values have run away
        found = dict.fromkeys(prefixes, Loss(math.inf, math.inf))
    print(f"{job}: {found}", file=sys.stderr, flush=True)  # runs take long: where they stand
    return found


def measure(fly: Fly, seeds: int) -> dict[str, Any]:
    """All sides: the best rate of each by the tuning seeds, then all seeds at it."""
    searches = [Search(name, kind) for name, side in SIDES.items() for kind in range(len(side.kinds))] + [Search(FLEX)]
    search(fly, searches)
    best: dict[str, Search] = {}
    for each in sorted(searches, key=lambda each: each.tried[each.best]):
        best.setdefault(each.side, each)
    jobs = [Job(name, each.kind, each.best, seed) for name, each in best.items() for seed in range(seeds)]
    found: dict[str, list[Losses]] = {name: [] for name in best}
    for job, losses in zip(jobs, fly(jobs), strict=True):
        found[job.side].append(losses)
    return _chosen(seeds, best) | differences(found)


def _setting(fleets: Fleets) -> dict[str, Any]:
    setting = {"rounds": fleets.rounds, "devices": DEVICES, "directions": 1, "examples": BATCH, "dirichlet": UNEVEN, "rate_head": 0.0}
    return setting | {"balanced": fleets.balanced, "default_rate": fleets.usual, "start_loss": round(fleets.start().mean, 4)}


def _chosen(seeds: int, best: Mapping[str, Search]) -> dict[str, Any]:
    padded = SIDES["zero_padded"].kinds[best["zero_padded"].kind]
    return {
        "seeds": list(range(seeds)),
        "tuning_seeds": TUNING_SEEDS,
        "rates": {name: each.best for name, each in best.items()},
        "tried": {name: each.tried for name, each in best.items()},
        "zero_padded_by_slice": BY_OWNERS if padded is PaddingByOwners else FLAT,
    }


def differences(found: Mapping[str, Sequence[Losses]]) -> dict[str, Any]:
    """The figures, of losses by prefix by seed of each side: of means over examples, and the same of class-balanced ones."""
    by_kind = [
        {side: [{rank: loss[kind] for rank, loss in losses.items()} for losses in each] for side, each in found.items()}
        for kind in range(len(Loss._fields))
    ]
    return _figures(by_kind[0]) | {"class_balanced": _figures(by_kind[1])}


def _figures(found: Mapping[str, Sequence[Mapping[int, float]]]) -> dict[str, Any]:
    def at(side: str, rank: int) -> list[float]:
        return [losses[rank] for losses in found[side]]

    full = {name: [losses[max(losses)] for losses in each] for name, each in found.items()}
    against = {f"nested_minus_{name}": compared(full["nested"], full[name]) for name in PEERS}
    prefix: dict[str, dict[str, Any]] = {
        str(rank): {
            "nested": _mean(at("nested", rank)),
            "cut_from_blind": _mean(at("blind", rank)),
            "alone": _mean(at(ALONE[rank], rank)),
            "by_owners": _mean(at(OWNERS[rank], rank)),
            "flexlora": _mean(at(FLEX, rank)),
            "minus_cut_from_blind": compared(at("nested", rank), at("blind", rank)),
            "minus_alone": compared(at("nested", rank), at(ALONE[rank], rank)),
            "minus_by_owners": compared(at("nested", rank), at(OWNERS[rank], rank)),
        }
        for rank in RANKS
    }
    losses = {name: [round(loss, 4) for loss in each] for name, each in full.items()}
    return {**against, "prefix_losses": prefix, "losses": losses}


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""

    def against(found: Mapping[str, Any]) -> list[str]:
        rows = [(key, each) for key, each in found.items() if key.startswith("nested_minus")]
        return [f"{key.replace('_', ' '):30} {row['mean']:+.4f} +- {row['se']:.4f} (upper {row['upper']:+.4f})" for key, row in rows]

    lines = [f"{found['rounds']} rounds of 8 devices, one direction each; validation loss before: {found['start_loss']:.4f}"]
    for name, each in found["losses"].items():
        lines.append(f"{name:17} rate x {found['rates'][name]:<4g} {statistics.fmean(each):.4f}   by seed: {each}")
    lines += [*against(found), "class-balanced:", *against(found["class_balanced"])]
    lines.append("prefix   nested   cut from blind   alone   alone by owners   flexlora")
    for rank, row in found["prefix_losses"].items():
        numbers = f"{row['nested']:8.4f} {row['cut_from_blind']:16.4f} {row['alone']:7.4f} {row['by_owners']:17.4f} {row['flexlora']:10.4f}"
        lines.append(f"{rank:>6} {numbers}")
    for key in ("by_rank", "by_large_rank"):
        lines.append("rank   time of a step, of the largest rank's   bytes of values and branches   peak resident MB")
        for rank, row in found.get(key, {}).items():
            lines.append(f"{rank:>4} {row['time_ratio']:24.3f} {row['adapter_bytes']:34,} {row['peak_mb']:20.1f}")
    return "\n".join(lines)


def _mean(losses: Sequence[float]) -> float:
    return round(statistics.fmean(losses), 4)
