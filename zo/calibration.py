"""Probe sizes by measurement: signal, noise and bias of probes at each eps (DESIGN section 6, probe noise)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from zo.batches import Batch
from zo.engine import Engine
from zo.errors import BundleError
from zo.estimators import half_differences
from zo.manifest import Calibration, Manifest
from zo.planning import one_level, probe_sizes
from zo.terms import Term, negated

SMALL_LOG2_EPS = -10  # of the float32 derivative that others are compared with
CANDIDATES = tuple(range(-10, 1, 2))
NUDGE_SEED = 2**63  # no round's seeds come near it
TRUSTED = 0.5  # a correlation below this may be luck
HOPELESS = 0.7  # of the best correlation: a larger eps than this one's would only be worse
NEAR_BEST = 0.98  # of the best squared correlation: among those the largest eps, which rounding disturbs least
NEAR_BEST_APART = {"body": NEAR_BEST, "head": 0.9}  # the same of probes that move one kind alone; a head's see the bend that steps meet
USABLE = 0.5  # of the best squared correlation: what a kind may give up so as not to drown the others
DROWNING = 1.5  # times the weakest kind's signal


def candidates(manifest: Manifest, kind: str) -> list[int]:
    """Sizes (log2) that probes of a kind of group may have: none less than a unit of the lattice."""
    return [log2 for log2 in CANDIDATES if all(size.log2_e >= 0 for size in probe_sizes(manifest, {kind: log2}))]


def measure(engine: Engine, exact: Engine, kind: str, batches: Sequence[Batch], directions: int) -> list[Calibration]:
    """Every candidate eps for one kind of group. exact: the same model in float32. directions: a batch."""
    small = max(SMALL_LOG2_EPS, *(group.log2_unit for group in exact.manifest.groups if group.kind == kind))
    true = np.concatenate([_derivatives(exact, kind, small, batches, number, directions)[0] for number in range(len(batches))])
    measured = []
    for log2_eps in candidates(engine.manifest, kind):
        pairs = [_derivatives(engine, kind, log2_eps, batches, number, directions) for number in range(len(batches))]
        found, second = np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])
        measured.append(_compare(kind, log2_eps, found, true, float(second.mean())))
        best = max(m.correlation for m in measured)
        if best > TRUSTED and measured[-1].correlation < HOPELESS * best:
            break
    if not measured:
        raise BundleError(f"values of the {kind} are so large that no probe size up to 1 is a unit of their lattice; normalise the model")
    return measured


def choose(measured: Sequence[Calibration]) -> tuple[Calibration, ...]:
    """The probe size of every kind of group, for probes of all kinds at once, and (log2_eps_apart) of that kind alone.

    Each kind's own best is the largest eps near its best squared correlation. For probes of all at once, a kind whose signal would
    drown the others' then shrinks, as far as its own noise allows. Alone a head may be tried by more than its own best.
    BundleError where no eps measures the slope.
    """
    by_kind = {kind: [m for m in measured if m.kind == kind] for kind in dict.fromkeys(m.kind for m in measured)}
    own = {kind: max(_within(found, NEAR_BEST), key=lambda m: m.log2_eps) for kind, found in by_kind.items()}
    weakest = min(m.signal for m in own.values())
    chosen = []
    for kind, found in by_kind.items():
        usable = [m for m in _within(found, USABLE) if m.log2_eps <= own[kind].log2_eps]
        quiet = [m for m in usable if m.signal <= DROWNING * weakest] or [min(usable, key=lambda m: m.signal)]
        apart = max(_within(found, NEAR_BEST_APART[kind]), key=lambda m: m.log2_eps)
        both = max(quiet, key=lambda m: m.log2_eps)
        chosen.append(replace(both, log2_eps_apart=apart.log2_eps, curvature_apart=apart.curvature))
    return tuple(chosen)


def told(measured: Sequence[Calibration]) -> str:
    """For a person; the chosen eps of each kind is starred."""
    chosen = {calibration.kind: calibration.log2_eps for calibration in choose(measured)}
    lines = ["kind   eps      signal     noise      bias   curvature  correlation   (signal, noise, curvature in nats)"]
    for m in measured:
        star = "*" if chosen[m.kind] == m.log2_eps else " "
        row = f"{m.kind:5} {star}2**{m.log2_eps:<4} {m.signal:9.2e} {m.noise:9.2e} {m.bias:9.3f} {m.curvature:11.2e} {m.correlation:12.3f}"
        lines.append(row)
    return "\n".join(lines)


def _within(found: Sequence[Calibration], share: float) -> list[Calibration]:
    """Those of one kind whose squared correlation is at least this share of the best."""
    best = max(m.correlation for m in found)
    if best <= 0:
        what = f"no probe size measures the slope of the loss for the {found[0].kind}"
        raise BundleError(f"{what}; give other examples with --data, or choose precision fp32 if it is another")
    return [m for m in found if m.correlation > 0 and m.correlation**2 >= share * best**2]


def correlation_here(
    engine: Engine, kind: str, batch: Batch, directions: int, go_on: Callable[[], None] = lambda: None, log2_eps: int | None = None
) -> float:
    """Correlation of this processor's probes with noise-free ones, estimated without a float32 model. log2_eps: as calibrated, if left out.

    A smooth loss gives nearly the same derivatives after a nudge of an eighth of a probe; the staircase of a quantised
    base gives new noise. The parameters are restored exactly. Probes are of the engine's rank.
    """
    log2_eps = engine.manifest.log2_eps(kind) if log2_eps is None else log2_eps
    node = one_level(engine.manifest, {kind: log2_eps}, NUDGE_SEED + 1, directions, engine.rank)
    nudge = tuple(Term(size.groups, NUDGE_SEED, np.array([1 << max(0, size.log2_e - 3)])) for size in node.probe_sizes)
    before = half_differences(engine.probe(node, batch, go_on))
    engine.parameters.add(nudge)
    try:
        after = half_differences(engine.probe(node, batch, go_on))
    finally:
        engine.parameters.add(negated(nudge))
    if not (np.all(np.isfinite(before)) and np.all(np.isfinite(after)) and np.any(before)):
        return 0.0
    signal = max(0.0, float(np.mean(before * after)))
    return float(np.sqrt(signal / np.mean((before**2 + after**2) / 2)))


def _derivatives(
    engine: Engine, kind: str, log2_eps: int, batches: Sequence[Batch], number: int, directions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Directional derivatives (nats per unit) and second differences (nats) of one batch: [directions] each."""
    node = one_level(engine.manifest, {kind: log2_eps}, number * directions, directions)
    losses = engine.probe(node, batches[number])
    still = engine.forward(batches[number])[0]
    return np.ldexp(half_differences(losses), -log2_eps), losses.reshape(-1, 2).sum(axis=1) - 2 * still


def _compare(kind: str, log2_eps: int, found: np.ndarray, true: np.ndarray, curvature: float) -> Calibration:
    eps, power = 2.0**log2_eps, float(np.mean(true**2)) or 1e-30
    if not np.all(np.isfinite(found)):
        return Calibration(kind, log2_eps, 0.0, 0.0, 0.0, 0.0, 0.0)
    slope = float(np.mean(found * true)) / power
    noise = float(np.sqrt(np.mean((found - slope * true) ** 2)))
    signal = float(np.sqrt(np.mean(found**2)))
    correlation = float(np.mean(found * true) / np.sqrt(power * np.mean(found**2))) if signal else 0.0
    return Calibration(kind, log2_eps, signal * eps, noise * eps, slope - 1, curvature, correlation)
