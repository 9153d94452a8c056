"""`scripts/bench activation`: some blocks a device against all on every device, with a frozen head (ZorBA, arXiv 2603.04436).

Simulated fleets with the same shares, batches and probe sizes, at constant rates. All-active runs for some rounds at every rate of a
sweep; the least loss that it ends at is what the others have to reach, each at its own best rate of that sweep, in at most twice the
rounds. Losses are means of three looks; cost is counted in probes.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coordinator.allocation import Base, in_turns
from coordinator.allocation.problem import Capacity
from coordinator.blocks import asked
from coordinator.config import Round, RunConfig
from coordinator.demo import shares
from coordinator.simulation import Simulation
from zo import aggregation, evaluation, examples
from zo.bundle import Bundle
from zo.manifest import Precision
from zo.messages import Profile
from zo.plan import WorkPlan
from zo.recipe import Probe, Rate

DEVICES, VALIDATION, LOOK_EVERY, SMOOTHED = 8, 128, 5, 3
ROOMS = (1, 1, 2, 2, 3, 3, 6, 6)  # blocks that a device has room for
LOWEST = (0, 0, 1, 2, 3, 4, 5, 5)  # block below which a device is too slow
RATES = (4.0, 8.0, 16.0, 32.0)  # times the default
MOST = 2  # times the rounds of all-active
DEADLINE = 60.0


@dataclasses.dataclass(frozen=True)
class Trace:
    """One run: validation loss, mean of this look and the ones before it, by probes of the whole fleet."""

    rate: float
    probes: tuple[int, ...]
    losses: tuple[float, ...]

    def cost(self, loss: float) -> float:
        """Probes until the loss was first this low; infinite where it never was."""
        return next((float(count) for count, each in zip(self.probes, self.losses, strict=True) if each <= loss), float("inf"))


class Roomy(Simulation):
    """Devices that have room for so many blocks each, whatever they tell: memory of adapters hardly differs by block."""

    held: Sequence[tuple[int, ...]] = ()

    def work(self, device: int, precision: Precision) -> WorkPlan | None:
        return self.rounds.plan(device, precision, self._profiles[device].stage_ns, self.held[device])


Make = Callable[[RunConfig, int], Simulation]


class Fleets:
    """Runs with one bundle on one data set."""

    def __init__(self, bundle: Bundle, data: Path, rounds: int) -> None:
        self.bundle, self.rounds = bundle, rounds
        self._private = examples.read(data / "train.jsonl", bundle.manifest.task).examples
        self._validation = evaluation.batches(bundle, data / "validation.jsonl", VALIDATION)
        self.sides: dict[str, Make] = {"all": self._all, "by memory": self._by_memory, "by time": self._by_time}

    def run(self, side: str, seed: int, rate: float, rounds: int, target: float = 0.0) -> Trace:
        """rate: times the default. target: loss at which the run is over."""
        probes, seen, losses = list[int](), list[float](), list[float]()
        looks = {*range(LOOK_EVERY, rounds, LOOK_EVERY), rounds}
        for point in self.side(side, seed, rate).run(self._validation, looks):
            seen.append(point.metrics["loss"])
            probes.append(point.probes)
            losses.append(statistics.fmean(seen[-SMOOTHED:]))
            if point.round >= rounds or (len(seen) >= SMOOTHED and losses[-1] <= target):
                break
        return Trace(rate, tuple(probes), tuple(losses))

    def side(self, name: str, seed: int, rate: float) -> Simulation:
        """A fleet that has not begun."""
        config = RunConfig(
            str(self.bundle.folder),
            rounds=self.rounds * MOST,
            held_out_every=0,  # the autopilot leaves rates and the run as they are
            round=Round(DEVICES, DEVICES, DEADLINE),
            algorithm="mezo",
            probe=Probe(directions=1),
            rate=Rate(body=rate * aggregation.default_rate(self.bundle.manifest.task), head=0.0, final=1.0),
        )
        return self.sides[name](config, seed)

    def _shares(self, seed: int) -> list[Any]:
        return shares.divide(self._private, DEVICES, seed)

    def _all(self, config: RunConfig, seed: int) -> Simulation:
        return Simulation(self.bundle, dataclasses.replace(config, blocks="all"), self._shares(seed), seed)

    def _by_memory(self, config: RunConfig, seed: int) -> Simulation:
        made = Roomy(self.bundle, config, self._shares(seed), seed)
        body = [group for group in self.bundle.manifest.groups if group.kind == "body"]
        _, held = in_turns(tuple(group.size for group in body), [Capacity(most) for most in ROOMS])
        made.held = [tuple(group.id for group, taken in zip(body, row, strict=True) if taken) for row in held]
        return made

    def _by_time(self, config: RunConfig, seed: int) -> Simulation:
        base = Base(self.bundle.manifest, asked(config))
        told = [_slow(base, len(self.bundle.manifest.stages), lowest) for lowest in LOWEST]
        return Simulation(self.bundle, config, self._shares(seed), seed, told)


def _slow(base: Base, stages: int, lowest: int) -> Profile:
    """Of a device that is just fast enough for the blocks from `lowest` on."""
    second = Profile(0, (10**9,) * stages, (10**9,) * stages)
    each = (int(0.99e9 * DEADLINE / base.seconds(second)[base.stages[min(lowest, len(base.stages) - 1)]]),) * stages
    return Profile(0, each, each)


def measure(fleets: Fleets, seeds: int, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """By seed: the loss that all-active comes to, and what it costs every side; and the median ratios of probes, where all came to it."""
    rows = []
    for seed in range(seeds):
        everything = [fleets.run("all", seed, rate, fleets.rounds) for rate in rates]
        target = min(trace.losses[-1] for trace in everything)
        row: dict[str, Any] = {"seed": seed, "start": round(everything[0].losses[0], 4), "loss": round(target, 4), "probes": {}, "rate": {}}
        for side in fleets.sides:
            traces = everything if side == "all" else [fleets.run(side, seed, rate, MOST * fleets.rounds, target) for rate in rates]
            best = min(traces, key=lambda trace: trace.cost(target))
            row["probes"][side], row["rate"][side] = best.cost(target), best.rate
            row.setdefault("least", {})[side] = {f"{trace.rate:g}": round(min(trace.losses), 4) for trace in traces}
        rows.append(row)
    ratios = {side: [row["probes"][side] / row["probes"]["all"] for row in rows] for side in fleets.sides if side != "all"}
    found = {f"probes_ratio_{side.replace(' ', '_')}": round(statistics.median(each), 3) for side, each in ratios.items()}
    return {"rounds": fleets.rounds, "devices": DEVICES, "rooms": ROOMS, "lowest": LOWEST, "seeds": rows} | found


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = []
    for row in found["seeds"]:
        lines.append(f"seed {row['seed']}: validation loss {row['start']} -> {row['loss']}")
        lines += [f"  {side:10} {count:8.0f} probes at rate x {row['rate'][side]:g}" for side, count in row["probes"].items()]
    return "\n".join(
        [
            *lines,
            f"room for {list(found['rooms'])} blocks: {found['probes_ratio_by_memory']} of the probes of all-active (median)",
            f"too slow for blocks below {list(found['lowest'])}: {found['probes_ratio_by_time']} of them",
        ]
    )
