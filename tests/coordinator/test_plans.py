"""What devices are asked for: seeds of their own, probe sizes of their base, trees by what their stages cost."""

import dataclasses

import pytest
from local_coordinator import PROBE, answer, report, settings
from made_rounds import (
    CHANGED_SETTINGS,
    CHEAP_HEAD,
    CUT,
    DEAR_HEAD,
    PLANNED,
    Make,
    close,
    shaped,
    state,
)

from coordinator.config import Round, Seeds
from coordinator.plans import ReportRefused
from coordinator.rounds import Rounds
from zo.bundle import Bundle
from zo.errors import ConfigError
from zo.estimators import Grid
from zo.messages import Verdict
from zo.plan import Shape
from zo.planning import one_level
from zo.recipe import Probe, Split
from zo.seeds import SEEDS_PER_ROUND


def test_no_two_devices_or_rounds_share_a_seed(make_rounds: Make) -> None:
    rounds = make_rounds()
    nodes = [rounds.plans.node(number, device, "fp32") for number in (1, 2) for device in range(3)]
    seeds = [seed for node in nodes for seed in range(node.first_seed, node.first_seed + node.count)]
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 3


def test_a_plan_asks_for_held_out_losses_along_the_stride_and_for_the_digest_when_they_are_due(make_rounds: Make) -> None:
    rounds = make_rounds(held_out_every=4, digest_every=3, round=Round(1, 1, 5.0), rounds=12)
    due = []
    for number in range(1, 13):
        plan = rounds.plan(0, "fp32")
        assert plan is not None
        due.append((plan.measure_held_out, plan.stride, plan.want_digest))
        assert rounds.accept(answer(rounds, 0, number, held_out=(2**14,) if plan.measure_held_out else ())) is Verdict.ACCEPTED
        assert rounds.close_if_due()
    assert [(number + 1, stride) for number, (measure, stride, _) in enumerate(due) if measure] == [(1, 0), (3, 2), (5, 2), (9, 4), (12, 0)]
    assert [number + 1 for number, (_, _, digest) in enumerate(due) if digest] == [3, 6, 9, 12]


def test_a_plan_carries_grid_and_id(make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(1, 1, 5.0), log2_levels=12, clip=1.5)
    plan = rounds.plan(1, "fp32")
    assert plan is not None
    assert (plan.grid, plan.id) == (Grid(12, 1.5), rounds.plan_id(1, "fp32"))


def test_ids_of_plans_differ_by_device_and_round_and_settings_and_are_always_the_same(make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(1, 1, 5.0))
    first = [rounds.plan_id(device, "fp32") for device in range(3)]
    assert first == [make_rounds(devices=0, round=Round(1, 1, 5.0)).plan_id(device, "fp32") for device in range(3)]
    others = [make_rounds(devices=0, round=Round(1, 1, 5.0), **changed).plan_id(0, "fp32") for changed in CHANGED_SETTINGS]
    rounds.accept(answer(rounds, 0))
    rounds.close_if_due()
    second = [rounds.plan_id(device, "fp32") for device in range(3)]
    assert len({*first, *others, *second}) == 3 + len(CHANGED_SETTINGS) + 3
    assert all(0 <= each < 2**32 for each in (*first, *others, *second))


def seeds(rounds: Rounds, number: int, device: int) -> range:
    node = rounds.plans.node(number, device, "fp32")
    return range(node.first_seed, node.first_seed + node.count)


def test_with_a_pool_all_seeds_are_of_it_and_dealt_anew_every_round(make_rounds: Make) -> None:
    rounds = make_rounds(seeds=Seeds(32))
    dealt = [[seeds(rounds, number, device) for device in range(10)] for number in range(1, 30)]
    for each in dealt:
        assert len({seed for one in each for seed in one}) == 10 * 3  # ten slots of three directions fit 32 seeds
        assert all(0 <= seed < 32 for one in each for seed in one)
    assert len({tuple(one.start for one in each) for each in dealt}) == len(dealt)


def test_devices_beyond_the_slots_of_a_pool_share_them(make_rounds: Make) -> None:
    rounds = make_rounds(seeds=Seeds(6))
    for number in range(1, 5):
        starts = [seeds(rounds, number, device).start for device in range(6)]
        assert [set(starts[place : place + 2]) for place in (0, 2, 4)] == [{0, 3}] * 3


def test_a_pool_goes_on_as_it_was_after_a_stop_and_bounds_the_fold(make_rounds: Make) -> None:
    rounds = make_rounds(seeds=Seeds(12), round=Round(2, 1, 30.0), rounds=40)
    for _ in range(20):
        close(rounds, 2)
    again = make_rounds(devices=0, seeds=Seeds(12), rounds=40)
    assert state(again) == state(rounds)
    assert [seeds(again, 21, device) for device in range(3)] == [seeds(rounds, 21, device) for device in range(3)]
    folded = again.ledger.replica.checkpoint().terms
    for group in again.ledger.replica.sizes.keys() - again.ledger.replica.folding.without:
        assert sum(term.steps.size for term in folded if group in term.groups) <= 12
    assert make_rounds(devices=0, rounds=40).plan_id(0, "fp32") != rounds.plan_id(0, "fp32")


