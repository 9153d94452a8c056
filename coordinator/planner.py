"""Which tree of directions each device walks: as the settings state it, or the cheapest predicted from its own times (zo.split)."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from coordinator import truncation
from coordinator.config import RunConfig
from zo import ranks, split
from zo.errors import ConfigError
from zo.manifest import Manifest, Precision
from zo.plan import Node, Shape
from zo.planning import kept_bytes, seeded, sized_tree, sizes, tree, within
from zo.recipe import directions, stated_shape

log = logging.getLogger(__name__)

MOST_SCALARS = 1 << 18  # of a round: its entry must fit a message
LOOK_BACK = 16  # entries whose slopes tell where the gradient is; and rounds between plans


class ShapeRefused(ConfigError):
    """A shape that the run does not ask for."""


class Planner:
    """The shapes and trees of a run. ConfigError where its settings fit the bundle's stages or the devices' memory in no way.

    summaries: of the entries so far, oldest first. slopes: mean squared one by group over the last of them; of groups whose slopes could
    be told from others'.
    """

    def __init__(self, config: RunConfig, manifest: Manifest, summaries: Sequence[dict[str, Any]] = ()) -> None:
        self._config, self._manifest = config, manifest
        truncation.check(manifest, config.ranks.probabilities)
        self._recent = [summary.get("slopes", {}) for summary in summaries[-LOOK_BACK:]]
        self.slopes = _means(self._recent)
        self._told, self._learnt = set[Shape](), 0
        self._times: dict[int, tuple[int, tuple[int, ...]]] = {}  # by device: a round, and what its stages cost by then
        self._tried, self._every = trained(config, manifest), tuple(group.id for group in manifest.groups)
        self._fixed = stated_shape(config.algorithm, config.probe, config.split)
        if self._fixed:
            tree(manifest, sizes(config.probe, manifest), self._fixed)  # refuses cuts that the bundle has not
            self._fixed = self._within(manifest, self._fixed, self._tried)
        usual = self._fixed or self._within(manifest, split.choose(self.table(manifest.precision, (), self._tried)).shape, self._tried)
        self.usual = replace(usual, rank=manifest.ranks[-1] if manifest.ranks else 0)
        for precision in manifest.bases:
            self.tree(precision, self.usual)

    def shape(self, precision: Precision, stage_ns: tuple[int, ...], among: tuple[int, ...] = (), rank: int = 0) -> Shape:
        """For a device with that base. stage_ns: what its stages cost it; empty where that is not known. among: the groups that it
        tries, all of those that the run trains if left out. rank: to which adapters are cut for it.
        """
        tried = tuple(group for group in self._tried if group in among) if among else self._tried
        total = sum(stage_ns) or 1
        half_octaves = tuple(round(2 * math.log2(max(each, 1) / total)) for each in stage_ns)
        return self._fixed_within(tried, rank) if self._fixed else self._planned(precision, half_octaves, tried, rank)

    def asked(
        self, round_number: int, device: int, precision: Precision, stage_ns: tuple[int, ...], among: tuple[int, ...], rank: int
    ) -> Shape:
        """The `shape` for a device in a round: cut to a prefix of the rank that it bears, or not (coordinator.truncation).

        Devices that are compared are all asked for the usual one; ConfigError where one does not bear that.
        """
        if self._config.aggregation == "mean":
            drawn = truncation.drawn(self._manifest, self._config.ranks.probabilities, round_number, device, rank)
            return self.shape(precision, self._once(round_number, device, stage_ns), among, drawn)
        if rank not in (0, *self._manifest.ranks[-1:]):
            raise ConfigError(
                f"aggregation = {self._config.aggregation!r} compares devices of the largest rank, {self._manifest.ranks[-1]}; this one"
                f" bears rank {rank}"
            )
        return self.usual

    def _once(self, round_number: int, device: int, stage_ns: tuple[int, ...]) -> tuple[int, ...]:
        """What a device says of its stages counts once a round, since to plan for it takes this process a while."""
        known = self._times.get(device)
        if known is None or known[0] != round_number:
            known = self._times[device] = round_number, stage_ns
        return known[1]

    def node(self, round_number: int, device: int, precision: Precision, shape: Shape | None = None) -> Node:
        """The `tree` of a device in a round, with seeds of its own next to those of its neighbours.

        shape: the run's usual one if left out; of devices that are compared, ShapeRefused where it is another.
        """
        if shape and shape != self.usual and self._config.aggregation != "mean":
            raise ShapeRefused("devices whose reports are compared walk one tree")
        seeds = self._config.seeds
        root = self.tree(precision, shape or self.usual)
        return seeded(root, self._manifest.run_key, round_number, 0 if seeds.shared else device, seeds.pool)

    @lru_cache(maxsize=1024)  # noqa: B019  lives as long as the run does
    def _fixed_within(self, tried: tuple[int, ...], rank: int) -> Shape:
        assert self._fixed is not None
        return self._within(self._manifest, replace(self._fixed, rank=rank), tried)

    def _within(self, manifest: Manifest, shape: Shape, tried: tuple[int, ...]) -> Shape:
        return within(manifest, sizes(self._config.probe, manifest), shape, tried)

    @lru_cache(maxsize=1024)  # noqa: B019
    def _planned(self, precision: Precision, half_octaves: tuple[int, ...], tried: tuple[int, ...], rank: int) -> Shape:
        """The cheapest shape where stages cost 2**(half octaves / 2)."""
        stage_ns = tuple(round(1e6 * 2 ** (each / 2)) + 1 for each in half_octaves)
        rows = self.table(precision, stage_ns, tuple(group for group in tried if group in ranks.prefix(self._manifest, rank)))
        shape = self._within(self._manifest, replace(split.choose(rows).shape, rank=rank), tried)
        if (whole := replace(shape, groups=())) not in self._told:
            log.info("the cheapest way to equal progress, for a device with base %s:\n%s", precision, split.told(rows))
            self._told.add(whole)
        return shape

    def table(self, precision: Precision, stage_ns: tuple[int, ...], tried: tuple[int, ...] = ()) -> list[split.Prediction]:
        """What is predicted of every cut that fits the run's limits. tried: groups; all of them if left out."""
        manifest = self._manifest.at(precision)
        probe, count = self._config.probe, directions(self._config.algorithm, self._config.probe)
        log2_eps, clean = sizes(probe, manifest), self._config.split.clean
        return split.plan_table(manifest, log2_eps, count, stage_ns, self.slopes, self._fits, clean, tried)

    @lru_cache(maxsize=256)  # noqa: B019
    def tree(self, precision: Precision, shape: Shape) -> Node:
        """With all seeds from 0 on. ConfigError where the bundle has no such base or stages, ShapeRefused where the run no such shape."""
        manifest, count = self._manifest.at(precision), directions(self._config.algorithm, self._config.probe)
        if not set(shape.groups or self._every).issubset(self._tried):
            raise ShapeRefused(f"the run trains groups {list(self._tried)}, not all of {list(shape.groups)}")
        if self._fixed and shape != self._fixed_within(shape.groups, shape.rank):
            raise ShapeRefused(f"the run asks for {self._fixed}, not {shape}")
        if not self._fixed and (shape.joint or shape.clean > self._config.split.clean or shape.counts[0] != count):
            raise ShapeRefused(f"the run asks for {count} directions of the lowest part, and tries one part at a time, not {shape}")
        made = sized_tree(self._config.probe, manifest, shape)
        self._check(shape)
        return made

    def learn(self, slopes: dict[str, float]) -> None:
        """Take in the slopes of a committed round."""
        self._recent = [*self._recent[1 - LOOK_BACK :], slopes]
        self.slopes = _means(self._recent)
        self._learnt += 1
        if self._learnt % LOOK_BACK == 0:
            self._planned.cache_clear()

    def _fits(self, shape: Shape) -> bool:
        try:
            self._check(shape)
        except ShapeRefused:
            return False
        return True

    def _check(self, shape: Shape) -> None:
        """ShapeRefused where it is beyond the run's limits."""
        if self._kept(shape) > self._config.split.kept:
            raise ShapeRefused(
                f"cuts = {list(shape.cuts)} make a device keep {self._kept(shape) / 1e6:.1f} MB of outputs, and split.kept ="
                f" {self._config.split.kept:.0f}; allow more, cut nearer the output, or lower probe.examples"
            )
        if self._config.round.goal * shape.scalars > MOST_SCALARS:
            raise ShapeRefused(
                f"round.goal = {self._config.round.goal} reports of {shape} are more than {MOST_SCALARS} scalars; lower one of them"
            )
        widest = math.prod(shape.counts)
        if 0 < self._config.seeds.pool < widest:
            raise ShapeRefused(f"seeds.pool = {self._config.seeds.pool} must be 0, or at least the {widest} directions of a device")

    def _kept(self, shape: Shape) -> int:
        return kept_bytes(self._manifest, shape, self._config.probe.examples)


def _means(told: Sequence[dict[str, float]]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for slopes in told:
        for group, square in slopes.items():
            found.setdefault(int(group), []).append(square)
    return {group: float(np.mean(squares)) for group, squares in found.items()}


def trained(config: RunConfig, manifest: Manifest) -> tuple[int, ...]:
    """Groups of the kinds that are trained at all. ConfigError where none is."""
    stated = {"body": config.rate.body, "head": config.rate.head}
    found = tuple(group.id for group in manifest.groups if stated[group.kind] != 0)
    if not found:
        raise ConfigError("rate.body and rate.head are 0 for all that the bundle trains; nothing would be learnt")
    return found
