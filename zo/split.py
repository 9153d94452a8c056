"""Which tree is worth most: what a step costs, and what equal progress costs (FedSPZO, arXiv 2502.10239; equations of DESIGN section 6)."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from zo.manifest import Manifest
from zo.plan import MOST_DIRECTIONS, Shape
from zo.planning import groups_of_its_size, lowest_stage

COUNTS = tuple(2**power for power in range(10))  # directions of a part that are thought of: 1 to 512
WORTH_IT = 0.9  # of the cost of plain MeZO: a smaller gain may be an error of the estimates


@dataclass(frozen=True)
class Shares:
    """Of each stage: of a forward pass, of the squared gradient, and of the trace of the curvature; each sums to 1 over the stages."""

    cost: tuple[float, ...]
    energy: tuple[float, ...]
    curvature: tuple[float, ...]


@dataclass(frozen=True)
class Prediction:
    """A shape, full forward passes a step, and R: the cost to equal progress over plain MeZO's. Below 1 is a gain."""

    shape: Shape
    forwards: float
    ratio: float


def forwards(shape: Shape, cost: Sequence[float], lowest: int) -> float:
    """Full forward passes of a batch in one step. cost: share of each stage. lowest: the stage at which the first part begins.

    A direction of level l (1, 2, ...) is tried with both signs on the 2**(l - 1) outputs that the levels below left, and, but in the
    joint form, every level once more with those above it unperturbed. In the clean form it is tried with one sign, and all parts run
    unperturbed once. What lies below the first part runs once.
    """
    bounds = (lowest, *shape.cuts, len(cost))
    parts = [sum(cost[start:stop]) for start, stop in itertools.pairwise(bounds)]
    totals = list(itertools.accumulate(shape.counts, lambda one, other: one * other))
    below = sum(cost[:lowest])
    if shape.joint:
        return below + sum(2 * total * part for total, part in zip(totals, parts, strict=True))
    if shape.clean:
        return below + sum(parts) + sum(total * sum(parts[level:]) for level, total in enumerate(totals))
    return below + sum(total * 2 ** (level + 1) * sum(parts[level:]) for level, total in enumerate(totals))


def predict(shape: Shape, shares: Shares, lowest: int) -> Prediction:
    """R = (sum of s_l / k_l) * (forwards over plain MeZO's), k_l: directions of level l for each of the first's.

    s_l is the part that level l has of (energy) x (curvature): with E and T the shares of all levels up to l, s_l is the growth
    of E * T. With one cut that is (s + (1 - s) / K) of DESIGN section 6. In the clean form it is the level's own E * T: no scalar
    owes anything to another level. That holds of parts tried apart as well, but for them it would choose a few head directions
    where hundreds did better (docs/results.md): a step grows with their count.
    """
    bounds = (0, *shape.cuts, len(shares.cost))
    if shape.clean:
        parts = [sum(shares.energy[start:stop]) * sum(shares.curvature[start:stop]) for start, stop in itertools.pairwise(bounds)]
    else:
        upto = [sum(shares.energy[:stop]) * sum(shares.curvature[:stop]) for stop in bounds]
        parts = [after - before for before, after in itertools.pairwise(upto)]
    totals = itertools.accumulate((1, *shape.counts[1:]), lambda one, other: one * other)
    variance = sum(part / total for part, total in zip(parts, totals, strict=True))
    spent = forwards(shape, shares.cost, lowest)
    return Prediction(shape, spent, variance * spent / forwards(Shape(shape.counts[:1]), shares.cost, lowest))


def table(
    directions: int,
    shares: Shares,
    lowest: int,
    held: Sequence[bool],
    fits: Callable[[Shape], bool] = lambda _: True,
    clean: bool = False,
) -> list[Prediction]:
    """Plain MeZO, and for every cut, alone and with the last stage apart as well, the best counts of those that fit.

    held: stages that train something. clean: also that form, with no cut and with all.
    """
    last = len(shares.cost) - 1
    cuts = [cut for cut in range(lowest + 1, last + 1) if any(held[lowest:cut]) and any(held[cut:])]
    pairs = [(cut, last) for cut in cuts if cut < last and any(held[cut:last]) and held[last]]
    rows = [predict(Shape((directions,)), shares, lowest)]
    for chosen in [(cut,) for cut in cuts] + pairs:
        counts = [each for each in itertools.product(COUNTS, repeat=len(chosen)) if directions * math.prod(each) <= MOST_DIRECTIONS]
        shapes = [Shape((directions, *each), chosen) for each in counts]
        found = [predict(shape, shares, lowest) for shape in shapes if fits(shape)]
        rows += [min(found, key=lambda row: row.ratio)] if found else []
    if clean:
        every = tuple(cut for cut in cuts if held[cut])
        rows += [row for chosen in dict.fromkeys([(), every]) for row in _clean(directions, chosen, shares, lowest, fits)]
    return rows


