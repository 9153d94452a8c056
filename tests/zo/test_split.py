"""What a step of a shape costs, what equal progress costs, and which shape is chosen: the equations of DESIGN section 6."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from conftest import Bundles
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY

from zo.bundle import Bundle
from zo.manifest import Manifest
from zo.plan import MOST_DIRECTIONS, Shape
from zo.split import COUNTS, WORTH_IT, Prediction, Shares, choose, forwards, plan_table, predict, shares, table, told

SHARE = st.floats(0.01, 0.99)
P1, K = st.integers(1, 8), st.integers(1, 512)


def halves(cost: float, energy: float, curvature: float) -> Shares:
    """Two stages, of which the first has these shares."""
    return Shares(*((each, 1 - each) for each in (cost, energy, curvature)))


# --- a step ---


def test_forward_passes_by_hand() -> None:
    cost = (0.5, 0.3, 0.2)
    assert forwards(Shape((4,)), cost, 0) == pytest.approx(8)
    assert forwards(Shape((4,)), cost, 1) == pytest.approx(8 * 0.5 + 0.5)  # what is below runs once
    assert forwards(Shape((4, 3), (2,)), cost, 0) == pytest.approx(8 + 12 * 4 * 0.2)
    assert forwards(Shape((4, 3), (2,), joint=True), cost, 0) == pytest.approx(8 * 0.8 + 24 * 0.2)
    assert forwards(Shape((4, 3), (2,)), cost, 1) == pytest.approx(0.5 + 8 * 0.5 + 12 * 4 * 0.2)
    assert forwards(Shape((2, 3, 5), (1, 2)), cost, 0) == pytest.approx(4 + 6 * 4 * 0.5 + 30 * 8 * 0.2)
    assert forwards(Shape((4,), clean=True), cost, 0) == pytest.approx(1 + 4)
    assert forwards(Shape((2, 3, 5), (1, 2), clean=True), cost, 0) == pytest.approx(1 + 2 + 6 * 0.5 + 30 * 0.2)
    assert forwards(Shape((2, 3), (2,), clean=True), cost, 1) == pytest.approx(1 + 2 * 0.5 + 6 * 0.2)


# --- equal progress ---


@PROPERTY
@given(SHARE, SHARE, SHARE, P1, K)
def test_the_joint_form_with_one_cut_costs_what_design_says(cost: float, energy: float, curvature: float, p1: int, k: int) -> None:
    """R = (s + (1 - s) / K) (k + (1 - k) K), s = (energy share) x (curvature share) and k = compute share of part 1."""
    s = energy * curvature
    found = predict(Shape((p1, k), (1,), joint=True), halves(cost, energy, curvature), 0)
    assert found.ratio == pytest.approx((s + (1 - s) / k) * (cost + (1 - cost) * k))
    assert found.forwards == pytest.approx(2 * p1 * (cost + k * (1 - cost)))


@PROPERTY
@given(SHARE, SHARE, SHARE, P1, K)
def test_one_part_after_the_other_costs_the_upper_part_twice_more(cost: float, energy: float, curvature: float, p1: int, k: int) -> None:
    s = energy * curvature
    found = predict(Shape((p1, k), (1,)), halves(cost, energy, curvature), 0)
    assert found.ratio == pytest.approx((s + (1 - s) / k) * (1 + 2 * k * (1 - cost)))


@PROPERTY
@given(SHARE, SHARE, SHARE, P1, K)
def test_the_clean_form_costs_one_run_unperturbed_and_then_one_a_direction(
    cost: float, energy: float, curvature: float, p1: int, k: int
) -> None:
    low, high = energy * curvature, (1 - energy) * (1 - curvature)
    found = predict(Shape((p1, k), (1,), clean=True), halves(cost, energy, curvature), 0)
    assert found.ratio == pytest.approx((low + high / k) * (1 + p1 + p1 * k * (1 - cost)) / (2 * p1))


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "clean"])
def test_the_second_moment_of_an_update_is_what_is_predicted(joint: bool) -> None:
    """On a linear loss with as much curvature a value everywhere: the mean square of the estimate, over that of plain MeZO."""
    generator, low, high, k = np.random.default_rng(0), 120, 200, 4
    slope = np.concatenate([generator.normal(0, 1.5, low), generator.normal(0, 1.0, high)])
    rows = 3000
    a = generator.choice([-1.0, 1.0], (rows, low))
    b = generator.choice([-1.0, 1.0], (rows, k, high))
    below, above = a @ slope[:low], b @ slope[low:]
    if joint:
        both = below[:, None] + above
        one, other = both.mean(axis=1), both  # without what leaving one out removes: the formula does not count on it
    else:
        one, other = below, above
    moment = np.mean(one**2) * low + np.mean(np.einsum("rk,rkh->rh", other, b) ** 2 / k**2) * high
    plain = np.sum(slope**2) * (low + high)
    energy, curvature = float(np.sum(slope[:low] ** 2) / np.sum(slope**2)), low / (low + high)
    shape = Shape((1, k), (1,), joint, not joint)
    found = predict(shape, halves(0.5, energy, curvature), 0)
    assert moment / plain == pytest.approx(found.ratio * 2 / found.forwards, rel=0.1)


@PROPERTY
@given(st.lists(st.tuples(SHARE, SHARE, SHARE), min_size=3, max_size=5), P1, st.data())
def test_shares_of_all_levels_sum_to_one_and_more_directions_never_make_them_more(
    given_shares: list[tuple[float, float, float]], p1: int, data: st.DataObject
) -> None:
    columns = list(zip(*given_shares, strict=True))
    made = Shares(*(tuple(value / sum(column) for value in column) for column in columns))
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, len(given_shares) - 1), min_size=1))))

    def variance(counts: tuple[int, ...]) -> float:
        shape = Shape((p1, *counts), cuts)
        row = predict(shape, made, 0)
        return row.ratio * 2 * p1 / row.forwards

    ones = (1,) * len(cuts)
    assert variance(ones) == pytest.approx(1)
    for place in range(len(cuts)):
        more = tuple(2 if place == each else 1 for each in range(len(cuts)))
        assert variance(more) < variance(ones)


def test_plain_mezo_is_what_is_compared_with() -> None:
    for lowest, count in itertools.product((0, 1), (1, 7)):
        assert predict(Shape((count,)), Shares((0.5, 0.3, 0.2), (0.2, 0.3, 0.5), (0.1, 0.1, 0.8)), lowest).ratio == pytest.approx(1)


# --- the table, and the choice ---

CHEAP_HEAD = Shares((0.5, 0.499, 0.001), (0.05, 0.05, 0.9), (0.3, 0.3, 0.4))
DEAR_HEAD = Shares((0.1, 0.1, 0.8), (0.5, 0.4, 0.1), (0.5, 0.4, 0.1))
ALL = (True, True, True)


@pytest.mark.parametrize("given_shares", [CHEAP_HEAD, DEAR_HEAD])
def test_the_table_has_plain_mezo_and_the_best_counts_of_every_cut(given_shares: Shares) -> None:
    rows = table(8, given_shares, 0, ALL)
    assert [row.shape.cuts for row in rows] == [(), (1,), (2,), (1, 2)]
    assert rows[0] == predict(Shape((8,)), given_shares, 0)
    for row in rows[1:]:
        assert row == predict(row.shape, given_shares, 0)
        others = [c for c in itertools.product(COUNTS, repeat=len(row.shape.cuts)) if 8 * math.prod(c) <= MOST_DIRECTIONS]
        assert row.ratio == min(predict(Shape((8, *each), row.shape.cuts), given_shares, 0).ratio for each in others)


def test_a_cheap_head_that_matters_is_tried_often() -> None:
    chosen = choose(table(8, CHEAP_HEAD, 0, ALL))
    assert chosen.shape.cuts[-1] == 2
    assert chosen.shape.counts[-1] >= 16
    assert chosen.ratio < 0.5


def test_where_nothing_gains_it_is_plain_mezo() -> None:
    rows = table(8, DEAR_HEAD, 0, ALL)
    assert choose(rows) is rows[0]


@pytest.mark.parametrize(("ratio", "gains"), [(WORTH_IT - 1e-9, True), (WORTH_IT, False), (0.99, False), (float("nan"), False)])
def test_a_small_gain_is_no_reason_to_cut(ratio: float, gains: bool) -> None:
    plain, other = Prediction(Shape((8,)), 16.0, 1.0), Prediction(Shape((8, 4), (1,)), 20.0, ratio)
    assert choose([plain, other]) is (other if gains else plain)


@pytest.mark.parametrize(
    ("lowest", "held", "cuts"),
    [
        (0, (True, True, False), [(), (1,)]),
        (1, (False, True, True), [(), (2,)]),
        (0, (True, False, True), [(), (1,), (2,)]),
        (2, (False, False, True), [()]),
        (0, (True, False, False), [()]),
    ],
)
def test_no_part_of_a_row_trains_nothing(lowest: int, held: tuple[bool, ...], cuts: list[tuple[int, ...]]) -> None:
    assert [row.shape.cuts for row in table(8, CHEAP_HEAD, lowest, held)] == cuts


def test_of_a_cut_the_best_counts_that_fit_are_in_the_table_and_where_none_do_it_is_not() -> None:
    rows = table(8, CHEAP_HEAD, 0, ALL, lambda shape: shape.cuts == (2,) and shape.scalars <= 40)
    assert [row.shape for row in rows] == [Shape((8,)), Shape((8, 4), (2,))]
    assert [row.shape for row in table(8, CHEAP_HEAD, 0, ALL, lambda shape: False)] == [Shape((8,))]  # whatever else, that can be done


def test_the_clean_form_is_thought_of_where_asked_for_with_no_cut_and_with_all() -> None:
    plain, rows = table(8, DEAR_HEAD, 0, ALL), table(8, DEAR_HEAD, 0, ALL, clean=True)
    assert rows[: len(plain)] == plain
    assert [(row.shape.cuts, row.shape.clean) for row in rows[len(plain) :]] == [((), True), ((1, 2), True)]
    assert rows[-2].ratio == pytest.approx(9 / 16)
    assert [row.shape.cuts for row in table(8, CHEAP_HEAD, 0, (True, False, True), clean=True) if row.shape.clean] == [(), (2,)]
    assert not any(row.shape.clean for row in table(8, CHEAP_HEAD, 0, ALL, lambda shape: not shape.clean, clean=True))


@PROPERTY
@given(st.lists(st.tuples(SHARE, SHARE, SHARE), min_size=3, max_size=3), P1)
def test_no_count_of_the_clean_row_gains_by_being_doubled(given_shares: list[tuple[float, float, float]], p1: int) -> None:
    made = Shares(*(tuple(value / sum(column) for value in column) for column in zip(*given_shares, strict=True)))
    row = table(p1, made, 0, ALL, clean=True)[-1]
    for level in (1, 2):
        counts = tuple(each << (place == level) for place, each in enumerate(row.shape.counts))
        if math.prod(counts) <= MOST_DIRECTIONS:
            assert predict(dataclasses.replace(row.shape, counts=counts), made, 0).ratio >= row.ratio


def test_as_many_directions_as_there_may_be_leave_one_of_the_parts_above() -> None:
    assert {row.shape.counts[1:] for row in table(MOST_DIRECTIONS, CHEAP_HEAD, 0, ALL)} == {(), (1,), (1, 1)}


# --- what is known of the stages ---


@pytest.fixture
def manifest(bert_bundle: Bundle) -> Manifest:
    """Groups 0, 1 and 2 of the body in stages 0, 1 and 1, 256 values each, and the head, 99 values, in stage 2; calibrated by hand."""
    body, head = bert_bundle.manifest.base.calibration
    calibration = (
        dataclasses.replace(body, log2_eps=-2, signal=0.25, curvature=0.125),
        dataclasses.replace(head, log2_eps=-1, signal=1.5, curvature=0.5),
    )
    base = dataclasses.replace(bert_bundle.manifest.base, calibration=calibration)
    return dataclasses.replace(bert_bundle.manifest, bases={"fp32": base})


def test_shares_are_as_calibrated_where_no_more_is_known(manifest: Manifest) -> None:
    found = shares(manifest, ())
    assert found.cost == pytest.approx((256 / 867, 512 / 867, 99 / 867))
    assert found.energy == pytest.approx((1 / 3 / 10, 2 / 3 / 10, 9 / 10))  # slopes 1 and 3, squared
    assert found.curvature == pytest.approx((2 / 3 / 4, 4 / 3 / 4, 2 / 4))  # traces 2 and 2


def test_cost_is_what_a_device_measured_unless_it_is_of_other_stages(manifest: Manifest) -> None:
    assert shares(manifest, (500, 300, 200)).cost == (0.5, 0.3, 0.2)
    for unknown in ((500, 300), (500, 300, 200, 1), (0, 0, 0)):
        assert shares(manifest, unknown) == shares(manifest, ())


def test_slopes_of_the_run_count_more_than_calibration_group_by_group(manifest: Manifest) -> None:
    assert shares(manifest, (), {0: 4.0, 1: 1.0, 2: 2.0, 3: 3.0}).energy == pytest.approx((0.4, 0.3, 0.3))
    assert shares(manifest, (), {3: 1.0}).energy == pytest.approx((1 / 6, 2 / 6, 1 / 2))
    assert shares(manifest, (), {3: 0.0}).energy == pytest.approx((1 / 3, 2 / 3, 0))


@pytest.mark.parametrize("curvature", [0.0, -0.3])
def test_curvature_that_drowned_in_noise_goes_by_the_count_of_values(curvature: float, manifest: Manifest) -> None:
    calibration = (dataclasses.replace(manifest.base.calibration[0], curvature=curvature), manifest.base.calibration[1])
    drowned = dataclasses.replace(manifest, bases={"fp32": dataclasses.replace(manifest.base, calibration=calibration)})
    assert shares(drowned, ()).curvature == pytest.approx((256 / 867, 512 / 867, 99 / 867))


def test_all_shares_sum_to_one_for_every_kind_of_bundle(bundles: Bundles) -> None:
    for model, trainable in (("bert", "lora-fa"), ("llama", "full"), ("llama", "lora-fa"), ("bert-classifier", "norms")):
        manifest = bundles(model, trainable).manifest
        sizes = {each.kind: each.log2_eps for each in manifest.calibration}
        found = shares(manifest, ())
        for each in (found.cost, found.energy, found.curvature):
            assert len(each) == len(manifest.stages)
            assert sum(each) == pytest.approx(1)
            assert min(each) >= 0
        rows = plan_table(manifest, sizes, 8, (1000, 2000, 10))
        assert all(row.shape.cuts < (3,) for row in rows)
        assert ((2,) in [row.shape.cuts for row in rows]) == bool(manifest.stages[2].groups)


# --- what is told ---


def test_the_chosen_row_is_starred_and_every_row_told() -> None:
    rows = table(8, CHEAP_HEAD, 0, ALL)
    heading, *lines = told(rows).splitlines()
    assert "cut before stages" in heading
    assert len(lines) == len(rows)
    (starred,) = [place for place, line in enumerate(lines) if line.startswith("*")]
    assert rows[starred] is choose(rows)
    assert lines[0][2:].startswith("none (plain MeZO)")
    assert lines[0].split()[-3:] == ["8", "16.00", "1.000"]
    for row, line in zip(rows[1:], lines[1:], strict=True):
        assert " ".join(map(str, row.shape.cuts)) in line
        assert " x ".join(map(str, row.shape.counts)) in line
        assert line.split()[-2:] == [f"{row.forwards:.2f}", f"{row.ratio:.3f}"]
    assert told(table(8, DEAR_HEAD, 0, ALL)).splitlines()[1].startswith("*")
    *_, alone, apart = told(table(8, DEAR_HEAD, 0, ALL, clean=True)).splitlines()
    assert alone[2:].startswith("none, clean")
    assert apart[2:].startswith("1 2, clean")
