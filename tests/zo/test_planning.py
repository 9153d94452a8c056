"""From a shape to the tree that a device walks: parts, probe sizes, seeds of their own, and what has to be kept."""

import itertools

import pytest
from conftest import Bundles
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY

from zo import ranks
from zo.bundle import Bundle
from zo.errors import ConfigError
from zo.plan import Node, ProbeSize, Shape
from zo.planning import groups_of_its_size, kept_bytes, lowest_stage, one_level, seeded, tree, within
from zo.seeds import ALONE, MOST_DEVICES, SEEDS_PER_ROUND

SIZES = {"body": -6, "head": -3}


def groups(node: Node) -> list[int]:
    return sorted(group for size in node.probe_sizes for group in size.groups)


# --- parts ---


def test_a_tree_tries_the_groups_of_its_shape_alone_from_the_lowest_stage_that_holds_one(bundles: Bundles) -> None:
    manifest = bundles("bert", stages=3).manifest
    top = manifest.stages[2].groups
    body, head = (node for node, _ in tree(manifest, SIZES, Shape((2, 3), (3,), groups=(*top, *manifest.stages[3].groups))).levels())
    assert (body.stage, groups(body)) == (2, list(top))
    assert (head.stage, groups(head)) == (3, list(manifest.stages[3].groups))
    assert lowest_stage(manifest, SIZES, top) == 2
    with pytest.raises(ConfigError, match=r"groups = \[0, 99\]: this bundle has no group 99"):
        tree(manifest, SIZES, Shape((2,), groups=(0, 99)))
    with pytest.raises(ConfigError, match="nothing is trained in stages 3 to 3"):
        tree(manifest, SIZES, Shape((2, 3), (3,), groups=top))


def test_a_tree_of_a_rank_tries_the_slices_within_it_with_larger_probes_the_fewer_they_are(bundles: Bundles) -> None:
    manifest = bundles("bert", ranks=(1, 2, 4)).manifest
    whole = {size.groups: size.log2_e for size in tree(manifest, SIZES, Shape((2,))).probe_sizes}
    for rank, grown in ((1, 1), (2, 1), (4, 0), (0, 0)):
        made = tree(manifest, SIZES, Shape((2,), rank=rank))
        assert made.rank == rank
        assert set(groups(made)) == ranks.prefix(manifest, rank)
        assert {size.log2_e for size in made.probe_sizes} == {whole[(9,)], next(iter(whole.values())) + grown}
    chosen = tree(manifest, SIZES, Shape((2,), groups=(0, 1, 2), rank=2))
    assert sorted(groups(chosen)) == [0, 1]
    with pytest.raises(ConfigError, match="no adapters of rank 3"):
        tree(manifest, SIZES, Shape((2,), rank=3))


def test_a_kinds_values_are_those_of_so_many_groups_of_a_size(bundles: Bundles) -> None:
    assert groups_of_its_size(bundles("bert").manifest.groups) == {0: 3.0, 1: 3.0, 2: 3.0, 3: 1.0}
    assert groups_of_its_size(bundles("bert", ranks=(1, 2, 4)).manifest.groups) == {
        0: 12,
        1: 12,
        2: 6,
        3: 12,
        4: 12,
        5: 6,
        6: 12,
        7: 12,
        8: 6,
        9: 1,
    }


def test_parts_that_would_try_nothing_are_left_out_with_their_directions_and_those_above_keep_theirs(bundles: Bundles) -> None:
    manifest = bundles("bert", stages=3).manifest
    low, middle, top, head = (stage.groups for stage in manifest.stages)
    whole = Shape((2, 3, 4), (1, 3))
    every = tuple(group.id for group in manifest.groups)
    for among, counts, cuts in [
        (every, (2, 3, 4), (1, 3)),
        ((*low, *head), (2, 12), (3,)),
        ((*low, *top), (2, 3), (1,)),
        ((*middle, *head), (6, 4), (3,)),
        (head, (24,), ()),
        (low, (2,), ()),
    ]:
        shape = within(manifest, SIZES, whole, among)
        assert (shape.counts, shape.cuts) == (counts, cuts)
        assert shape.groups == (() if among == every else tuple(sorted(among)))
        tried = sorted(group for node, _ in tree(manifest, SIZES, shape).levels() for group in groups(node))
        assert tried == sorted(among)
    assert not within(manifest, SIZES, Shape((2, 3), (3,), joint=True), low).joint


