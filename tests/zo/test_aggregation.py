"""From reports to terms: by hand, in any order, weighted, and downhill."""

import dataclasses
import math
from itertools import permutations

import numpy as np
import pytest
from small_rounds import GIVEN, GRID, SIZE, nodes, report, two_groups

from zo import aggregation, reference
from zo.aggregation import aggregate, by_level
from zo.bundle import Bundle
from zo.directions import signs
from zo.estimators import Grid, half_differences
from zo.group import Group, Tensor
from zo.lattice import snap
from zo.manifest import Manifest, Stage
from zo.messages import Report
from zo.parameters import Parameters
from zo.plan import Node, Shape
from zo.planning import one_level, seeded, tree
from zo.rates import Rates
from zo.recipe import Probe, Rate


@pytest.fixture
def manifest(bert_bundle: Bundle) -> Manifest:
    return two_groups(bert_bundle)


def factors(share: float) -> dict[str, float]:
    return {"body": share, "head": share}


def steps_of(terms: tuple, group: int) -> dict[int, int]:
    """Steps by seed."""
    return {int(s): int(n) for term in terms if group in term.groups for s, n in zip(term.seeds, term.steps, strict=True)}


def test_equals_what_is_computed_by_hand(manifest: Manifest) -> None:
    reports = [report(0, scalars=(1 << 13, -(1 << 12))), report(1, scalars=(1 << 11, 0), examples=4)]
    found = aggregate(reports, nodes(manifest, [2, 2]), GIVEN, factors(0.5), manifest, GRID)
    # growth 4 directions, weight 4 * 4 / 8 / 2 = 1; body: -0.5 * 0.25 * (1/2) / 0.5 * 2**16 units = -2**13 for the first
    assert steps_of(found, 0) == {0: -(2**13), 1: 2**12, 1000: -(2**11)}
    # head: twice the rate, E = 2**-6 / 2**-18 = 2**12
    assert steps_of(found, 1) == {0: -(2**10), 1: 2**9, 1000: -(2**8)}


def test_the_order_of_reports_does_not_matter(manifest: Manifest) -> None:
    reports = [report(device, scalars=(301 + device, -77, 5), examples=1 + device) for device in range(3)]
    plans = nodes(manifest, [3, 3, 3])
    found = [
        aggregate([reports[n] for n in order], [plans[n] for n in order], GIVEN, factors(1.0), manifest, GRID)
        for order in permutations(range(3))
    ]
    assert found[0]
    assert all(each == found[0] for each in found)


def test_the_same_reports_are_always_rounded_alike_and_those_of_other_seeds_or_rounds_otherwise(manifest: Manifest) -> None:
    def found(first_seed: int, device: int = 0, number: int = 1) -> tuple[list[int], list[int]]:
        node = one_level(manifest, GIVEN.log2_eps, first_seed, 64)
        terms = aggregate([report(device, number, scalars=tuple(range(1, 65)))], [node], GIVEN, factors(0.05), manifest, GRID)
        body, head = (steps_of(terms, group) for group in (0, 1))
        return tuple([steps.get(first_seed + place, 0) for place in range(64)] for steps in (body, head))  # type: ignore[return-value]

    body, head = found(1000)
    assert found(1000) == (body, head)
    assert found(1000, device=5) == (body, head)  # the seed tells who it was
    for other in (found(2000), found(1000, number=2)):  # with a pool, seeds come back in other rounds
        assert other[0] != body
        assert other[1] != head


def test_reports_on_the_same_slot_of_a_pool_are_summed_seed_by_seed(manifest: Manifest) -> None:
    node = one_level(manifest, GIVEN.log2_eps, 8, 2)
    reports = [report(0, scalars=(1 << 13, 1 << 12)), report(1, scalars=(1 << 13, -(1 << 12)))]
    steps = steps_of(aggregate(reports, [node, node], GIVEN, factors(1.0), manifest, GRID), 0)
    assert steps == {8: -(2**15)}  # the second seed cancels
    terms = aggregate(reports, [node, node], GIVEN, factors(1.0), manifest, GRID)
    assert all(term.steps.size == 1 for term in terms)


