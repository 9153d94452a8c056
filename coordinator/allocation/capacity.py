"""What a device can take, by its profile: bytes by the formulas of zo.memory, seconds by its own times."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.allocation.problem import Capacity
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
    """A device with a base: what it can take of the blocks, and bytes with no block tried. why: in words, where it can take none."""

    precision: Precision
    capacity: Capacity | None
    fixed: int
    why: str = ""


def blocks(manifest: Manifest) -> tuple[tuple[int, ...], ...]:
    """Ids of the groups of every block, lowest first."""
    return tuple((group.id,) for group in manifest.groups if group.kind == "body")


def fit(profile: Profile, precisions: Sequence[Precision], manifest: Manifest, asked: Asked) -> Fit:
    """The first of the bases with which a device can take most."""
    found = [_fit(profile, manifest.at(precision), asked) for precision in precisions]
    return max(found, key=lambda each: _taken(each, len(blocks(manifest))))


def _taken(found: Fit, count: int) -> int:
    return min(found.capacity.most, count - found.capacity.lowest) if found.capacity else 0


def _fit(profile: Profile, manifest: Manifest, asked: Asked) -> Fit:
    count, lowest = len(blocks(manifest)), lowest_block(profile, manifest, asked)
    if manifest.model is None:
        return Fit(manifest.precision, Capacity(count, lowest), 0)
    fixed = bytes_needed(manifest, 0)
    each = bytes_needed(manifest, 1) - fixed
    if not profile.memory_mib:
        return Fit(manifest.precision, Capacity(count, lowest, each), fixed)
    most = largest(lambda active: bytes_needed(manifest, active) <= profile.memory_mib << 20, count)
    if not most:
        why = f"one block with base {manifest.precision} needs {told(fixed + each)}, and it has {told(profile.memory_mib << 20)} for the model"
        return Fit(manifest.precision, None, fixed, why)
    return Fit(manifest.precision, Capacity(most, lowest, each), fixed)


def bytes_needed(manifest: Manifest, active: int, rows: int = 0) -> int:
    """Of the model with so many blocks tried, in runs of so many rows: one example with its two branches at least."""
    tokens = manifest.task.max_tokens
    rows = max(rows, 2 * tokens)
    return need(manifest, rows, tokens, MODEL_ALONE, pairs=rows // (2 * tokens), active=active).total


def lowest_block(profile: Profile, manifest: Manifest, asked: Asked) -> int:
    """The lowest that a device can try in time: all stages from there on run for every branch. At worst that of the topmost stage."""
    stages = stages_of(manifest)
    for block, stage in enumerate(stages):
        if stage == stages[-1] or seconds(profile, manifest, stage, asked) <= asked.seconds:
            return stages.index(stage) if stage == stages[-1] else block
    raise AssertionError("there is a topmost stage")


def stages_of(manifest: Manifest) -> list[int]:
    """The stage of every block."""
    return [next(place for place, stage in enumerate(manifest.stages) if set(ids) & set(stage.groups)) for ids in blocks(manifest)]


def seconds(profile: Profile, manifest: Manifest, stage: int, asked: Asked) -> float:
    """Of a round of plain MeZO on the blocks from that stage on: replaying, probing, reporting; 0 for what the profile does not state."""
    found = 0.0
    if len(profile.stage_ns) == len(profile.single_ns) == len(manifest.stages):
        found += asked.examples * (sum(profile.single_ns[:stage]) + 2 * asked.directions * sum(profile.stage_ns[stage:])) / 1e9
    if profile.signs_per_second:
        found += asked.reports * asked.directions * sum(group.size for group in manifest.groups) / profile.signs_per_second
    if profile.bytes_per_second:
        found += SCALAR * asked.directions / profile.bytes_per_second
    return found


def runs(profile: Profile, manifest: Manifest, active: int, asked: Asked) -> tuple[int, int]:
    """Branches side by side, and examples in a run, with what memory is left: branches are given up before examples."""
    tokens, most = manifest.task.max_tokens, 2 * asked.directions * asked.examples * manifest.task.max_tokens
    rows = most
    if manifest.model and profile.memory_mib:
        rows = largest(lambda count: bytes_needed(manifest, active, count) <= profile.memory_mib << 20, most)
    branches = max(2, 2 * (rows // (2 * asked.examples * tokens)))
    return branches, max(1, min(asked.examples, rows // (branches * tokens)))