def test_every_part_perturbs_the_groups_of_its_stages_and_no_others(bundles: Bundles) -> None:
    manifest = bundles("bert", stages=3).manifest
    for shape in (Shape((2,)), Shape((2, 3), (1,)), Shape((2, 3), (3,)), Shape((2, 3, 4), (1, 3)), Shape((1, 2, 3, 4), (1, 2, 3))):
        levels = [node for node, _ in tree(manifest, SIZES, shape).levels()]
        assert [node.stage for node in levels] == [0, *shape.cuts]
        assert [node.count for node in levels] == list(shape.counts)
        bounds = (0, *shape.cuts, len(manifest.stages))
        for node, (start, stop) in zip(levels, itertools.pairwise(bounds), strict=True):
            assert groups(node) == sorted(group for stage in manifest.stages[start:stop] for group in stage.groups)
        eps = {
            group: size.log2_e + manifest.groups[group].log2_unit for node in levels for size in node.probe_sizes for group in size.groups
        }
        assert eps == {group.id: SIZES[group.kind] for group in manifest.groups}


def test_only_the_lowest_part_of_a_joint_tree_says_so(bert_bundle: Bundle) -> None:
    assert [node.joint for node, _ in tree(bert_bundle.manifest, SIZES, Shape((2, 3), (1,), joint=True)).levels()] == [True, False]
    assert [node.joint for node, _ in tree(bert_bundle.manifest, SIZES, Shape((2, 3), (1,))).levels()] == [False, False]


@pytest.mark.parametrize("shape", [Shape((2,), clean=True), Shape((2, 3, 4), (1, 2), clean=True)])
def test_the_lowest_part_of_a_clean_tree_says_so(shape: Shape, bert_bundle: Bundle) -> None:
    root = tree(bert_bundle.manifest, SIZES, shape)
    assert [node.clean for node, _ in root.levels()] == [True] + [False] * len(shape.cuts)
    assert root.shape == seeded(root, 9, 4, 6).shape == shape


def test_the_lowest_part_begins_where_training_does(bundles: Bundles) -> None:
    manifest = bundles("bert", top_blocks=1).manifest
    lowest = lowest_stage(manifest, SIZES)
    assert lowest > 0
    assert tree(manifest, SIZES, Shape((2, 3), (lowest + 1,))).stage == lowest
    with pytest.raises(ConfigError, match="can be cut before stages"):
        tree(manifest, SIZES, Shape((2, 3), (lowest,)))


def test_plain_mezo_is_a_tree_of_one_level(bert_bundle: Bundle) -> None:
    manifest = bert_bundle.manifest
    assert one_level(manifest, SIZES, 77, 5) == Node(0, 77, 5, tree(manifest, SIZES, Shape((5,))).probe_sizes)


@pytest.mark.parametrize("cut", [0, 3, 7, 2**32 - 1])
def test_a_cut_outside_the_stages_is_refused_by_name(cut: int, bert_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=rf"cuts = \[{cut}\]: this bundle can be cut before stages 1 to 2"):
        tree(bert_bundle.manifest, SIZES, Shape((2, 3), (cut,)))


def test_a_part_that_trains_nothing_is_refused_by_name(llama_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"cuts = \[1, 2\]: nothing is trained in stages 2 to 2"):
        tree(llama_bundle.manifest, SIZES, Shape((1, 2, 3), (1, 2)))
    with pytest.raises(ConfigError, match=r"cuts = \[2\]: nothing is trained in stages 2 to 2"):
        tree(llama_bundle.manifest, SIZES, Shape((1, 2), (2,)))


# --- seeds ---

ROOT = Node(0, 0, 3, (ProbeSize((0,), 4),), Node(1, 0, 5, (ProbeSize((1,), 4),), Node(2, 0, 2, (ProbeSize((2,), 4),))))
ROUNDS, DEVICES, KEYS = st.integers(1, 2**29), st.integers(0, MOST_DEVICES - 1), st.integers(0, 2**32 - 1)


def stretches(root: Node) -> list[range]:
    return [range(node.first_seed, node.first_seed + total) for node, total in root.levels()]