def test_groups_are_rounded_apart(manifest: Manifest) -> None:
    alike = dataclasses.replace(GIVEN, by_kind={"body": 0.25, "head": 4.0})  # the same real step in units of either group
    terms = aggregate([report(0, scalars=(1,) * 64)], nodes(manifest, [64]), alike, factors(0.25), manifest, GRID)
    body, head = ([steps_of(terms, group).get(seed, 0) for seed in range(64)] for group in (0, 1))
    assert set(body) == set(head) == {-1, 0}
    assert body != head


def test_a_report_weighs_as_much_as_its_examples(manifest: Manifest) -> None:
    reports = [report(0, scalars=(1 << 13,), examples=1), report(1, scalars=(1 << 13,), examples=3)]
    steps = steps_of(aggregate(reports, nodes(manifest, [1, 1]), GIVEN, factors(1.0), manifest, GRID), 0)
    assert (steps[0], steps[1000]) == (-(2**13), -3 * 2**13)


def test_more_directions_than_a_certain_count_only_steady_the_update(manifest: Manifest) -> None:
    def length(count: int) -> int:
        reports = [report(0, scalars=(1 << 13,) * count)]
        return -sum(steps_of(aggregate(reports, nodes(manifest, [count]), GIVEN, factors(1.0), manifest, GRID), 0).values())

    most = aggregation.MOST_SUMMED
    assert length(most) == most * length(1)
    assert length(4 * most) == length(most)


def test_devices_with_other_probe_sizes_move_the_parameters_alike_for_the_same_slope(manifest: Manifest) -> None:
    coarse = {"body": -2, "head": -3}  # 4 and 8 times GIVEN's
    node = one_level(manifest, coarse, 1000, 1)
    body, head = 2**-2 / 2**-4, 2**-3 / 2**-6
    for group, times in ((0, body), (1, head)):
        reports = [report(0, scalars=(1 << 8,)), report(1, scalars=(int((1 << 8) * times),))]  # the same slope along each direction
        terms = aggregate(reports, [*nodes(manifest, [1]), node], GIVEN, factors(1.0), manifest, GRID)
        steps = steps_of(terms, group)
        assert steps[0] == steps[1000] != 0


def test_the_order_of_reports_of_other_probe_sizes_does_not_matter(manifest: Manifest) -> None:
    plans = [*nodes(manifest, [3, 3]), one_level(manifest, {"body": -1, "head": -7}, 5000, 3)]
    reports = [report(device, scalars=(301 + device, -77, 5), examples=1 + device) for device in range(3)]
    found = [
        aggregate([reports[n] for n in order], [plans[n] for n in order], GIVEN, factors(1.0), manifest, GRID)
        for order in permutations(range(3))
    ]
    assert found[0]
    assert all(each == found[0] for each in found)


def test_scalars_of_zero_leave_no_terms(manifest: Manifest) -> None:
    assert aggregate([report(0, scalars=(0, 0))], nodes(manifest, [2]), GIVEN, factors(1.0), manifest, GRID) == ()


# --- trees ---


@pytest.fixture
def staged(manifest: Manifest) -> Manifest:
    """Two groups of the body and a head, in a stage each; units 2**-20 and, of the head, 2**-18."""
    groups = (
        Group(0, "body", -20, (Tensor("w", (SIZE,)),)),
        Group(1, "body", -20, (Tensor("x", (SIZE,)),)),
        Group(2, "head", -18, (Tensor("v", (SIZE,)),)),
    )
    stages = tuple(Stage(f"stage_{place}.onnx", ("x",), ("loss",), (place,)) for place in range(3))
    return dataclasses.replace(manifest, groups=groups, bases={"fp32": dataclasses.replace(manifest.base, stages=stages)})


def root(manifest: Manifest, shape: Shape, device: int = 0, log2_eps: dict[str, int] = GIVEN.log2_eps) -> Node:
    """A device's tree in round 1."""
    return seeded(tree(manifest, log2_eps, shape), manifest.run_key, 1, device)


