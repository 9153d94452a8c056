"""What `status`, the planner and the autopilot are told of a round: from its reports, without their scalars."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from zo.aggregation import by_level, combined
from zo.estimators import Grid
from zo.manifest import Manifest
from zo.messages import Report
from zo.plan import Node
from zo.planning import groups_of_its_size
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


def summary(reports: Sequence[Report], nodes: Sequence[Node], manifest: Manifest, grid: Grid, how: Aggregation) -> dict[str, Any]:
    """nodes: what each report answers. looks, held_out: nats, by device and mean."""
    looks = {str(report.device): grid.values(np.array(report.held_out)).tolist() for report in reports if report.held_out}
    return {
        "reports": len(reports),
        "probes": sum(2 * node.count for node in nodes),
        "scalars": sum(report.scalars.size for report in reports),
        "slopes": slopes(reports, nodes, manifest, grid, how),
        **({"ranks": dict(Counter(str(node.rank) for node in nodes))} if manifest.ranks else {}),
        "dropped": sum(report.dropped for report in reports),
        "half_difference": float(np.sqrt(np.mean(np.concatenate([grid.values(report.scalars) for report in reports]) ** 2))),
        "looks": looks,
        "held_out": float(np.mean([each[0] for each in looks.values()])) if looks else None,
        "device_seconds": sum(report.spent.milliseconds for report in reports) / 1000,
        "peak_memory_mib": max(report.spent.peak_memory_mib for report in reports),
    }


def slopes(reports: Sequence[Report], nodes: Sequence[Node], manifest: Manifest, grid: Grid, how: Aggregation = "mean") -> dict[str, float]:
    """Mean squared slope of every group (by its id, as text) that was probed with none of another kind: what the planner learns from."""
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
                for group, alike in groups_of_its_size(groups[group] for group in eps).items():
                    found.setdefault(group, []).append(square / alike)
    return {str(group): float(combined(np.array(each)[:, None], how)[0]) for group, each in sorted(found.items())}