@PROPERTY
@given(KEYS, ROUNDS, DEVICES, ROUNDS, DEVICES)
def test_no_two_devices_or_rounds_try_a_direction_of_a_level_twice(
    key: int, round_a: int, device_a: int, round_b: int, device_b: int
) -> None:
    one = seeded(ROOT, key, round_a, device_a)
    assert one.shape == ROOT.shape
    for other in (seeded(ROOT, key, round_b, device_b), seeded(ROOT, key, round_a, device_b)):
        if other != one:
            assert all(max(a.start, b.start) >= min(a.stop, b.stop) for a, b in zip(stretches(one), stretches(other), strict=True))
    assert all(round_a * SEEDS_PER_ROUND <= each.start < each.stop <= (round_a + 1) * SEEDS_PER_ROUND for each in stretches(one))


def test_seeds_of_neighbours_lie_side_by_side_on_every_level() -> None:
    one, other = stretches(seeded(ROOT, 9, 4, 6)), stretches(seeded(ROOT, 9, 4, 7))
    assert [each.stop for each in one] == [each.start for each in other]
    assert [len(each) for each in one] == [3, 15, 30]


@PROPERTY
@given(KEYS, ROUNDS, st.integers(0, 1000), st.integers(30, 300))
def test_with_a_pool_the_seeds_of_every_level_are_of_it_and_devices_share_none_until_they_must(
    key: int, number: int, turn: int, pool: int
) -> None:
    for level, total in enumerate((3, 15, 30)):
        slots = pool // total
        dealt = [stretches(seeded(ROOT, key, number, turn * slots + each, pool))[level] for each in range(slots)]
        assert sorted(each.start for each in dealt) == list(range(0, slots * total, total))
        assert all(each.stop <= pool for each in dealt)


def test_a_device_alone_has_its_seeds_where_no_fleet_has(bert_bundle: Bundle) -> None:
    fleet, alone = seeded(ROOT, 9, 4, 6), seeded(ROOT, 9, 4, 6, offset=ALONE)
    assert [each.start - ALONE for each in stretches(alone)] == [each.start for each in stretches(fleet)]


@pytest.mark.parametrize("pool", [0, 64])
def test_a_level_of_its_own_has_the_seeds_of_plain_mezo(pool: int) -> None:
    """So that the joint form with one direction on each output is plain MeZO."""
    plain, split = Node(0, 0, 4, ROOT.probe_sizes), Node(0, 0, 4, ROOT.probe_sizes, Node(1, 0, 1, ROOT.child.probe_sizes), joint=True)
    for device in range(5):
        (expected,) = stretches(seeded(plain, 9, 4, device, pool))
        assert stretches(seeded(split, 9, 4, device, pool)) == [expected, expected]


# --- what is kept ---


def test_kept_outputs_are_counted_at_plus_and_minus_and_again_on_all_outputs_below(bundles: Bundles) -> None:
    bert, llama = bundles("bert").manifest, bundles("llama", "full").manifest
    assert (bert.width, bert.task.max_tokens, llama.width, llama.task.max_tokens) == (32, 32, 32, 16)
    token = 4 * 32
    assert kept_bytes(bert, Shape((9,)), 5) == 0
    assert kept_bytes(bert, Shape((9, 99), (1,)), 5) == 2 * 5 * 32 * token
    assert kept_bytes(bert, Shape((9, 99), (1,), joint=True), 5) == 2 * 5 * 32 * token
    assert kept_bytes(bert, Shape((9, 99), (2,)), 5) == 2 * 5 * token  # one state an example goes into the head
    assert kept_bytes(bert, Shape((9, 9, 9), (1, 2)), 5) == 2 * 5 * 32 * token + 4 * 5 * token
    assert kept_bytes(bert, Shape((9, 9, 9), (1, 2), clean=True), 5) == 5 * 32 * token + 5 * token  # once, unperturbed
    assert kept_bytes(llama, Shape((9, 99), (2,)), 5) == 2 * 5 * 16 * token  # all of them are predicted from
    assert kept_bytes(llama, Shape((9, 9, 9), (1, 2)), 5) == (2 + 4) * 5 * 16 * token


def test_few_groups_get_larger_probes_but_none_beyond_the_lattice(bert_bundle: Bundle) -> None:
    manifest = bert_bundle.manifest
    body = [group for group in manifest.groups if group.kind == "body"]
    unit = min(group.log2_unit for group in body)
    for log2_eps, further in ((-6, 1), (unit + 22, 1), (unit + 23, 0)):  # the square root of three blocks, rounded up
        root = tree(manifest, {"body": log2_eps, "head": -6}, Shape((1,), groups=(body[0].id,)))
        assert [size.log2_e + body[0].log2_unit for size in root.probe_sizes] == [log2_eps + further]