START = 2**32  # where the seeds of round 1 begin


def test_half_differences_go_to_their_level_lowest_first(staged: Manifest) -> None:
    made = root(staged, Shape((1, 2, 3), (1, 2)))
    found = by_level(made, np.arange(9.0))
    assert [node for node, _ in found] == [node for node, _ in made.levels()]
    assert [half.tolist() for _, half in found] == [[0.0], [1.0, 2.0], [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]


def test_joint_half_differences_are_told_apart_first(staged: Manifest) -> None:
    made = root(staged, Shape((2, 3), (1,), joint=True))
    (low, first), (high, second) = by_level(made, np.array([1.0, 2.0, 6.0, 0.0, 3.0, 3.0]))
    assert (low, high) == (made, made.child)
    assert first.tolist() == [3.0, 2.0]
    assert second.tolist() == [-3.0, -1.5, 4.5, -3.0, 1.5, 1.5]


def test_every_level_of_a_tree_is_averaged_over_its_own_directions(staged: Manifest) -> None:
    found = aggregate(
        [report(0, scalars=(1 << 12, 1 << 11, -(1 << 11)))], [root(staged, Shape((1, 2), (2,)))], GIVEN, factors(1.0), staged, GRID
    )
    # body: growth 1, alone as at calibration: -0.25 * (1/4) / 0.3 * 2**14 units, rounded; head: growth 2 by a mean over 2
    assert list(steps_of(found, 0)) == [START]
    assert steps_of(found, 0)[START] == pytest.approx(-0.25 / 4 / 0.3 * 2**14, abs=1)
    assert steps_of(found, 1) == steps_of(found, 0)
    head = steps_of(found, 2)
    assert list(head) == [START, START + 1]
    assert head[START] == pytest.approx(-0.5 / 8 / 0.4 * 2**12, abs=1)
    assert abs(head[START] + head[START + 1]) <= 1


@pytest.mark.parametrize("log2_eps", range(-9, 0))
def test_steps_are_as_long_as_the_run_says_for_the_level(log2_eps: int, staged: Manifest) -> None:
    """Half differences as at calibration and a rate of 1: what is tried all at once moves by the run's probe, and parts up to a bound."""
    given = Rates({"body": 1.0, "head": 1.0}, {"body": 1.0, "head": 1.0}, {"body": log2_eps, "head": log2_eps}, {"body": -5, "head": -5})
    last, few = len(staged.stages) - 1, min(log2_eps, -6)
    for node, body, head in (
        (one_level(staged, given.log2_eps, 0, 1), log2_eps, log2_eps),
        (tree(staged, given.log2_eps, Shape((1, 1), (last,), joint=True)), log2_eps, log2_eps),
        (tree(staged, given.log2_eps, Shape((1, 1), (last,))), few, -5),
        (tree(staged, given.log2_eps, Shape((1, 1), (last - 1,))), few, few),  # body and head are tried together above the cut
        (one_level(staged, {"head": log2_eps}, 0, 1), None, -5),
        (one_level(staged, {"body": log2_eps}, 0, 1), log2_eps, None),
    ):
        found = aggregate([report(0, scalars=(1 << 14,) * node.scalars)], [node], given, factors(1.0), staged, GRID)
        for group, log2 in ((0, body), (2, head)):
            level = next((level for level, _ in node.levels() if any(group in size.groups for size in level.probe_sizes)), None)
            assert (level is None) == (log2 is None)
            if level is not None and log2 is not None:
                expected = given.expected(node if node.joint else level, staged)
                unit = next(each.log2_unit for each in staged.groups if each.id == group)
                assert list(steps_of(found, group).values()) == [pytest.approx(-(2.0 ** (log2 - unit)) / expected, abs=1)]


def test_a_part_of_a_kind_expects_the_share_of_its_signal_that_its_groups_are(staged: Manifest) -> None:
    """Half of the body's groups: by half the squared signal. Jointly all that is perturbed together."""
    apart = aggregate([report(0, scalars=(1 << 12, 0))], [root(staged, Shape((1, 1), (1,)))], GIVEN, factors(1.0), staged, GRID)
    assert steps_of(apart, 0)[START] == pytest.approx(-0.25 / 4 / (0.3 / 2**0.5) * 2**14, abs=1)
    jointly = aggregate([report(0, scalars=(1 << 12,))], [root(staged, Shape((1, 1), (1,), joint=True))], GIVEN, factors(1.0), staged, GRID)
    assert steps_of(jointly, 0)[START] == pytest.approx(-0.25 / 4 / 0.5 * 2**16, abs=1)
    assert steps_of(jointly, 1) == steps_of(jointly, 0)


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("p1", [1, 3])
def test_joint_probes_of_one_direction_on_each_output_are_the_terms_of_plain_mezo(p1: int, cut: int, staged: Manifest) -> None:
    scalars = [(301, -77, 5)[:p1], (-4000, 3, 1)[:p1]]
    reports = [report(device, scalars=each, examples=1 + device) for device, each in enumerate(scalars)]
    plain, joint = ([root(staged, shape, device) for device in range(2)] for shape in (Shape((p1,)), Shape((p1, 1), (cut,), joint=True)))
    expected = aggregate(reports, plain, GIVEN, factors(0.3), staged, GRID)
    assert aggregate(reports, joint, GIVEN, factors(0.3), staged, GRID) == expected
    assert len(expected) > 0


def test_groups_of_one_kind_and_unit_are_rounded_alike_in_whichever_part_and_others_apart(staged: Manifest) -> None:
    scalars = (1,) * 64
    terms = aggregate([report(0, scalars=scalars)], [root(staged, Shape((64, 1), (1,), joint=True))], GIVEN, factors(0.05), staged, GRID)
    one, other, head = (steps_of(terms, group) for group in range(3))
    assert one == other
    assert 0 < len(one) < 64
    assert one.keys() != head.keys()


def test_a_group_is_averaged_over_the_reports_that_perturbed_it_by_their_examples(staged: Manifest) -> None:
    """The first device tries all, the second the head alone; the third has no say in what the second did not touch."""
    nodes = [root(staged, Shape((1,)), 0), root(staged, Shape((1,)), 1, {"head": -6}), root(staged, Shape((1,)), 2)]
    reports = [
        report(0, scalars=(1 << 13,), examples=1),
        report(1, scalars=(1 << 13,), examples=6),
        report(2, scalars=(1 << 13,), examples=3),
    ]
    found = aggregate(reports, nodes, GIVEN, factors(1.0), staged, GRID)
    body, head = steps_of(found, 0), steps_of(found, 2)
    unit = -0.25 / 2 / 0.5 * 2**16  # of one direction of everything together
    assert (body[START], body[START + 2]) == (pytest.approx(unit * 2 * 1 / 4, abs=1), pytest.approx(unit * 2 * 3 / 4, abs=1))
    assert START + 1 not in body
    whole, alone = -0.5 / 2 / 0.5 * 2**12, -0.5 / 2 / 0.4 * 2**12
    wanted = [whole * 3 / 10, alone * 3 * 6 / 10, whole * 3 * 3 / 10]
    assert [head[START + device] for device in range(3)] == [pytest.approx(each, abs=1) for each in wanted]


MIXED = (Shape((2,)), Shape((2, 3), (2,)), Shape((2, 2), (1,)), Shape((2, 1, 2), (1, 2)), Shape((2, 2), (2,), joint=True))


def mixed(manifest: Manifest) -> tuple[list[Report], list[Node]]:
    nodes = [root(manifest, shape, device) for device, shape in enumerate(MIXED)]
    draw = np.random.default_rng(5)
    scalars = [tuple(draw.integers(-9000, 9000, node.scalars).tolist()) for node in nodes]
    return [report(device, scalars=each, examples=1 + device) for device, each in enumerate(scalars)], nodes


def test_the_order_of_reports_of_other_shapes_does_not_matter(staged: Manifest) -> None:
    reports, nodes = mixed(staged)
    found = [
        aggregate([reports[n] for n in order], [nodes[n] for n in order], GIVEN, factors(1.0), staged, GRID)
        for order in permutations(range(5))
    ]
    assert {group for term in found[0] for group in term.groups} == {0, 1, 2}
    assert all(each == found[0] for each in found)


def test_shapes_of_one_round_add_up_each_with_its_weight(staged: Manifest) -> None:
    """What a report alone gives, by its share of a group's examples and by how many more directions the round has."""
    reports, nodes = mixed(staged)
    together = aggregate(reports, nodes, GIVEN, factors(1.0), staged, GRID)
    counts = [{group: total for level, total in node.levels() for size in level.probe_sizes for group in size.groups} for node in nodes]
    for group in range(3):
        expected: dict[int, float] = {}
        for each, node, count in zip(reports, nodes, counts, strict=True):
            growth = sum(other[group] for other in counts) / count[group] * each.examples / sum(other.examples for other in reports)
            for seed, steps in steps_of(aggregate([each], [node], GIVEN, factors(1.0), staged, GRID), group).items():
                expected[seed] = expected.get(seed, 0) + steps * growth
        found = steps_of(together, group)
        for seed in expected.keys() | found.keys():
            assert found.get(seed, 0) == pytest.approx(expected.get(seed, 0), abs=20)  # rounded before it grew


def test_growth_is_bounded_group_by_group(staged: Manifest) -> None:
    most = aggregation.MOST_SUMMED
    made = root(staged, Shape((2, most), (2,)))
    found = aggregate([report(0, scalars=(1 << 12,) * made.scalars)], [made], GIVEN, factors(1.0), staged, GRID)
    assert sum(steps_of(found, 0).values()) == pytest.approx(2 * -0.25 / 4 / 0.3 * 2**14, abs=2)
    assert sum(steps_of(found, 2).values()) == pytest.approx(most * -0.5 / 4 / 0.4 * 2**12, rel=1e-3)


@pytest.mark.parametrize("joint", [False, True])
def test_the_expected_update_of_every_part_points_down_its_slope(joint: bool, staged: Manifest) -> None:
    generator = np.random.default_rng(0)
    units = {"w": -20, "x": -20, "v": -18}
    targets = {name: generator.normal(size=SIZE) / 4 for name in units}
    parameters = Parameters(
        staged.run_key, staged.groups, {name: snap(generator.normal(size=SIZE) / 4, unit) for name, unit in units.items()}
    )
    before = {name: values.copy() for name, values in parameters.tensors().items()}
    made = root(staged, Shape((64, 16), (1,), joint), log2_eps={"body": -6, "head": -6})
    losses = reference.probe(parameters, made, lambda now: sum(0.5 * float(((now[n] - targets[n]) ** 2).sum()) for n in targets))
    given = Rates({"body": 0.05, "head": 0.05}, {"body": 0.1, "head": 0.1}, {"body": -6, "head": -6}, {"body": -6, "head": -6})
    answer = dataclasses.replace(report(0), scalars=Grid(20, 2.0).integers(half_differences(losses)))
    parameters.add(aggregate([answer], [made], given, factors(1.0), staged, Grid(20, 2.0)))
    for name, least in (("w", 0.6 if joint else 0.8), ("x", 0.9), ("v", 0.9)):
        step, downhill = parameters.tensor(name) - before[name], targets[name] - before[name]
        assert step @ downhill / np.linalg.norm(step) / np.linalg.norm(downhill) > least, name


# --- downhill ---


def quadratic(manifest: Manifest) -> tuple[Parameters, dict[str, np.ndarray]]:
    """Parameters and the targets of 0.5 * sum (theta - target)**2."""
    generator = np.random.default_rng(0)
    tensors = {"w": snap(generator.normal(size=SIZE) / 4, -20), "v": snap(generator.normal(size=SIZE) / 4, -18)}
    return Parameters(manifest.run_key, manifest.groups, tensors), {name: generator.normal(size=SIZE) / 4 for name in tensors}


def one_round(parameters: Parameters, targets: dict[str, np.ndarray], manifest: Manifest, number: int, count: int) -> tuple:
    node = one_level(manifest, {"body": -6, "head": -6}, number * 10**6, count)
    losses = reference.probe(parameters, node, lambda now: sum(0.5 * float(((now[n] - targets[n]) ** 2).sum()) for n in targets))
    half = half_differences(losses)
    each = float(np.sqrt(np.mean(half**2) / 2))  # of both kinds together it is what was measured
    given = Rates({"body": each, "head": each}, {"body": 0.1, "head": 0.1}, {"body": -6, "head": -6}, {"body": -6, "head": -6})
    answer = dataclasses.replace(report(0, number), scalars=Grid(20, 2.0).integers(half))
    return aggregate([answer], [node], given, factors(1.0), manifest, Grid(20, 2.0))


def test_the_expected_update_points_down_the_slope(manifest: Manifest) -> None:
    parameters, targets = quadratic(manifest)
    before = {name: values.copy() for name, values in parameters.tensors().items()}
    parameters.add(one_round(parameters, targets, manifest, 1, 1500))
    for name, values in parameters.tensors().items():
        step, downhill = values - before[name], targets[name] - before[name]
        assert step @ downhill / np.linalg.norm(step) / np.linalg.norm(downhill) > 0.95


def test_rounds_of_few_directions_lower_a_quadratic_loss(manifest: Manifest) -> None:
    parameters, targets = quadratic(manifest)

    def distance() -> float:
        return float(sum(((values - targets[name]) ** 2).sum() for name, values in parameters.tensors().items()))

    first = distance()
    for number in range(1, 101):
        parameters.add(one_round(parameters, targets, manifest, number, 8))
    assert distance() < 0.3 * first


def test_one_direction_moves_every_group_along_its_own_signs(manifest: Manifest) -> None:
    parameters, targets = quadratic(manifest)
    before = {name: values.copy() for name, values in parameters.tensors().items()}
    parameters.add(one_round(parameters, targets, manifest, 1, 1))
    for group, name in ((0, "w"), (1, "v")):
        expected = signs(manifest.run_key, group, np.array([10**6], np.uint64), 0, SIZE)[0]
        moved = parameters.tensor(name) - before[name]
        assert np.array_equal(np.abs(moved), np.full(SIZE, abs(moved[0])))
        assert np.array_equal(np.sign(moved), np.sign(moved[0]) * expected[0] * expected)


@pytest.mark.parametrize("places", [(0,), (2,), (0, 1), (0, 2)])
@pytest.mark.parametrize("with_head", [False, True])
def test_a_report_moves_the_parameters_as_far_in_all_however_few_groups_it_tries(
    bert_bundle: Bundle, places: tuple[int, ...], with_head: bool
) -> None:
    """So a fleet of devices that try some groups each walks as one of devices that try all (inverse-variance weights)."""
    manifest, given = bert_bundle.manifest, Rates.of(Probe(), Rate(), bert_bundle.manifest)
    body = [group for group in manifest.groups if group.kind == "body"]
    head = [group for group in manifest.groups if group.kind == "head"] if with_head else []

    def moved(groups: list[Group]) -> tuple[float, ...]:
        """Of the body in all, and of the head."""
        root = tree(manifest, given.log2_eps, Shape((1,), groups=tuple(group.id for group in (*groups, *head))))
        said = report(0, scalars=tuple(GRID.integers(np.array([given.expected(root, manifest)]))))
        terms = aggregate([said], [root], given, factors(1.0), manifest, GRID)
        steps = {group: abs(float(term.steps[0])) for term in terms for group in term.groups}
        return tuple(math.sqrt(sum(each.size * steps[each.id] ** 2 for each in kind)) for kind in (groups, head))

    assert moved([body[place] for place in places]) == pytest.approx(moved(body), rel=0.02)
