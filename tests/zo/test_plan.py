"""A node's terms perturb each group by its own E along the direction's seed; a shape says what trees there can be."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import LAYOUT, PROPERTY, RUN_KEY, direction, made, start, units

from zo.estimators import Grid
from zo.plan import MOST_DIRECTIONS, Node, ProbeSize, Shape, WorkPlan
from zo.terms import Term, negated

NODE = Node(stage=0, first_seed=40, count=3, probe_sizes=(ProbeSize((3, 9), 5), ProbeSize((0,), 0)))


def test_each_probe_size_is_one_term_on_its_groups_and_the_seed_of_the_direction() -> None:
    assert NODE.terms(2, 1) == (Term((3, 9), 42, np.array([32])), Term((0,), 42, np.array([1])))
    assert NODE.terms(0, -1) == negated(NODE.terms(0, 1))


@pytest.mark.parametrize(("sign", "factor"), [(1, 1), (-1, -1), (2, 2), (-2, -2)])
def test_values_move_by_e_units_along_the_direction(sign: int, factor: int) -> None:
    parameters = made()
    parameters.add(NODE.terms(1, sign))
    for group, e in zip(LAYOUT, (32, 1, 32), strict=True):
        z = direction(RUN_KEY, group.id, 41, group.size)
        assert units(parameters, group) == [value + factor * e * s for value, s in zip(start(LAYOUT)[group.id], z, strict=True)]


@PROPERTY
@given(st.integers(0, 20), st.integers(0, 2**64 - 3), st.integers(0, 2))
def test_plus_then_twice_minus_then_plus_is_a_probe_that_restores(log2_e: int, first_seed: int, which: int) -> None:
    node = Node(0, first_seed, 3, (ProbeSize((3, 0, 9), log2_e),))
    parameters = made()
    before = parameters.digest()
    parameters.add(node.terms(which, 1))
    plus = parameters.digest()
    parameters.add(node.terms(which, -2))
    minus = parameters.digest()
    parameters.add(node.terms(which, 1))
    assert parameters.digest() == before
    assert len({before, plus, minus}) == 3


def test_moving_on_to_the_next_direction_is_one_addition() -> None:
    fused, apart = made(), made()
    apart.add(NODE.terms(1, 1))
    fused.add(NODE.terms(0, -1))
    fused.add([*NODE.terms(0, 1), *NODE.terms(1, 1)])
    assert fused.digest() == apart.digest()


def test_a_seed_beyond_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        Node(0, 2**64 - 1, 2, NODE.probe_sizes).terms(1, 1)


def test_equal_plans_are_equal_and_other_ones_are_not() -> None:
    def plan(count: int, log2_levels: int = 14, number: int = 3) -> WorkPlan:
        child = Node(1, 90, count, (ProbeSize((9,), 4),))
        return WorkPlan(7, 12, Node(0, 40, 3, NODE.probe_sizes, child), 8, True, False, Grid(log2_levels, 2.0), number)

    assert plan(5) == plan(5) != plan(6)
    assert plan(5) != plan(5, 15)
    assert plan(5) != plan(5, number=4)
    assert hash(plan(5)) == hash(plan(5))


# --- trees and their shapes ---


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """One to four parts, of up to five directions each."""
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    cuts = draw(st.lists(st.integers(1, 2**32 - 1), unique=True, min_size=len(counts) - 1, max_size=len(counts) - 1))
    joint = len(counts) == 2 and draw(st.booleans())
    return Shape(tuple(counts), tuple(sorted(cuts)), joint, not joint and draw(st.booleans()))


def tree(shape: Shape) -> Node:
    node = None
    for stage, count in reversed(list(zip((0, *shape.cuts), shape.counts, strict=True))):
        node = Node(stage, 40, count, NODE.probe_sizes, node, shape.joint and node is not None)
    assert node is not None
    return replace(node, clean=shape.clean)


@PROPERTY
@given(shapes())
def test_a_tree_has_the_shape_that_it_was_made_from(shape: Shape) -> None:
    root = tree(shape)
    assert root.shape == shape
    assert root.scalars == shape.scalars
    assert [node.count for node, _ in root.levels()] == list(shape.counts)
    assert [total for _, total in root.levels()] == [int(np.prod(shape.counts[: level + 1])) for level in range(len(shape.counts))]


@pytest.mark.parametrize(
    ("shape", "scalars"),
    [
        (Shape((8,)), 8),
        (Shape((1, 256), (2,)), 257),
        (Shape((8, 3), (2,)), 8 + 24),
        (Shape((8, 3), (2,), joint=True), 24),
        (Shape((2, 3, 4), (1, 2)), 2 + 6 + 24),
        (Shape((2, 3, 4), (1, 2), clean=True), 2 + 6 + 24),
    ],
)
def test_a_report_has_a_scalar_for_every_direction_of_every_level_and_jointly_of_the_last_alone(shape: Shape, scalars: int) -> None:
    assert tree(shape).scalars == shape.scalars == scalars


@pytest.mark.parametrize(
    ("counts", "cuts", "joint", "said"),
    [
        ((), (), False, r"counts = \[\] must have one number more than cuts = \[\]"),
        ((2,), (1,), False, r"counts = \[2\] must have one number more than cuts = \[1\]"),
        ((2, 3), (), False, r"counts = \[2, 3\] must have one number more than cuts = \[\]"),
        ((0,), (), False, r"counts = \[0\] must be at least 1 each"),
        ((3, 0), (1,), False, r"counts = \[3, 0\] must be at least 1 each"),
        ((2, -1), (1,), False, r"counts = \[2, -1\] must be at least 1 each"),
        ((MOST_DIRECTIONS + 1,), (), False, f"at most {MOST_DIRECTIONS} multiplied"),
        ((64, 65), (1,), False, f"at most {MOST_DIRECTIONS} multiplied"),
        ((1, 1, 1), (2, 1), False, r"cuts = \[2, 1\] must grow"),
        ((1, 1, 1), (2, 2), False, r"cuts = \[2, 2\] must grow"),
        ((2,), (), True, r"joint probes need one cut, not cuts = \[\]"),
        ((1, 2, 3), (1, 2), True, r"joint probes need one cut, not cuts = \[1, 2\]"),
    ],
)
def test_shapes_that_cannot_be_are_refused_by_name(counts: tuple[int, ...], cuts: tuple[int, ...], joint: bool, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Shape(counts, cuts, joint)


def test_a_form_is_clean_or_joint() -> None:
    with pytest.raises(ValueError, match="clean or joint, not both"):
        Shape((2, 3), (1,), joint=True, clean=True)


def test_the_largest_shapes_are_accepted() -> None:
    assert Shape((MOST_DIRECTIONS,)).scalars == MOST_DIRECTIONS
    assert Shape((64, 64), (7,), joint=True).scalars == MOST_DIRECTIONS
