"""Which tree each device walks: as stated, or planned from what its stages cost; what cannot be is refused by name."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from conftest import Bundles, recalibrated
from local_coordinator import settings

from coordinator.config import Round, RunConfig, Seeds
from coordinator.planner import LOOK_BACK, MOST_SCALARS, Planner, ShapeRefused
from coordinator.summary import slopes
from zo import split
from zo.bundle import Bundle
from zo.errors import ConfigError
from zo.estimators import Grid
from zo.messages import Report
from zo.plan import Node, Shape
from zo.planning import kept_bytes, seeded, tree
from zo.recipe import Probe, Rate, Split

CHEAP_HEAD, DEAR_HEAD = (500_000, 500_000, 100), (100, 100, 500_000)
ENERGY_IN_THE_HEAD = {"0": 1e-4, "1": 1e-4, "2": 1e-4, "3": 1.0}
ENERGY_BELOW = {"0": 1.0, "1": 1e-4, "2": 1e-4, "3": 1e-4}


def config(bundle: Bundle, **changed: Any) -> RunConfig:
    return settings(bundle, **{"algorithm": "fedspzo"} | changed)


def planner(bundle: Bundle, slopes: dict[str, float] | None = None, **changed: Any) -> Planner:
    return Planner(config(bundle, **changed), bundle.manifest, [{"slopes": slopes}] if slopes else [])


# --- as stated ---


@pytest.mark.parametrize(
    ("changed", "shape"),
    [
        ({"algorithm": "mezo"}, Shape((3,))),
        ({"algorithm": "mezo", "split": Split((2,), (4,))}, Shape((3,))),
        ({"split": Split((2,), (4,))}, Shape((3, 4), (2,))),
        ({"split": Split((1,), (4,), joint=True)}, Shape((3, 4), (1,), joint=True)),
        ({"split": Split((1, 2), (2, 5))}, Shape((3, 2, 5), (1, 2))),
        ({"split": Split((1, 2), (2, 5), clean=True)}, Shape((3, 2, 5), (1, 2), clean=True)),
        ({"algorithm": "mezo", "split": Split(clean=True)}, Shape((3,), clean=True)),
        ({"split": Split((2,), (4,)), "probe": Probe()}, Shape((1, 4), (2,))),
        ({"algorithm": "mezo", "probe": Probe()}, Shape((8,))),
    ],
)
def test_what_is_stated_is_what_every_device_walks_whatever_its_stages_cost(
    changed: dict[str, Any], shape: Shape, bert_bundle: Bundle
) -> None:
    made = planner(bert_bundle, **changed)
    assert made.usual == shape
    for stage_ns in ((), CHEAP_HEAD, DEAR_HEAD, (1, 2), (0, 0, 0)):
        assert made.shape("fp32", stage_ns) == shape
    apart = bool(shape.cuts) and not shape.joint  # no probe moves both kinds
    sizes = {kind: bert_bundle.manifest.log2_eps(kind, apart) for kind in ("body", "head")}
    assert made.tree("fp32", shape) == tree(bert_bundle.manifest, sizes, shape)


def test_every_base_has_the_same_shape_with_probe_sizes_of_its_own(bundles: Bundles, tmp_path: Any) -> None:
    several = recalibrated(bundles("bert", precision="fp32,int8,w4"), tmp_path / "several", "int8", log2_eps=-4, log2_eps_apart=-2)
    made = planner(several, split=Split((2,), (4,)))
    trees = {precision: made.tree(precision, made.usual) for precision in several.manifest.bases}
    assert {root.shape for root in trees.values()} == {Shape((3, 4), (2,))}
    eps = {name: root.probe_sizes[0].log2_e + several.manifest.groups[0].log2_unit for name, root in trees.items()}
    assert eps == {name: several.at(name).manifest.log2_eps("body", apart=True) for name in several.manifest.bases}
    assert eps["int8"] == -2 != eps["fp32"]


@pytest.mark.parametrize(
    ("changed", "log2_eps"),
    [
        ({"algorithm": "mezo"}, {-6}),
        ({"split": Split((1,), (4,))}, {-6}),  # the upper part has blocks and the head
        ({"split": Split((2,), (4,), joint=True)}, {-6}),
        ({"split": Split((2,), (4,))}, {-4}),
        ({"split": Split((1, 2), (2, 4))}, {-4}),
        ({"algorithm": "mezo", "rate": Rate(head=0.0)}, {-4}),
        ({"split": Split((2,), (4,)), "probe": Probe(log2_eps_body=-5)}, {-5}),
    ],
)
def test_what_is_tried_apart_from_other_kinds_is_tried_further(
    changed: dict[str, Any], log2_eps: set[int], bundles: Bundles, tmp_path: Any
) -> None:
    bundle = recalibrated(bundles("bert"), tmp_path / "bundle", "fp32", log2_eps=-6, log2_eps_apart=-4)
    made = planner(bundle, **changed)
    units = {group.id: group.log2_unit for group in bundle.manifest.groups if group.kind == "body"}
    levels = made.tree("fp32", made.usual).levels()
    found = {size.log2_e + units[group] for node, _ in levels for size in node.probe_sizes for group in size.groups if group in units}
    assert found == log2_eps


# --- as planned ---


def test_a_device_whose_head_is_cheap_tries_it_often_and_one_whose_head_is_dear_does_not(bert_bundle: Bundle) -> None:
    made = planner(bert_bundle, ENERGY_IN_THE_HEAD)
    assert made.shape("fp32", CHEAP_HEAD).cuts[-1] == 2
    assert made.shape("fp32", CHEAP_HEAD).counts[-1] >= 16
    assert planner(bert_bundle, ENERGY_BELOW).shape("fp32", DEAR_HEAD) == Shape((3,))


def test_the_shape_is_the_best_row_of_the_table_up_to_how_exactly_times_are_measured(bert_bundle: Bundle) -> None:
    made = planner(bert_bundle)
    for stage_ns in itertools.product((100, 5_000, 90_000), repeat=3):
        rows, chosen = made.table("fp32", stage_ns), made.shape("fp32", stage_ns)
        assert chosen == made.shape("fp32", tuple(7 * each for each in stage_ns))  # of a device seven times slower
        known = split.shares(bert_bundle.manifest, stage_ns)
        assert split.predict(chosen, known, 0).ratio <= 1.25 * min(row.ratio for row in rows)


def test_a_device_is_planned_for_once_a_round_whatever_it_says_of_its_times(bert_bundle: Bundle) -> None:
    made = planner(bert_bundle, ENERGY_IN_THE_HEAD)
    dear, cheap = made.shape("fp32", DEAR_HEAD), made.shape("fp32", CHEAP_HEAD)
    assert dear != cheap
    told = [(1, 0, DEAR_HEAD), (1, 0, CHEAP_HEAD), (1, 1, CHEAP_HEAD), (2, 0, CHEAP_HEAD), (2, 0, DEAR_HEAD)]
    assert [made.asked(number, device, "fp32", times, (), 0) for number, device, times in told] == [dear, dear, cheap, cheap, cheap]


def test_clean_shapes_are_planned_where_that_is_allowed_and_only_there(bert_bundle: Bundle) -> None:
    allowed, not_allowed = planner(bert_bundle, ENERGY_BELOW, split=Split(clean=True)), planner(bert_bundle, ENERGY_BELOW)
    chosen = allowed.shape("fp32", DEAR_HEAD)
    assert chosen.clean
    assert allowed.tree("fp32", chosen).clean
    assert not any(row.shape.clean for row in not_allowed.table("fp32", DEAR_HEAD))
    with pytest.raises(ShapeRefused, match="not Shape"):
        not_allowed.tree("fp32", chosen)


def test_a_device_that_says_nothing_useful_of_its_stages_gets_the_usual_shape(bert_bundle: Bundle) -> None:
    made = planner(bert_bundle)
    for stage_ns in ((), (5, 5), (5, 5, 5, 5), (2**32 - 1,) * 50):
        assert made.shape("fp32", stage_ns) == made.usual


@pytest.mark.parametrize("stage_ns", [(0, 0, 0), (0, 0, 2**32 - 1), (2**32 - 1, 1, 0)])
def test_times_that_cannot_be_give_a_shape_all_the_same(stage_ns: tuple[int, ...], bert_bundle: Bundle) -> None:
    made = planner(bert_bundle)
    assert made.tree("fp32", made.shape("fp32", stage_ns)).shape == made.shape("fp32", stage_ns)


def test_a_device_that_tries_some_groups_gets_a_tree_of_those(bundles: Bundles) -> None:
    bundle = bundles("bert", ranks=(1, 2, 4))
    *_, last, _, _, head = (group.id for group in bundle.manifest.groups)
    for made in (planner(bundle), planner(bundle, split=Split((2,), (4,)))):
        shape = made.shape("fp32", (100, 100, 1), (last, last + 2, head), 2)
        assert (shape.groups, shape.rank) == ((last, head), 2)
        tree = made.tree("fp32", shape)
        assert (tree.rank, sorted(g for node, _ in tree.levels() for size in node.probe_sizes for g in size.groups)) == (
            2,
            [last, head],
        )
        assert made.shape("fp32", (100, 100, 1), (0,)).cuts == ()


def test_what_has_a_rate_of_zero_is_not_tried_by_anyone(bert_bundle: Bundle) -> None:
    *body, head = (group.id for group in bert_bundle.manifest.groups)
    for made in (planner(bert_bundle, rate=Rate(head=0.0)), planner(bert_bundle, rate=Rate(head=0.0), split=Split((2,), (4,)))):
        assert made.usual.groups == made.shape("fp32", ()).groups == tuple(body)
        assert made.usual.cuts == ()
        with pytest.raises(ShapeRefused, match="the run trains groups"):
            made.tree("fp32", Shape(made.usual.counts, groups=(head,)))
        with pytest.raises(ShapeRefused, match="the run trains groups"):
            made.tree("fp32", Shape(made.usual.counts))
    with pytest.raises(ConfigError, match=r"rate\.body and rate\.head are 0"):
        planner(bert_bundle, rate=Rate(0.0, 0.0))


def test_a_base_that_the_bundle_has_not_is_refused_by_name(bert_bundle: Bundle) -> None:
    made = planner(bert_bundle)
    with pytest.raises(ConfigError, match="no base of precision 'int8'"):
        made.shape("int8", CHEAP_HEAD)
    with pytest.raises(ConfigError, match="no base of precision 'int8'"):
        made.tree("int8", made.usual)


@pytest.mark.parametrize(
    ("changed", "fits"),
    [
        ({"split": Split(kept=0)}, lambda shape, manifest: not shape.cuts),
        ({"split": Split(kept=2 * 4 * 4 * 32)}, lambda shape, manifest: set(shape.cuts) <= {2}),
        ({"seeds": Seeds(24)}, lambda shape, manifest: math.prod(shape.counts) <= 24),
        ({"seeds": Seeds(3)}, lambda shape, manifest: math.prod(shape.counts) <= 3),
        ({"round": Round(10_000, 1)}, lambda shape, manifest: 10_000 * shape.scalars <= MOST_SCALARS),
    ],
    ids=["nothing kept", "head inputs kept", "pool", "small pool", "many devices"],
)
def test_what_is_planned_keeps_within_the_runs_limits(changed: dict[str, Any], fits: Any, bert_bundle: Bundle) -> None:
    free, made = planner(bert_bundle, ENERGY_IN_THE_HEAD), planner(bert_bundle, ENERGY_IN_THE_HEAD, **changed)
    manifest = bert_bundle.manifest
    for stage_ns in ((), CHEAP_HEAD, DEAR_HEAD, (100, 100, 100)):
        rows = made.table("fp32", stage_ns)
        assert rows[0].shape == Shape((3,))
        for shape in [row.shape for row in rows] + [made.shape("fp32", stage_ns)]:
            assert fits(shape, manifest)
            seeded(made.tree("fp32", shape), manifest.run_key, 1, 0, changed.get("seeds", Seeds()).pool)
    assert not all(fits(row.shape, manifest) for row in free.table("fp32", CHEAP_HEAD))


# --- what cannot be ---


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"split": Split((3,), (4,))}, r"cuts = \[3\]: this bundle can be cut before stages 1 to 2"),
        ({"split": Split((1, 9), (4, 4))}, r"cuts = \[1, 9\]: this bundle can be cut before stages 1 to 2"),
        ({"split": Split((1,), (4,), kept=5e3)}, r"cuts = \[1\] make a device keep 0\.0 MB of outputs, and split\.kept = 5000; allow more"),
        ({"split": Split((1,), (4,), kept=0)}, r"split\.kept = 0; allow more, cut nearer the output, or lower probe\.examples"),
        ({"split": Split((2,), (1000,)), "round": Round(100, 1)}, r"round\.goal = 100 reports of .* are more than 262144 scalars"),
        ({"algorithm": "mezo", "probe": Probe(4096), "round": Round(65, 1)}, r"round\.goal = 65 reports of .* are more than 262144"),
        ({"split": Split((2,), (8,)), "seeds": Seeds(23)}, "pool = 23 must be 0, or at least the 24 directions of a device"),
        ({"algorithm": "mezo", "seeds": Seeds(2)}, "pool = 2 must be 0, or at least the 3 directions of a device"),
        ({"seeds": Seeds(2)}, "pool = 2 must be 0, or at least the 3 directions of a device"),
    ],
)
def test_a_run_that_cannot_be_is_refused_by_name_when_it_is_created(changed: dict[str, Any], said: str, bert_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=said):
        planner(bert_bundle, **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"split": Split((2,), (8,)), "seeds": Seeds(24)},
        {"split": Split((1,), (4,), kept=2 * 4 * 32 * 32 * 4)},
        {"split": Split((2,), (1000,)), "round": Round(87, 1)},
    ],
)
def test_just_within_every_limit_it_can_be(changed: dict[str, Any], bert_bundle: Bundle) -> None:
    assert planner(bert_bundle, **changed).usual == Shape((3, *changed["split"].counts), changed["split"].cuts)
    assert kept_bytes(bert_bundle.manifest, Shape((3, 4), (1,)), 4) == 2 * 4 * 32 * 32 * 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cuts": (2,)}, r"cuts = \[2\] and counts = \[\] go together"),
        ({"counts": (2,)}, r"cuts = \[\] and counts = \[2\] go together"),
        ({"cuts": (2,), "counts": (0,)}, r"counts = \[1, 0\] must be at least 1 each"),
        ({"cuts": (2,), "counts": (5000,)}, "at most 4096 multiplied"),
        ({"cuts": (2, 1), "counts": (1, 1)}, r"cuts = \[2, 1\] must grow"),
        ({"cuts": (1, 2), "counts": (1, 1), "joint": True}, "joint probes need one cut"),
        ({"joint": True}, "joint needs cuts and counts"),
        ({"kept": -1.0}, r"kept = -1\.0 must not be negative"),
        ({"cuts": (1, 2), "counts": (3,)}, r"counts = \[3\] must have one number for each of cuts = \[1, 2\]"),
    ],
)
def test_settings_of_cuts_that_cannot_be_are_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Split(**given)


@pytest.mark.parametrize("changed", [{"split": Split((2,), (4,))}, {"algorithm": "mezo"}])
def test_where_the_shape_is_stated_any_other_is_refused(changed: dict[str, Any], bert_bundle: Bundle) -> None:
    made = planner(bert_bundle, **changed)
    others = {Shape((3,)), Shape((3, 5), (2,)), Shape((2, 4), (2,)), Shape((3, 4), (1,)), Shape((3, 4), (2,), joint=True)} - {made.usual}
    for shape in others:
        with pytest.raises(ShapeRefused, match="the run asks for Shape"):
            made.tree("fp32", shape)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (Shape((2,)), "the run asks for 3 directions of the lowest part"),
        (Shape((4, 2), (2,)), "the run asks for 3 directions of the lowest part"),
        (Shape((3, 2), (2,), joint=True), "tries one part at a time"),
        (Shape((3, 2), (7,)), "can be cut before stages"),
        (Shape((3, 2), (1,)), "make a device keep"),
        (Shape((3, 1000), (2,)), "more than 262144 scalars"),
        (Shape((3, 100), (2,)), "pool = 290 must be 0"),
    ],
)
def test_where_it_is_planned_only_what_might_have_been_is_taken(shape: Shape, said: str, bert_bundle: Bundle) -> None:
    made = planner(bert_bundle, split=Split(kept=5000), seeds=Seeds(290), round=Round(200, 1))
    with pytest.raises(ConfigError, match=said):
        made.tree("fp32", shape)
    for taken in (Shape((3,)), Shape((3, 90), (2,))):
        assert made.tree("fp32", taken).shape == taken


# --- learning ---


def nodes(bundle: Bundle, shapes: list[Shape]) -> list[Node]:
    sizes = {each.kind: each.log2_eps for each in bundle.manifest.calibration}
    return [seeded(tree(bundle.manifest, sizes, shape), 7, 1, device) for device, shape in enumerate(shapes)]


def report(device: int, scalars: list[int]) -> Report:
    return Report(1, device, 1, np.array(scalars), 4, "fp32")


def test_slopes_are_told_of_kinds_that_were_tried_apart_from_others(bert_bundle: Bundle) -> None:
    """Groups tried together share their squared slope: each has its part of the gradient, on average alike."""
    eps = 2.0 ** bert_bundle.manifest.log2_eps("body")
    level, grid = 2.0**-14, Grid(14, 2.0)
    plain, head, middle, joint = nodes(
        bert_bundle, [Shape((2,)), Shape((1, 2), (2,)), Shape((1, 1), (1,)), Shape((1, 2), (2,), joint=True)]
    )
    manifest = bert_bundle.manifest
    assert eps == 2.0 ** manifest.log2_eps("head")
    assert slopes([report(0, [300, -200])], [plain], manifest, grid, "mean", {}) == {}
    assert slopes([report(0, [300, -200])], [joint], manifest, grid, "mean", {}) == {}
    body = (300 * level / eps) ** 2 / 3
    found = slopes([report(0, [300, 30, -40])], [head], manifest, grid, "mean", {})
    assert found == pytest.approx({"0": body, "1": body, "2": body, "3": (900 + 1600) / 2 * (level / eps) ** 2})
    found = slopes([report(0, [300, 30])], [middle], manifest, grid, "mean", {})
    assert found == pytest.approx({"0": (300 * level / eps) ** 2})
    both = slopes([report(0, [300, 30, -40]), report(1, [100, 30])], [head, middle], manifest, grid, "mean", {})
    assert both["0"] == pytest.approx((body + (100 * level / eps) ** 2) / 2)


def test_slopes_of_one_kind_alone_are_those_of_plain_mezo_in_the_joint_form_too(llama_bundle: Bundle) -> None:
    plain, joint = nodes(llama_bundle, [Shape((2,)), Shape((2, 1), (1,), joint=True)])
    grid, manifest = Grid(14, 2.0), llama_bundle.manifest
    expected = slopes([report(0, [300, -200])], [plain], manifest, grid, "mean", {})
    assert set(expected) == {"0", "1", "2"}
    assert slopes([report(0, [300, -200])], [joint], manifest, grid, "mean", {}) == expected


def test_what_groups_show_together_is_parted_by_what_each_showed_before(bert_bundle: Bundle) -> None:
    """Where they are not always tried together, that comes to the squares that they have."""
    manifest, grid, true = bert_bundle.manifest, Grid(14, 2.0), np.array([1.0, 3.0, 8.0])
    tried = [(0,), (0, 1), (0, 1, 2), (1, 2)]
    roots = nodes(bert_bundle, [Shape((1,), groups=each) for each in tried])
    eps = [2.0 ** (root.probe_sizes[0].log2_e + manifest.groups[0].log2_unit) for root in roots]
    scalars = [round(0.01 * np.sqrt(true[list(each)].sum()) * size * 2**14) for each, size in zip(tried, eps, strict=True)]
    known: dict[int, float] = {}
    for _ in range(60):
        told = slopes([report(place, [scalar]) for place, scalar in enumerate(scalars)], roots, manifest, grid, "mean", known)
        known = {int(group): square for group, square in told.items()}
    assert np.array([known[group] for group in range(3)]) / known[0] == pytest.approx(true, rel=0.1)


def test_what_rounds_told_moves_the_plan_after_a_while(bert_bundle: Bundle) -> None:
    made = planner(bert_bundle, ENERGY_BELOW)
    before = made.shape("fp32", CHEAP_HEAD)
    for _ in range(LOOK_BACK - 1):
        made.learn(ENERGY_IN_THE_HEAD)
        assert made.shape("fp32", CHEAP_HEAD) == before  # not every round: the times are known once
    made.learn(ENERGY_IN_THE_HEAD)
    after = made.shape("fp32", CHEAP_HEAD)
    assert math.prod(after.counts) > math.prod(before.counts)
    assert after == planner(bert_bundle, ENERGY_IN_THE_HEAD).shape("fp32", CHEAP_HEAD)


def test_a_planner_made_of_summaries_is_the_one_that_learnt_them(bert_bundle: Bundle) -> None:
    draw = np.random.default_rng(0)
    learnt = [{str(group): float(draw.random()) for group in range(4)} if place % 3 else {} for place in range(2 * LOOK_BACK)]
    one = planner(bert_bundle)
    for slopes_of_round in learnt:
        one.learn(slopes_of_round)
    other = Planner(config(bert_bundle), bert_bundle.manifest, [{"slopes": each} if each else {} for each in learnt])
    for stage_ns in ((), CHEAP_HEAD, DEAR_HEAD):
        assert one.table("fp32", stage_ns) == other.table("fp32", stage_ns)
