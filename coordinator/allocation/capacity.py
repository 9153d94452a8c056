"""What a device can take, by its profile: bytes by the formulas of zo.memory, seconds by its own times."""

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from coordinator.allocation.problem import Capacity
from zo.group import Group
from zo.manifest import Manifest, Precision
from zo.memory.engine import Device, need
from zo.memory.fitting import largest
from zo.memory.units import told
from zo.messages import Profile

SCALAR = 3  # bytes of a report's scalar, at most nearly always
MODEL_ALONE = Device(0)  # a profile states what is left beside the process


@dataclass(frozen=True)
class Asked:
    """What a round asks of a device: directions, each on so many examples, and the others' reports (`reports` in all) to be replayed.

    seconds: that it may take.
    """

    examples: int = 8
    directions: int = 1
    reports: int = 1
    seconds: float = math.inf


@dataclass(frozen=True)
class Fit:
    """A device with a base: what it can take of the blocks; why, in words, where it can take none."""

    precision: Precision
    capacity: Capacity | None
    why: str = ""


class Base:
    """A bundle at one of its bases, and what it takes of a device."""

    def __init__(self, manifest: Manifest, asked: Asked) -> None:
        self.manifest, self._asked = manifest, asked
        self.blocks, self._size = blocks(manifest), sum(group.size for group in manifest.groups)
        self.stages = [next(place for place, each in enumerate(manifest.stages) if set(ids) & set(each.groups)) for ids in self.blocks]

    @cached_property
    def _bytes(self) -> list[int]:
        """By count of blocks that are tried, from none to all."""
        return [self.needed(active) for active in range(len(self.blocks) + 1)]

    def fit(self, profile: Profile) -> Fit:
        """For a device."""
        lowest = self.lowest(profile)
        if not (self.manifest.model and profile.memory_mib):
            return Fit(self.manifest.precision, Capacity(len(self.blocks), lowest))
        most = bisect_right(self._bytes, profile.memory_mib << 20) - 1
        if most < 1:
            room = f"{told(profile.memory_mib << 20)} for the model"
            return Fit(
                self.manifest.precision, None, f"one block with base {self.manifest.precision} needs {told(self._bytes[1])}, it has {room}"
            )
        return Fit(self.manifest.precision, Capacity(most, lowest))

    def needed(self, active: int, rows: int = 0) -> int:
        """Bytes of the model with so many blocks tried, in runs of so many rows: one example with its two branches at least."""
        tokens = self.manifest.task.max_tokens
        rows = max(rows, 2 * tokens)
        return need(self.manifest, rows, tokens, MODEL_ALONE, pairs=rows // (2 * tokens), active=active).total

    def lowest(self, profile: Profile) -> int:
        """The lowest block that a device can try in time: all stages from there on run for every branch. At worst the topmost stage's."""
        taken = self.seconds(profile)
        return next(block for block, stage in enumerate(self.stages) if stage == self.stages[-1] or taken[stage] <= self._asked.seconds)

    def seconds(self, profile: Profile) -> list[float]:
        """Of a round of plain MeZO on the blocks from a stage on, by stage: replaying, probing, reporting; of what the profile states."""
        asked, stages = self._asked, len(self.manifest.stages)
        found, once, branches = 0.0, [0] * stages, [0] * stages
        if len(profile.stage_ns) == len(profile.single_ns) == stages:
            once = list(itertools.accumulate((0, *profile.single_ns[:-1])))
            branches = list(itertools.accumulate(reversed(profile.stage_ns)))[::-1]
        if profile.signs_per_second:
            found += asked.reports * asked.directions * self._size / profile.signs_per_second
        if profile.bytes_per_second:
            found += SCALAR * asked.directions / profile.bytes_per_second
        each = asked.examples / 1e9
        return [found + each * (below + 2 * asked.directions * above) for below, above in zip(once, branches, strict=True)]

    def runs(self, profile: Profile, active: int) -> tuple[int, int]:
        """Branches side by side, and examples in a run, with the memory that is left: branches are given up before examples."""
        tokens, examples = self.manifest.task.max_tokens, self._asked.examples
        rows = most = 2 * self._asked.directions * examples * tokens
        if self.manifest.model and profile.memory_mib:
            rows = largest(lambda count: self.needed(active, count) <= profile.memory_mib << 20, most)
        branches = max(2, 2 * (rows // (2 * examples * tokens)))
        return branches, max(1, min(examples, rows // (branches * tokens)))


def blocks(manifest: Manifest) -> tuple[tuple[int, ...], ...]:
    """Ids of the groups of every block, lowest first. Slices of one adapter are groups of one block: their names end in a number."""
    body = [group for group in manifest.groups if group.kind == "body"]
    return tuple(tuple(group.id for group in alike) for _, alike in itertools.groupby(body, _whole))


def _whole(group: Group) -> str:
    """What the group's first tensor is, or is a slice of."""
    name, _, slice_ = group.tensors[0].name.rpartition(".")
    return name if slice_.isdigit() else group.tensors[0].name


def fit(profile: Profile, bases: Sequence[Base]) -> Fit:
    """The first of the bases with which a device can take most."""
    found = [base.fit(profile) for base in bases]
    return max(found, key=lambda each: each.capacity.room(len(bases[0].blocks)) if each.capacity else 0)
