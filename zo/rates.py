"""What turns slopes into steps: the rates of a run, and what its probes are expected to find (DESIGN section 6)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zo.errors import BundleError
from zo.manifest import Calibration, Manifest, Task
from zo.plan import Node, ProbeSize
from zo.planning import groups_of_its_size, kinds, one_kind_each, sizes
from zo.recipe import Probe, Rate

LOG2_MOST_APART = -6  # by which a rate of 1 moves values of parts tried apart; larger probes of the body are for its noise alone
LOG2_MOST_OF_HEAD = -4  # the same of a head alone
LINEAR_IN_VALUES = ("linear", "label-words")  # heads that nothing bounds: of prototypes only the directions count
MOST_SUMMED = 256  # an update grows with the count of directions up to here; beyond, more only steady it


@dataclass(frozen=True)
class Rates:
    """What turns a slope into steps, in one base: the bundle's default one, whichever a report's device holds.

    signal: rms half difference at calibration (nats) of probes of size log2_eps, by kind. by_kind: relative rates: how far a direction
    whose slope is as at calibration moves values, of 2**log2_step. log2_safe: the most that this is of a head.
    """

    signal: dict[str, float]
    by_kind: dict[str, float]
    log2_eps: dict[str, int]
    log2_eps_apart: dict[str, int]
    log2_safe: float = math.inf

    @classmethod
    def of(cls, probe: Probe, rate: Rate, manifest: Manifest) -> "Rates":
        """Of a run: the settings' where they state them, else defaults, at the calibration of the manifest's base; BundleError without."""
        stated = {"body": rate.body, "head": rate.head}
        present = kinds(manifest)
        usual = default_rate(manifest.task)
        by_kind = {kind: usual if stated[kind] == "auto" else float(stated[kind]) for kind in present}
        log2_eps = sizes(probe, manifest)
        signal = {c.kind: c.signal * 2.0 ** (log2_eps[c.kind] - c.log2_eps) for c in manifest.calibration if c.kind in present}
        if not all(signal.get(kind, 0) > 0 for kind in present):
            raise BundleError(f"bundle {manifest.name!r} states no signal of its probes: it was never calibrated; build the bundle anew")
        heads = [c for c in manifest.calibration if c.kind == "head" and manifest.task.head in LINEAR_IN_VALUES]
        safe = min((_log2_safe(c, usual) for c in heads), default=math.inf)
        return cls(signal, by_kind, log2_eps, sizes(probe, manifest, apart=True), safe)

    def log2_step(self, kind: str, level: Node, root: Node, manifest: Manifest) -> float:
        """Of groups of a kind in a level of a tree: the run's probe, but no further than is good for parts tried apart."""
        if root.joint:
            log2 = self.log2_eps[kind]
        elif kind == "head" and one_kind_each(manifest, level):
            log2 = min(self.log2_eps_apart[kind], LOG2_MOST_OF_HEAD)
        else:
            log2 = min(self.log2_eps[kind], LOG2_MOST_APART) if root.child else self.log2_eps[kind]
        return min(log2, self.log2_safe) if kind == "head" else log2

    def expected(self, level: Node, manifest: Manifest, log2_eps: Mapping[str, int] | None = None) -> float:
        """The rms half difference to be expected of probes of a level: of each kind of its groups the share of that kind's values.

        Of all its levels together in the joint form. log2_eps: sizes of the probes, by kind; the level's own if left out.
        """
        groups, alike = {group.id: group for group in manifest.groups}, groups_of_its_size(manifest.groups)
        squares = []
        for size in tried(level):
            for group in map(groups.__getitem__, size.groups):
                own = size.log2_e + group.log2_unit if log2_eps is None else log2_eps[group.kind]
                further = own - self.log2_eps[group.kind]
                squares.append((self.signal[group.kind] * 2.0**further) ** 2 / alike[group.id])
        return math.sqrt(sum(squares))


def _log2_safe(found: Calibration, usual: float) -> float:
    """By how much a head may move for the sum of MOST_SUMMED of them, at the usual rate, to be one slope over the curvature trace.

    No curvature along a direction is more than the trace, where logits go linearly with values and the loss is convex.
    """
    if not found.curvature_apart or found.curvature_apart < 0:
        return math.inf
    apart = found.log2_eps if found.log2_eps_apart is None else found.log2_eps_apart
    log2_slope, log2_trace = math.log2(found.signal) - found.log2_eps, math.log2(found.curvature_apart) - 2 * apart
    return math.floor(log2_slope - log2_trace - math.log2(MOST_SUMMED * usual))


def tried(level: Node) -> Sequence[ProbeSize]:
    """What probes of a level move: with those of the levels above it in the joint form."""
    return [size for node, _ in level.levels() for size in node.probe_sizes] if level.joint else level.probe_sizes


def default_rate(task: Task) -> float:
    """0.2 / sqrt(classes), or 0.3 for language modelling: what several data sets liked (docs/results.md)."""
    return 0.2 / math.sqrt(len(task.labels)) if task.labels else 0.3


def decay(rate: Rate, round_number: int, rounds: int) -> float:
    """Share of the rate in force in a round (1, 2, ...): linear from 1 to `rate.final`."""
    return 1 - (1 - rate.final) * (round_number - 1) / rounds
