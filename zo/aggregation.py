"""From the reports of a round to the terms of its entry: pure functions (DESIGN section 6)."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from zo.estimators import Grid, joint_halves, mezo_steps, round_stochastically
from zo.group import Group
from zo.ledger import fold
from zo.manifest import Manifest
from zo.messages import Report
from zo.plan import Node, ProbeSize
from zo.planning import enlarged, stretch
from zo.rates import MOST_SUMMED, Rates
from zo.recipe import Aggregation
from zo.terms import Term


def aggregate(
    reports: Sequence[Report],
    nodes: Sequence[Node],
    given: Rates,
    factors: Mapping[str, float],
    manifest: Manifest,
    grid: Grid,
    how: Aggregation = "mean",
    shared: bool = False,
) -> tuple[Term, ...]:
    """Terms of a round, weighted by examples: -factor * rate * (half difference / signal) * probe, for every direction.

    nodes: what each report answers, with the probe sizes of its device's base. A half difference over its own probe size is a
    slope, which has one scale in all bases; signal and probe are the run's. Every group is averaged over the reports that
    perturbed it. factors: by kind. The same reports in any order give the same terms. how: other than "mean" needs trees that are
    alike, with the seeds of all devices `shared`; then the slopes along each direction are combined first, and what a device says
    of its count of examples does not count.
    """
    groups = {group.id: group for group in manifest.groups}
    rounded_alike = {(group.kind, group.log2_unit): group.id for group in reversed(manifest.groups)}  # in whichever part they are
    tally = Tally(reports, nodes, shared)
    halves = [by_level(node, grid.values(report.scalars)) for report, node in zip(reports, nodes, strict=True)]
    terms = []
    for report, node, parts in zip(reports, nodes, halves, strict=True):
        tried = {group for level, _ in node.levels() for size in level.probe_sizes for group in size.groups}
        further = stretch(manifest, tried)
        usual = enlarged(manifest, given.log2_eps, further)
        for place, (level, half) in enumerate(parts):
            signal = given.expected(node if node.joint else level, manifest, usual)
            for size in tally.alike(level.probe_sizes):
                group = groups[size.groups[0]]
                log2_eps = size.log2_e + group.log2_unit
                if how == "mean":
                    said, weight = half, tally.growth(group) * report.examples / tally.examples[group.id] / half.size
                else:
                    said, weight = _together([parts[place] for parts in halves], group, log2_eps, how), tally.growth(group) / half.size
                log2 = given.log2_step(group.kind, level, node, manifest) + usual[group.kind]
                rate = factors[group.kind] * given.by_kind[group.kind] * 2.0**log2 / signal * further[group.kind]
                steps = mezo_steps(said, weight, rate, log2_eps, group.log2_unit)
                key = manifest.run_key, rounded_alike[group.kind, group.log2_unit], level.first_seed, report.round
                terms.append(Term(size.groups, level.first_seed, round_stochastically(steps, *key)))
        if how != "mean":
            break  # one stands for all
    return fold(terms)


class Tally:
    """How often each group was perturbed in a round, over how many examples; by its id."""

    def __init__(self, reports: Sequence[Report], nodes: Sequence[Node], shared: bool) -> None:
        self.directions, self.examples = Counter[int](), Counter[int]()
        for report, node in zip(reports, nodes, strict=True):
            for level, total in node.levels():
                for group in (group for size in level.probe_sizes for group in size.groups):
                    self.directions[group] = max(self.directions[group], total) if shared else self.directions[group] + total
                    self.examples[group] += report.examples

    def growth(self, group: Group) -> int:
        """How many times as far as of one direction a group moves."""
        return min(self.directions[group.id], MOST_SUMMED)

    def alike(self, sizes: Sequence[ProbeSize]) -> list[ProbeSize]:
        """Groups parted by how often they were perturbed in all: reports of other shapes may have tried some of them oftener."""
        parts: dict[tuple[int, int, int], list[int]] = {}
        for place, size in enumerate(sizes):
            for group in size.groups:
                parts.setdefault((place, self.directions[group], self.examples[group]), []).append(group)
        return [ProbeSize(tuple(groups), sizes[place].log2_e) for (place, _, _), groups in parts.items()]


def _together(parts: Sequence[tuple[Node, np.ndarray]], group: Group, log2_eps: int, how: Aggregation) -> np.ndarray:
    """What all reports say together of a level's directions, as half differences of probes that move a group by 2**log2_eps."""
    return combined(np.stack([np.ldexp(half, log2_eps - _log2_eps(level, group)) for level, half in parts]), how)


def combined(rows: np.ndarray, how: Aggregation) -> np.ndarray:
    """What reports [reports, directions] say together of each direction: float64 [directions].

    "median", or "trimmed-mean": the mean without the highest and the lowest quarter, at least one each of three reports or more
    (Yin et al., arXiv 1803.01498, for gradients; here, for slopes along shared directions). The first stays in the range of the honest
    reports as long as these are more than half, the second as long as the others are not more than are cut off at one end.
    """
    if how == "mean":
        return rows.mean(axis=0)
    if how == "median":
        return np.median(rows, axis=0)
    count = len(rows)
    cut = max(count // 4, 1) if count >= 3 else 0
    return np.sort(rows, axis=0)[cut : count - cut].mean(axis=0)


def _log2_eps(level: Node, group: Group) -> int:
    """By how much a level moves the values of a group."""
    return next(size.log2_e for size in level.probe_sizes if group.id in size.groups) + group.log2_unit


def by_level(root: Node, half: np.ndarray) -> list[tuple[Node, np.ndarray]]:
    """The scalars or half differences of a report, [scalars], by the level of the plan that they belong to."""
    if root.child is None:
        return [(root, half)]
    levels = list(root.levels())
    if root.joint:
        (low, _), (high, _) = levels
        return list(zip((low, high), joint_halves(half, high.count), strict=True))
    stops = np.cumsum([total for _, total in levels])
    return [(node, piece) for (node, _), piece in zip(levels, np.split(half, stops[:-1]), strict=True)]
