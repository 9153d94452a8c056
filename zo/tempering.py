"""No device says much more than the others: reports of a round scaled down to what the median of them bears out (DESIGN section 6)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from zo.aggregation import by_level
from zo.manifest import Manifest
from zo.messages import Report
from zo.plan import Node
from zo.rates import Rates, tried

TEMPER = 4.0  # classes differ from device to device, and slopes with them, but hardly more than this

Peers = tuple[frozenset[str], int]  # kinds of group, and the stage that a level begins at, or -1 for all


def tempered(reports: Sequence[Report], nodes: Sequence[Node], given: Rates, manifest: Manifest) -> tuple[list[Report], list[int]]:
    """The reports with no device's scalars of a level larger (in root mean square, over what is to be expected of the groups that it
    tries) than TEMPER times the median device's; and whose were.

    nodes: what each report answers. A level is compared with those that begin at the same stage or, where these are fewer than three,
    with all of the same kinds of group; of fewer than three devices none is judged by the others.
    """
    parts = [_parts(report, node, given, manifest) for report, node in zip(reports, nodes, strict=True)]
    found: dict[Peers, list[tuple[int, float]]] = {}
    for device, levels in enumerate(parts):
        for peers, part, expected in levels:
            for each in (peers, (peers[0], -1)):
                found.setdefault(each, []).append((device, _rms(part) / expected))
    made, too_large = [], []
    for report, levels in zip(reports, parts, strict=True):
        shares = [min(1.0, _most(found, peers) * expected / max(_rms(part), 1e-9)) for peers, part, expected in levels]
        if min(shares) < 1:
            too_large.append(report.device)
            lower = [np.rint(share * part).astype(np.int64) for share, (_, part, _) in zip(shares, levels, strict=True)]
            report = replace(report, scalars=np.concatenate(lower))
        made.append(report)
    return made, too_large


def _most(found: Mapping[Peers, Sequence[tuple[int, float]]], peers: Peers) -> float:
    """What the scalars of a level may come to, over what is to be expected."""
    for among in (found[peers], found[peers[0], -1]):
        middle = float(np.median([each for _, each in among]))
        if len({device for device, _ in among}) >= 3:
            return TEMPER * middle if middle > 0 else math.inf
    return math.inf


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def _parts(report: Report, node: Node, given: Rates, manifest: Manifest) -> list[tuple[Peers, np.ndarray, float]]:
    """A report's scalars by level, all of them together in the joint form: whose they are compared with, and the size to be expected."""
    kind, found = {group.id: group.kind for group in manifest.groups}, []
    for level, part in [(node, report.scalars)] if node.joint else by_level(node, report.scalars):
        kinds_tried = frozenset(kind[group] for size in tried(level) for group in size.groups)
        found.append(((kinds_tried, level.stage), part, given.expected(level, manifest)))
    return found
