"""Checkpoints hold values little-endian, are written over a bundle's parameters, and say what replaying them costs."""

import struct

import numpy as np
import pytest
from hypothesis import given
from reference import ABSENT, LAYOUT, LIMIT, PROPERTY, added, flat_group, made, start, term_lists, units

from zo.checkpoint import Checkpoint, GroupValues, signs, values_of, write
from zo.lattice import RangeError
from zo.terms import Term

NOTHING = Checkpoint(b"g" * 32, 3, b"h" * 32, b"d" * 32)
ONE = np.array([1])
FOUR = flat_group(4, 0)


def checkpoint(terms: tuple[Term, ...] = (), values: tuple[GroupValues, ...] = ()) -> Checkpoint:
    return Checkpoint(NOTHING.genesis, NOTHING.entry, NOTHING.head, NOTHING.digest, terms, values)


def test_values_are_little_endian_float32_by_group() -> None:
    parameters = made([flat_group(2, 0, group=8, name="x"), flat_group(1, 1, group=5, name="y")], {8: [1, -2], 5: [3]})
    found = values_of(parameters, {8, 5})
    assert found == (GroupValues(5, bytes.fromhex("0000c040")), GroupValues(8, bytes.fromhex("0000803f 000000c0")))
    assert values_of(parameters, set()) == ()


def test_values_are_copied() -> None:
    parameters = made([FOUR])
    before = values_of(parameters, {0})
    parameters.add([Term((0,), 0, ONE)])
    assert values_of(parameters, {0}) != before


@PROPERTY
@given(term_lists(), term_lists())
def test_values_take_the_place_of_some_groups_and_terms_are_added_to_the_others(first: list[Term], then: list[Term]) -> None:
    source, target, wanted = made(), made(), made()
    source.add(first)
    terms = tuple(Term(tuple(g for g in term.groups if g != 3), term.first_seed, term.steps) for term in then)
    write(checkpoint(terms, values_of(source, {3})), target)
    wanted.add(terms)
    assert target.group_digest(3) == source.group_digest(3)
    assert [target.group_digest(g) for g in (0, 9)] == [wanted.group_digest(g) for g in (0, 9)]


def test_terms_on_a_group_with_values_are_added_to_those() -> None:
    parameters, values = made([FOUR]), struct.pack("<4f", 1, -2, 3, -4)
    term = Term((0,), 5, np.array([10, -3]))
    write(checkpoint((term,), (GroupValues(0, values),)), parameters)
    assert units(parameters, FOUR) == added(parameters.run_key, FOUR, [1, -2, 3, -4], [term])


def test_groups_that_are_not_held_are_passed_over() -> None:
    part, whole = made(LAYOUT[:1]), made()
    whole.add([Term((0, 3, 9), 1, ONE)])
    write(checkpoint((Term((ABSENT,), 1, ONE),), (*values_of(whole, {0, 3}), GroupValues(ABSENT, b"?"))), part)
    assert part.group_digest(3) == whole.group_digest(3)


@pytest.mark.parametrize("length", [0, 4, 15, 17, 12, 20, 32])
def test_values_of_another_length_are_refused(length: int) -> None:
    parameters = made([FOUR])
    with pytest.raises(ValueError, match="values of group 0"):
        write(checkpoint(values=(GroupValues(0, bytes(length)),)), parameters)
    assert units(parameters, FOUR) == start([FOUR])[0]


@pytest.mark.parametrize("bad", [0.5, -0.0, float("nan"), float("inf"), LIMIT + 2.0])
def test_values_off_the_lattice_are_refused(bad: float) -> None:
    parameters = made([FOUR])
    with pytest.raises(RangeError, match="'flat'"):
        write(checkpoint(values=(GroupValues(0, struct.pack("<4f", 1, 2, bad, 4)),)), parameters)
    assert units(parameters, FOUR) == start([FOUR])[0]


def test_terms_that_lead_off_the_lattice_are_refused() -> None:
    with pytest.raises(RangeError, match="'a'"):
        write(checkpoint((Term((3,), 0, np.array([LIMIT + 2**20])),)), made())


@PROPERTY
@given(term_lists())
def test_the_cost_is_one_sign_for_every_value_and_step(terms: list[Term]) -> None:
    sizes = {group.id: group.size for group in LAYOUT}
    wanted = sum(1 for term in terms for group in term.groups for _ in term.steps for _ in range(sizes.get(group, 0)))
    assert signs(tuple(terms), sizes) == wanted
