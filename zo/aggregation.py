"""From the reports of a round to the terms of its entry: pure functions (DESIGN section 6)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zo.calibration import kinds, probe_sizes
from zo.errors import BundleError, ConfigError
from zo.estimators import Grid, mezo_steps, round_stochastically
from zo.lattice import LIMIT
from zo.ledger import fold
from zo.manifest import Manifest, Task
from zo.messages import Report
from zo.plan import Node
from zo.recipe import Probe, Rate
from zo.terms import Term

MOST_DIRECTIONS = 256  # the update grows with the count of directions up to here; beyond, more only steady it


@dataclass(frozen=True)
class Rates:
    """What turns a slope into steps, in one base: the bundle's default one, whichever a report's device holds.

    signal: rms half difference at calibration (nats) of probes of size log2_eps. by_kind: relative rates.
    """

    signal: float
    by_kind: dict[str, float]
    log2_eps: dict[str, int]


def rates(probe: Probe, rate: Rate, manifest: Manifest) -> Rates:
    """Rates and probe sizes of a run: the settings' where they state them, else the calibration of the manifest's base, and defaults."""
    stated = {"body": rate.body, "head": rate.head}
    present = kinds(manifest)
    usual = default_rate(manifest.task)
    by_kind = {kind: usual if stated[kind] is None else float(stated[kind] or 0.0) for kind in present}
    log2_eps = sizes(probe, manifest)
    signals = [c.signal * 2.0 ** (log2_eps[c.kind] - c.log2_eps) for c in manifest.calibration if c.kind in present]
    signal = math.sqrt(sum(signal**2 for signal in signals))
    if not signal > 0:
        raise BundleError(f"bundle {manifest.name!r} states no signal of its probes; run 'edge-coordinator bundle calibrate'")
    return Rates(signal, by_kind, log2_eps)


def sizes(probe: Probe, manifest: Manifest) -> dict[str, int]:
    """log2 of the probe size by kind of group: the settings' for every base, else as calibrated for the manifest's."""
    stated = {"body": probe.log2_eps_body, "head": probe.log2_eps_head}
    found = {kind: manifest.log2_eps(kind) if stated[kind] is None else int(stated[kind] or 0) for kind in kinds(manifest)}
    for kind, log2 in found.items():
        if not all(0 <= size.log2_e < math.log2(LIMIT) for size in probe_sizes(manifest, {kind: log2})):
            raise ConfigError(f"probe.log2_eps_{kind} = {log2} is less than a unit of the lattice, or more than it holds")
    return found


def default_rate(task: Task) -> float:
    """0.2 / sqrt(classes), or 0.3 for language modelling: what several data sets liked (docs/results.md)."""
    return 0.2 / math.sqrt(len(task.labels)) if task.labels else 0.3


def decay(rate: Rate, round_number: int, rounds: int) -> float:
    """Share of the rate in force in a round (1, 2, ...): linear from 1 to `rate.final`."""
    return 1 - (1 - rate.final) * (round_number - 1) / rounds


def aggregate(
    reports: Sequence[Report], nodes: Sequence[Node], given: Rates, scale: float, manifest: Manifest, grid: Grid
) -> tuple[Term, ...]:
    """Terms of a round, weighted by examples: -scale * rate * (half difference / signal) * probe, for every direction.

    nodes: what each report answers, with the probe sizes of its device's base. A half difference over its own probe size is a
    slope, which has one scale in all bases; signal and probe are the run's. The same reports in any order give the same terms.
    """
    directions = sum(node.count for node in nodes)
    growth = min(directions, MOST_DIRECTIONS)
    examples = sum(report.examples for report in reports)
    groups = {group.id: group for group in manifest.groups}
    terms = []
    for report, node in zip(reports, nodes, strict=True):
        weight = growth * report.examples / examples / node.count
        for size in node.probe_sizes:
            group = groups[size.groups[0]]
            log2_eps = size.log2_e + group.log2_unit
            rate = scale * given.by_kind[group.kind] / given.signal * 4.0 ** given.log2_eps[group.kind]
            steps = mezo_steps(grid.values(report.scalars), weight, rate, log2_eps, group.log2_unit)
            rounded = round_stochastically(steps, manifest.run_key, group.id, node.first_seed, report.round)
            terms.append(Term(size.groups, node.first_seed, rounded))
    return fold(terms)
