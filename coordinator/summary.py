"""What `status`, the planner and the autopilot are told of a round: from its reports, without their scalars."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zo.aggregation import by_level, combined
from zo.estimators import Grid
from zo.group import Group
from zo.manifest import Manifest
from zo.messages import Report
from zo.pace import mean_and_error
from zo.plan import Node
from zo.recipe import Aggregation

# of a round without reports, as a way back is
NOTHING_DONE: dict[str, Any] = {
    "reports": 0,
    "seconds": 0.0,
    "probes": 0,
    "scalars": 0,
    "dropped": 0,
    "half_difference": 0.0,
    "held_out": None,
    "device_seconds": 0.0,
    "peak_memory_mib": 0,
}


def summary(
    reports: Sequence[Report],
    nodes: Sequence[Node],
    manifest: Manifest,
    grid: Grid,
    how: Aggregation,
    known: Mapping[int, float],
    waited: float,
    looked: bool,
) -> dict[str, Any]:
    """nodes: what each report answers. known: as `slopes` takes it. looks, held_out: nats, by device and mean (`zo.pace`).

    waited: seconds from the first plan to the last report; no device has worked longer, whatever it says. looked: whether devices
    were asked to measure held-out losses; what was not asked for does not count.
    """
    looks = {str(report.device): grid.values(np.array(report.held_out)).tolist() for report in reports if report.held_out and looked}
    return {
        "reports": len(reports),
        "probes": sum(2 * node.count for node in nodes),
        "scalars": sum(report.scalars.size for report in reports),
        "slopes": slopes(reports, nodes, manifest, grid, how, known),
        **({"ranks": dict(Counter(str(node.rank) for node in nodes))} if manifest.ranks else {}),
        "dropped": sum(report.dropped for report in reports),
        "half_difference": float(np.sqrt(np.mean(np.concatenate([grid.values(report.scalars) for report in reports]) ** 2))),
        "looks": looks,
        "held_out": mean_and_error(np.array([each[0] for each in looks.values()]))[0] if looks else None,
        "device_seconds": sum(min(report.spent.milliseconds / 1000, waited) for report in reports),
        "peak_memory_mib": max(report.spent.peak_memory_mib for report in reports),
        "joules": _joules(reports),
    }


def _joules(reports: Sequence[Report]) -> dict[str, float]:
    """What devices say that they drew, by where they know it from."""
    found: dict[str, float] = {}
    for report in reports:
        if report.spent.energy != "none":
            found[report.spent.energy] = found.get(report.spent.energy, 0.0) + report.spent.millijoules / 1000
    return found


def slopes(
    reports: Sequence[Report], nodes: Sequence[Node], manifest: Manifest, grid: Grid, how: Aggregation, known: Mapping[int, float]
) -> dict[str, float]:
    """Mean squared slope of every group (by its id, as text) that was probed with none of another kind: what the planner learns from.

    The square that groups show together is parted as their squares go that are `known` from before, or else as their values do.
    Where they are not always tried together this comes, entry by entry, to what bears out all squares (expectation maximisation).
    """
    found: dict[int, list[float]] = {}
    groups = {group.id: group for group in manifest.groups}
    for report, node in zip(reports, nodes, strict=True):
        half = grid.values(report.scalars)
        together = (
            [([level for level, _ in node.levels()], half)] if node.joint else [([level], each) for level, each in by_level(node, half)]
        )
        for levels, each in together:
            eps = {group: size.log2_e + groups[group].log2_unit for level in levels for size in level.probe_sizes for group in size.groups}
            if len({groups[group].kind for group in eps}) == 1:  # one kind has one eps
                square = float(np.mean(np.ldexp(each, -next(iter(eps.values()))) ** 2))
                for group, part in _parts([groups[group] for group in eps], known).items():
                    found.setdefault(group, []).append(square * part)
    return {str(group): float(combined(np.array(each)[:, None], how)[0]) for group, each in sorted(found.items())}


def _parts(tried: Sequence[Group], known: Mapping[int, float]) -> dict[int, float]:
    """By group id: its part of the square that they show together."""
    squares = [known.get(group.id, 0.0) for group in tried]
    if not all(squares):
        squares = [float(group.size) for group in tried]
    return {group.id: square / sum(squares) for group, square in zip(tried, squares, strict=True)}
