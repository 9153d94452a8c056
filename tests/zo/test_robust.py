"""A few dishonest devices: what they can do to a round, by mean, trimmed mean and median."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zo.aggregation import MOST_SUMMED, aggregate, combined
from zo.bundle import Bundle
from zo.estimators import Grid
from zo.group import Group, Tensor
from zo.manifest import Base, Calibration, Manifest, Stage
from zo.messages import Report
from zo.plan import Shape
from zo.planning import seeded, tree
from zo.rates import Rates
from zo.recipe import Aggregation

GRID, SIZE = Grid(14, 2.0), 24
GIVEN = Rates(
    signal={"body": 0.3, "head": 0.4},
    by_kind={"body": 0.25, "head": 0.5},
    log2_eps={"body": -4, "head": -6},
    log2_eps_apart={"body": -4, "head": -6},
)
halves = st.floats(-2, 2, allow_subnormal=False)


@pytest.fixture(scope="module")
def manifest(bert_bundle: Bundle) -> Manifest:
    """A group of the body and one of the head, each in a stage."""
    groups = (Group(0, "body", -20, (Tensor("w", (SIZE,)),)), Group(1, "head", -18, (Tensor("v", (SIZE,)),)))
    stages = tuple(Stage(f"stage_{place}.onnx", ("x",), ("loss",), (place,)) for place in range(2))
    calibration = tuple(Calibration(kind, -4, 0.3, 0.0, 0.0, 0.0, 1.0) for kind in ("body", "head"))
    return dataclasses.replace(bert_bundle.manifest, groups=groups, bases={"fp32": Base("weights", 0, stages, calibration)})


@given(st.integers(1, 9).flatmap(lambda n: arrays(np.float64, (n, 3), elements=halves)), st.randoms())
@pytest.mark.parametrize("how", ["mean", "trimmed-mean", "median"])
def test_the_order_of_reports_does_not_matter(how: Aggregation, rows: np.ndarray, random: np.random.Generator) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    assert np.allclose(combined(rows, how), combined(rows[order], how), rtol=1e-12, atol=1e-12)


@given(arrays(np.float64, (5, 3), elements=halves), st.integers(1, 4), arrays(np.float64, (4, 3), elements=st.floats(-1e9, 1e9)))
@pytest.mark.parametrize("how", ["trimmed-mean", "median"])
def test_a_minority_cannot_leave_the_range_of_the_honest(how: Aggregation, honest: np.ndarray, liars: int, lies: np.ndarray) -> None:
    if how == "trimmed-mean":
        liars = min(liars, 1)  # a quarter of six, rounded down
    found = combined(np.concatenate([honest, lies[:liars]]), how)
    assert (found >= honest.min(axis=0) - 1e-12).all()
    assert (found <= honest.max(axis=0) + 1e-12).all()


def test_by_the_mean_one_lie_can() -> None:
    assert combined(np.array([[0.0], [0.0], [3e9]]), "mean") == 1e9


@given(arrays(np.float64, 4, elements=halves))
@pytest.mark.parametrize("how", ["mean", "trimmed-mean", "median"])
def test_devices_that_agree_are_taken_at_their_word(how: Aggregation, row: np.ndarray) -> None:
    assert np.allclose(combined(np.stack([row] * 5), how), row, rtol=1e-12, atol=1e-15)


def test_two_reports_are_averaged_by_the_trimmed_mean_and_of_three_the_middle_counts() -> None:
    assert combined(np.array([[1.0], [3.0]]), "trimmed-mean") == 2.0
    assert combined(np.array([[1.0], [3.0], [100.0]]), "trimmed-mean") == 3.0
    assert combined(np.arange(8.0)[:, None], "trimmed-mean") == 3.5


def terms(manifest: Manifest, rows: list[list[int]], how: Aggregation, eps: list[dict[str, int]] | None = None, examples: int = 4) -> dict:
    """Steps by group and seed. eps: log2 of each device's probe size, by kind. examples: what the last one claims."""
    shape = Shape((1, 2), (1,))
    nodes = [seeded(tree(manifest, one, shape), manifest.run_key, 1, 0) for one in eps or [GIVEN.log2_eps] * len(rows)]
    claims = [4] * (len(rows) - 1) + [examples]
    reports = [Report(1, device, 1, np.array(row), claims[device], "fp32") for device, row in enumerate(rows)]
    found = aggregate(reports, nodes, GIVEN, {"body": 1.0, "head": 1.0}, manifest, GRID, how, shared=True)
    return {(g, int(s)): int(n) for t in found for g in t.groups for s, n in zip(t.seeds, t.steps, strict=True)}


@pytest.mark.parametrize("how", ["trimmed-mean", "median"])
def test_an_entry_with_one_liar_is_that_of_the_honest(how: Aggregation, manifest: Manifest) -> None:
    honest, limit = [4096, 2048, -2048], GRID.limit
    alone = terms(manifest, [honest] * 4, how)
    assert terms(manifest, [honest] * 4 + [[-limit, limit, limit]], how, examples=4096) == alone
    assert len(alone) == 3


def test_by_the_mean_a_liar_moves_the_model_by_its_share_of_the_clip_and_no_further(manifest: Manifest) -> None:
    limit, devices = GRID.limit, 5
    honest = terms(manifest, [[0, 0, 0]] * devices, "mean")
    lied = terms(manifest, [[0, 0, 0]] * (devices - 1) + [[limit, limit, limit]], "mean")
    all_lied = terms(manifest, [[limit, limit, limit]] * devices, "mean")
    assert honest == {}
    assert lied.keys() == all_lied.keys()
    for place, steps in lied.items():
        assert abs(steps * devices - all_lied[place]) <= devices


def test_slopes_are_compared_not_half_differences_of_other_probe_sizes(manifest: Manifest) -> None:
    """A device that probes twice as far sees twice the half difference: the same slope."""
    far = {"body": -3, "head": -5}
    same = terms(manifest, [[1024, 512, -512]] * 3, "median")
    mixed = terms(manifest, [[1024, 512, -512], [2048, 1024, -1024], [1024, 512, -512]], "median", [GIVEN.log2_eps, far, GIVEN.log2_eps])
    assert mixed == same


def test_shared_directions_are_counted_once(manifest: Manifest) -> None:
    """Ten devices along the same two directions learn no more of the gradient than along two."""
    one, ten = (terms(manifest, [[4096, 2048, 1024]] * count, "mean") for count in (1, 10))
    for place, steps in one.items():
        assert abs(steps - ten[place]) <= 10  # each report is rounded by itself
    assert MOST_SUMMED > 20
