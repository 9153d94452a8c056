"""From the reports of a round to the terms of its entry: pure functions (DESIGN section 6)."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from zo.errors import BundleError, ConfigError
from zo.estimators import Grid, joint_halves, mezo_steps, round_stochastically
from zo.group import Group
from zo.lattice import LIMIT
from zo.ledger import fold
from zo.manifest import Manifest, Task
from zo.messages import Report
from zo.plan import Node, ProbeSize, Shape
from zo.planning import groups_of_its_size, kinds, one_kind_each, probe_sizes, stretch, tree
from zo.recipe import Aggregation, Probe, Rate
from zo.terms import Term

REACH = -6  # log2 of what a rate of 1 moves values by, at most, in a part tried apart: a larger probe is chosen for its noise alone
TEMPER = 4.0  # classes differ from device to device, and slopes with them, but hardly more than this
MOST_DIRECTIONS = 256  # the update grows with the count of directions up to here; beyond, more only steady it


@dataclass(frozen=True)
class Rates:
    """What turns a slope into steps, in one base: the bundle's default one, whichever a report's device holds.

    signal: rms half difference at calibration (nats) of probes of size log2_eps, by kind. by_kind: relative rates.
    """

    signal: dict[str, float]
    by_kind: dict[str, float]
    log2_eps: dict[str, int]


def rates(probe: Probe, rate: Rate, manifest: Manifest) -> Rates:
    """Rates and probe sizes of a run: the settings' where they state them, else the calibration of the manifest's base, and defaults."""
    stated = {"body": rate.body, "head": rate.head}
    present = kinds(manifest)
    usual = default_rate(manifest.task)
    by_kind = {kind: usual if stated[kind] == "auto" else float(stated[kind]) for kind in present}
    log2_eps = sizes(probe, manifest)
    signal = {c.kind: c.signal * 2.0 ** (log2_eps[c.kind] - c.log2_eps) for c in manifest.calibration if c.kind in present}
    if not all(signal.get(kind, 0) > 0 for kind in present):
        raise BundleError(f"bundle {manifest.name!r} states no signal of its probes; run 'edge-coordinator bundle calibrate'")
    return Rates(signal, by_kind, log2_eps)


def sizes(probe: Probe, manifest: Manifest, apart: bool = False) -> dict[str, int]:
    """log2 of the probe size by kind of group: the settings' for every base, else as calibrated for the manifest's.

    apart: of probes that move one kind only.
    """
    stated = {"body": probe.log2_eps_body, "head": probe.log2_eps_head}
    found = {kind: manifest.log2_eps(kind, apart) if stated[kind] == "auto" else int(stated[kind]) for kind in kinds(manifest)}
    for kind, log2 in found.items():
        if not all(0 <= size.log2_e < math.log2(LIMIT) for size in probe_sizes(manifest, {kind: log2})):
            raise ConfigError(f"probe.log2_eps_{kind} = {log2} is less than a unit of the lattice, or more than it holds")
    return found


def sized_tree(probe: Probe, manifest: Manifest, shape: Shape) -> Node:
    """The tree of a shape, all seeds from 0 on, with probe sizes that suit it: larger ones where no probe moves two kinds of group.

    ConfigError as `planning.tree`.
    """
    made = tree(manifest, sizes(probe, manifest), shape)
    return made if shape.joint or not one_kind_each(manifest, made) else tree(manifest, sizes(probe, manifest, apart=True), shape)


def default_rate(task: Task) -> float:
    """0.2 / sqrt(classes), or 0.3 for language modelling: what several data sets liked (docs/results.md)."""
    return 0.2 / math.sqrt(len(task.labels)) if task.labels else 0.3


def decay(rate: Rate, round_number: int, rounds: int) -> float:
    """Share of the rate in force in a round (1, 2, ...): linear from 1 to `rate.final`."""
    return 1 - (1 - rate.final) * (round_number - 1) / rounds


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
    alike = {(group.kind, group.log2_unit): group.id for group in reversed(manifest.groups)}  # rounded alike, in whichever part
    directions, examples = Counter[int](), Counter[int]()
    for report, node in zip(reports, nodes, strict=True):
        for level, total in node.levels():
            for size in level.probe_sizes:
                for group_id in size.groups:
                    directions[group_id] = max(directions[group_id], total) if shared else directions[group_id] + total
                    examples[group_id] += report.examples
    halves = [by_level(node, grid.values(report.scalars)) for report, node in zip(reports, nodes, strict=True)]
    terms = []
    for report, node, parts in zip(reports, nodes, halves, strict=True):
        further = stretch(manifest, _groups(node))
        for place, (level, half) in enumerate(parts):
            signal = _signal(node if node.joint else level, given, manifest)
            for size in _weighed_alike(level.probe_sizes, directions, examples):
                group = groups[size.groups[0]]
                log2_eps = size.log2_e + group.log2_unit
                if how == "mean":
                    said, weight = half, min(directions[group.id], MOST_DIRECTIONS) * report.examples / examples[group.id] / half.size
                else:
                    others = [parts[place] for parts in halves]
                    rows = [np.ldexp(each, log2_eps - _log2_eps(other, group)) for other, each in others]
                    said, weight = combined(np.stack(rows), how), min(directions[group.id], MOST_DIRECTIONS) / half.size
                log2_run = given.log2_eps[group.kind]
                reach = min(log2_run, REACH) if node.child and not node.joint else log2_run
                rate = factors[group.kind] * given.by_kind[group.kind] / signal * 2.0 ** (log2_run + reach)
                rate *= further[group.kind]
                steps = mezo_steps(said, weight, rate, log2_eps, group.log2_unit)
                rounded = round_stochastically(steps, manifest.run_key, alike[group.kind, group.log2_unit], level.first_seed, report.round)
                terms.append(Term(size.groups, level.first_seed, rounded))
        if how != "mean":
            break  # one stands for all
    return fold(terms)


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


Peers = tuple[frozenset[str], int]  # kinds of group, and the stage that a level begins at, or -1 for all


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
        kinds_tried = frozenset(kind[group] for size in _tried(level) for group in size.groups)
        found.append(((kinds_tried, level.stage), part, _signal(level, given, manifest, own_sizes=True)))
    return found


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


def _weighed_alike(sizes: Sequence[ProbeSize], directions: Counter[int], examples: Counter[int]) -> list[ProbeSize]:
    """Groups parted by how often they were perturbed in all: reports of other shapes may have tried some of them oftener."""
    parts: dict[tuple[int, int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        for group in size.groups:
            parts.setdefault((place, directions[group], examples[group]), []).append(group)
    return [ProbeSize(tuple(groups), sizes[place].log2_e) for (place, _, _), groups in parts.items()]


def _groups(root: Node) -> set[int]:
    """All that a tree tries."""
    return {group for node, _ in root.levels() for size in node.probe_sizes for group in size.groups}


def _tried(root: Node) -> list[ProbeSize]:
    """What probes of a level move: with those above it in the joint form."""
    return [size for node, _ in root.levels() for size in node.probe_sizes] if root.joint else list(root.probe_sizes)


def _signal(root: Node, given: Rates, manifest: Manifest, own_sizes: bool = False) -> float:
    """The rms half difference to be expected of probes of these groups together: of each kind the share of its values.

    own_sizes: at the probe sizes of the level, not at the run's.
    """
    groups, alike = {group.id: group for group in manifest.groups}, groups_of_its_size(manifest.groups)
    squares = []
    for size in _tried(root):
        for group in map(groups.__getitem__, size.groups):
            further = size.log2_e + group.log2_unit - given.log2_eps[group.kind] if own_sizes else 0
            squares.append((given.signal[group.kind] * 2.0**further) ** 2 / alike[group.id])
    return math.sqrt(sum(squares))
