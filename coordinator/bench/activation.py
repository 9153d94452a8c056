"""`scripts/bench activation`: some blocks a device against all on every device, with a frozen head (ZorBA, arXiv 2603.04436).

Simulated fleets with the same shares, batches and probe sizes, rates falling as in any run. All-active has so many rounds; the others
a multiple of them. Each side has its own best rate of one sweep, by the loss that it ends at on the validation file.
"""

import dataclasses
import math
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

DEVICES = 8
ROOMS = (1, 1, 2, 2, 3, 3, 6, 6)  # blocks that a device has room for
LOWEST = (0, 0, 1, 2, 3, 4, 5, 5)  # block below which a device is too slow
RATES = (4.0, 8.0)  # times the default
MULTIPLES = (0.75, 1.0, 1.3)  # of the rounds of all-active
DEADLINE = 60.0


class Roomy(Simulation):
    """Devices that have room for so many blocks each, whatever they tell: memory of adapters hardly differs by block."""

    held: Sequence[tuple[int, ...]] = ()

    def work(self, device: int, precision: Precision) -> WorkPlan | None:
        return self.rounds.plan(device, precision, self._profiles[device].stage_ns, self.held[device])


Make = Callable[[RunConfig, int], Simulation]
Losses = dict[str, dict[float, float]]  # that a side ends at, at its best rate, by multiple of the rounds


class Fleets:
    """Runs with one bundle on one data set."""

    def __init__(self, bundle: Bundle, data: Path, rounds: int) -> None:
        self.bundle, self.rounds = bundle, rounds
        self._private = examples.read(data / "train.jsonl", bundle.manifest.task).examples
        self._validation = evaluation.batches(bundle, data / "validation.jsonl", 0)
        self.sides: dict[str, Make] = {"all": self._all, "by memory": self._by_memory, "by time": self._by_time}

    def losses(self, seed: int, rates: Sequence[float] = RATES, multiples: Sequence[float] = MULTIPLES) -> Losses:
        """Of every side. rates: times the default."""
        wanted = {side: (1.0,) if side == "all" else multiples for side in self.sides}
        return {side: {each: min(self.loss(side, seed, rate, each) for rate in rates) for each in wanted[side]} for side in self.sides}

    def loss(self, side: str, seed: int, rate: float, multiple: float) -> float:
        """That a run ends at."""
        *_, last = self.side(side, seed, rate, multiple).run(self._validation, ())
        return float(last.metrics["loss"])

    def start(self) -> float:
        """The loss before any round."""
        return float(next(iter(self.side("all", 0, 1.0, 1.0).run(self._validation, ()))).metrics["loss"])

    def side(self, name: str, seed: int, rate: float, multiple: float) -> Simulation:
        """A fleet that has not begun."""
        config = RunConfig(
            str(self.bundle.folder),
            rounds=max(1, round(self.rounds * multiple)),
            held_out_every=0,  # the autopilot leaves rates and the run as they are
            round=Round(DEVICES, DEVICES, DEADLINE),
            algorithm="mezo",
            probe=Probe(directions=1),
            rate=Rate(body=rate * aggregation.default_rate(self.bundle.manifest.task), head=0.0),
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
    """All figures."""
    return summed(fleets, [fleets.losses(seed, rates) for seed in range(seeds)])


def summed(fleets: Fleets, rows: Sequence[Losses]) -> dict[str, Any]:
    """Mean losses over the seeds; and the median of the least multiples at which a side's is not above all-active's of that seed,
    infinite where it is at none.
    """
    mean = {side: {each: statistics.fmean(row[side][each] for row in rows) for each in rows[0][side]} for side in rows[0]}
    found: dict[str, Any] = {
        "rounds": fleets.rounds,
        "devices": DEVICES,
        "rooms": ROOMS,
        "lowest": LOWEST,
        "start": round(fleets.start(), 4),
    }
    for side, losses in mean.items():
        name = side.replace(" ", "_")
        found[f"loss_{name}"] = {f"{multiple:g}": round(each, 4) for multiple, each in losses.items()}
        if side != "all":
            ratios = [min((each for each, loss in row[side].items() if loss <= row["all"][1.0]), default=math.inf) for row in rows]
            found[f"probes_ratio_{name}"] = statistics.median(ratios)
    return found | {"seeds": [{side: {f"{m:g}": round(each, 4) for m, each in row[side].items()} for side in row} for row in rows]}


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    probes = 2 * DEVICES * found["rounds"]
    lines = [f"validation loss {found['start']} -> {found['loss_all']['1']} after {probes} probes of all blocks on every device"]
    for name, text in (
        ("by_memory", f"room for {list(found['rooms'])} blocks"),
        ("by_time", f"too slow for blocks below {list(found['lowest'])}"),
    ):
        losses = ", ".join(f"{each} after {float(multiple) * probes:.0f}" for multiple, each in found[f"loss_{name}"].items())
        lines.append(f"{text}: {losses}; {found[f'probes_ratio_{name}']} of the probes")
    return "\n".join(lines)