def _clean(directions: int, cuts: tuple[int, ...], shares: Shares, lowest: int, fits: Callable[[Shape], bool]) -> list[Prediction]:
    """The clean shape with counts of 1, doubled one after the other for as long as that gains; nothing where not even it fits."""
    shape = Shape((directions, *[1] * len(cuts)), cuts, clean=True)
    if not fits(shape):
        return []
    best = predict(shape, shares, lowest)
    while True:
        doubled = [tuple(each << (place == level) for place, each in enumerate(shape.counts)) for level in range(1, len(shape.counts))]
        shapes = [replace(shape, counts=each) for each in doubled if math.prod(each) <= MOST_DIRECTIONS]
        found = min((predict(each, shares, lowest) for each in shapes if fits(each)), key=lambda row: row.ratio, default=best)
        if not found.ratio < best.ratio:
            return [best]
        best, shape = found, found.shape


def choose(rows: Sequence[Prediction]) -> Prediction:
    """The row with the least R, or plain MeZO (the first) where none is clearly below it."""
    best = min(rows, key=lambda row: row.ratio)
    return best if best.ratio < WORTH_IT else rows[0]


def shares(
    manifest: Manifest,
    stage_ns: Sequence[int],
    slopes: Mapping[int, float] | None = None,
    among: Collection[int] = (),
) -> Shares:
    """What is known of the stages. stage_ns: of a device; else cost goes by the values of the groups. slopes: mean squared slope of
    every group's probes so far, by group; else as calibrated, a kind's spread evenly over its values. Curvature is as calibrated.
    among: groups that are tried, where they are not all of them; the others count for nothing but their cost.
    """
    alike = groups_of_its_size(manifest.groups)
    energy, curvature, size = {}, {}, {group.id: float(group.size) for group in manifest.groups}
    for group in manifest.groups:
        found = manifest.calibrated(group.kind)
        energy[group.id] = (slopes or {}).get(group.id, (found.signal / 2.0**found.log2_eps) ** 2 / alike[group.id])
        trace = found.curvature / 4.0**found.log2_eps
        curvature[group.id] = trace / alike[group.id] if trace > 0 else 0.0
    if any(each == 0 for each in curvature.values()):  # drowned in noise: then by count of values
        curvature = size
    ids = [stage.groups for stage in manifest.stages]
    known = len(stage_ns) == len(ids) and sum(stage_ns) > 0
    cost = [float(each) for each in stage_ns] if known else [sum(size[group] for group in held) for held in ids]
    tried = set(among) or set(size)
    spread = ([sum(share[group] for group in held if group in tried) for held in ids] for share in (energy, curvature))
    return Shares(_shares(cost), *map(_shares, spread))


def plan_table(
    manifest: Manifest,
    log2_eps: Mapping[str, int],
    directions: int,
    stage_ns: Sequence[int],
    slopes: Mapping[int, float] | None = None,
    fits: Callable[[Shape], bool] = lambda _: True,
    clean: bool = False,
    among: Collection[int] = (),
) -> list[Prediction]:
    """`table` of a bundle. among: groups that are tried, where they are not all of them."""
    held = [any(group in among for group in stage.groups) if among else bool(stage.groups) for stage in manifest.stages]
    known = shares(manifest, stage_ns, slopes, among)
    return table(directions, known, lowest_stage(manifest, log2_eps, among), held, fits, clean)


def told(rows: Sequence[Prediction]) -> str:
    """The table for a person; the chosen row is starred."""
    chosen = choose(rows)
    lines = ["  cut before stages  directions     forward passes a step   cost to equal progress, of plain MeZO's"]
    for row in rows:
        cuts = " ".join(map(str, row.shape.cuts)) or ("none" if row.shape.clean else "none (plain MeZO)")
        cuts += ", clean" if row.shape.clean else ""
        counts = " x ".join(map(str, row.shape.counts))
        lines.append(f"{'*' if row is chosen else ' '} {cuts:18} {counts:14} {row.forwards:21.2f} {row.ratio:12.3f}")
    return "\n".join(lines)


def _shares(values: Sequence[float]) -> tuple[float, ...]:
    total = sum(values) or 1.0
    return tuple(value / total for value in values)