def test_what_compares_devices_needs_shared_seeds_and_is_refused_else(bert_bundle: Bundle) -> None:
    for how in ("median", "trimmed-mean"):
        with pytest.raises(ValueError, match=r"needs seeds.shared = true"):
            settings(bert_bundle, aggregation=how)
        assert settings(bert_bundle, aggregation=how, seeds=Seeds(shared=True)).aggregation == how


@pytest.mark.parametrize("pool", [0, 64])
def test_shared_seeds_are_the_same_for_all_devices_and_other_every_round(make_rounds: Make, pool: int) -> None:
    rounds = make_rounds(seeds=Seeds(shared=True, pool=pool))
    first = [rounds.plans.node(1, device, "fp32").first_seed for device in range(5)]
    assert len(set(first)) == 1
    assert len({rounds.plans.node(number, 0, "fp32").first_seed for number in range(1, 9)}) > 1


def test_a_plan_has_the_probe_sizes_of_the_devices_base(several: Bundle, make_several: Make) -> None:
    rounds = make_several()
    sizes = {precision: several.at(precision).manifest.log2_eps("body") for precision in several.manifest.bases}
    assert sizes["int8"] != sizes["fp32"]
    for precision in several.manifest.bases:
        plan = rounds.plan(0, precision)
        assert plan is not None
        assert plan.root == one_level(
            several.manifest, {kind: several.at(precision).manifest.log2_eps(kind) for kind in ("body", "head")}, plan.root.first_seed, 3
        )
        assert plan.id == rounds.plan_id(0, precision)
    assert rounds.plan_id(0, "int8") != rounds.plan_id(0, "fp32")


def test_probe_sizes_that_the_settings_state_hold_for_every_base(several: Bundle, make_several: Make) -> None:
    rounds = make_several(probe=dataclasses.replace(PROBE, log2_eps_body=-5, log2_eps_head=-5))
    assert len({rounds.plans.node(1, 0, precision) for precision in several.manifest.bases}) == 1


def test_a_base_that_the_bundle_has_not_is_refused_by_name(make_several: Make) -> None:
    rounds = make_several()
    said = "has no base of precision 'w8'; it has fp32, int8, w4"
    with pytest.raises(ReportRefused, match=said):
        rounds.plan(0, "w8")
    with pytest.raises(ReportRefused, match=said):
        rounds.accept(answer(rounds, 0, plan=1, precision="w8"))


def test_a_plan_is_the_tree_that_is_stated_with_seeds_of_the_devices_own(make_rounds: Make) -> None:
    rounds = make_rounds(**CUT)
    found = [rounds.plan(device, "fp32", CHEAP_HEAD) for device in range(3)]
    assert [plan.root.shape for plan in found if plan] == [Shape((3, 4), (2,))] * 3
    for level, total in enumerate((3, 12)):
        starts = [list(plan.root.levels())[level][0].first_seed for plan in found if plan]
        assert starts == [SEEDS_PER_ROUND + device * total for device in range(3)]
    assert len({plan.id for plan in found if plan}) == 3
    assert [plan.id for plan in found if plan] == [rounds.plan_id(device, "fp32", Shape((3, 4), (2,))) for device in range(3)]


def test_devices_get_trees_by_what_their_stages_cost(make_rounds: Make) -> None:
    rounds = make_rounds(**PLANNED)
    cheap, dear = rounds.plan(0, "fp32", CHEAP_HEAD), rounds.plan(1, "fp32", DEAR_HEAD)
    assert cheap is not None
    assert dear is not None
    assert cheap.root.shape == rounds.course.planner.shape("fp32", CHEAP_HEAD) != dear.root.shape
    for plan, device in ((cheap, 0), (dear, 1)):
        assert rounds.accept(shaped(rounds, device, plan.root.shape, plan=plan.id)) is Verdict.ACCEPTED


def test_a_base_that_the_bundle_has_not_gets_no_plan_where_trees_are_planned(make_rounds: Make) -> None:
    with pytest.raises(ReportRefused, match="no base of precision 'w8'"):
        make_rounds(**PLANNED).plan(0, "w8", CHEAP_HEAD)


def test_a_run_that_cannot_be_does_not_begin(make_rounds: Make) -> None:
    with pytest.raises(ConfigError, match="can be cut before stages 1 to 2"):
        make_rounds(**CUT | {"split": Split((3,), (4,))})


def test_devices_that_are_compared_walk_one_tree(make_rounds: Make) -> None:
    rounds = make_rounds(algorithm="fedspzo", aggregation="median", seeds=Seeds(shared=True), probe=Probe(examples=4))
    usual = rounds.course.planner.usual
    stages = len(rounds.bundle.manifest.stages)
    for stage_ns in ((), (1,) * stages, (10**9, *(1,) * (stages - 1))):
        plan = rounds.plan(0, "fp32", stage_ns)
        assert plan is not None
        assert plan.root.shape == usual
    other = Shape((1,)) if usual != Shape((1,)) else Shape((1, 3), (stages - 1,))
    assert rounds.accept(report(0, plan=plan.id, shape=other, scalars=(1,) * other.scalars)) is Verdict.LATE
