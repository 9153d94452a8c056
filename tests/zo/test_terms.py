"""Terms say what they say: validation, negation, sums by seed and stretches of consecutive seeds."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY, cancelling_terms, term_lists

from zo.terms import Term, collect, consecutive, negated, sum_by_seed


def sums(terms: list[Term] | tuple[Term, ...], group: int) -> dict[int, int]:
    """Nonzero summed steps by seed, in Python integers."""
    total: Counter[int] = Counter()
    for term in terms:
        if group in term.groups:
            for i, step in enumerate(term.steps.tolist()):
                total[term.first_seed + i] += step
    return {seed: step for seed, step in total.items() if step}


@pytest.mark.parametrize("steps", [[0.5], np.ones(3), [[1]], np.int64(1), np.zeros((0, 2), np.int64), ["1"]])
def test_steps_that_are_not_one_row_of_integers_are_refused(steps: object) -> None:
    with pytest.raises(ValueError, match="row of integers"):
        Term((0,), 0, steps)  # type: ignore[arg-type]


def test_a_repeated_group_is_refused() -> None:
    with pytest.raises(ValueError, match="repeat"):
        Term((1, 2, 1), 0, np.array([1]))


@pytest.mark.parametrize(("first_seed", "count"), [(-1, 1), (2**64, 1), (2**64, 0), (2**64 - 1, 2), (2**64 - 4, 5)])
def test_seeds_beyond_64_bits_are_refused(first_seed: int, count: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        Term((0,), first_seed, np.ones(count, np.int64))


@pytest.mark.parametrize("steps", [[2**63], [2**64 - 1], np.array([1, 2**63], np.uint64)])
def test_steps_that_do_not_fit_int64_are_refused_not_wrapped(steps: object) -> None:
    with pytest.raises(ValueError, match="steps"):
        Term((0,), 0, steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("group", [-1, 2**32])
def test_group_ids_beyond_32_bits_are_refused(group: int) -> None:
    with pytest.raises(ValueError, match="group"):
        Term((0, group), 0, np.array([1]))


def test_the_last_seed_can_be_used() -> None:
    assert Term((0,), 2**64 - 3, np.array([1, 2, 3])).seeds.tolist() == [2**64 - 3, 2**64 - 2, 2**64 - 1]


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint32, np.int64])
def test_any_integer_type_becomes_int64(kind: type) -> None:
    steps = np.array([1, 2, 100], kind)
    term = Term((0,), 7, steps)
    assert term.steps.dtype == np.int64
    assert term == Term((0,), 7, np.array([1, 2, 100]))
    assert (-term).steps.tolist() == [-1, -2, -100]


def test_a_term_does_not_follow_later_changes_of_the_array_it_was_made_from() -> None:
    steps = np.array([1, 2, 3])
    term = Term((0,), 0, steps)
    steps[0] = 9
    assert term.steps.tolist() == [1, 2, 3]


def test_terms_differ_in_each_field() -> None:
    term = Term((0, 1), 5, np.array([1, 2]))
    assert term == Term((0, 1), 5, np.array([1, 2]))
    for other in (Term((0,), 5, term.steps), Term((0, 1), 6, term.steps), Term((0, 1), 5, term.steps[:1]), Term((0, 1), 5, -term.steps)):
        assert term != other
    assert term != "term"


@PROPERTY
@given(term_lists())
def test_negation_negates_every_sum_and_twice_restores_the_terms(terms: list[Term]) -> None:
    assert negated(negated(terms)) == tuple(terms)
    for group in (0, 3, 9):
        assert sums(negated(terms), group) == {seed: -step for seed, step in sums(terms, group).items()}
        assert sums([*terms, *negated(terms)], group) == {}


@PROPERTY
@given(cancelling_terms())
def test_collecting_sums_the_steps_of_a_group_by_seed_sorted_without_zeros(terms: list[Term]) -> None:
    for group in (0, 3, 9):
        seeds, steps = collect(terms, group)
        assert seeds.dtype == np.uint64
        assert steps.dtype == np.int64
        assert seeds.tolist() == sorted(seeds.tolist())
        assert dict(zip(seeds.tolist(), steps.tolist(), strict=True)) == sums(terms, group)


def test_nothing_is_collected_for_a_group_no_term_names() -> None:
    seeds, steps = collect([Term((1,), 0, np.array([1]))], 0)
    assert (seeds.size, steps.size) == (0, 0)
    assert (seeds.dtype, steps.dtype) == (np.uint64, np.int64)


def test_sums_of_steps_that_no_float_holds_are_exact() -> None:
    seeds, steps = sum_by_seed(np.array([1, 1, 1], np.uint64), np.array([2**61, 1, -(2**61)]))
    assert (seeds.tolist(), steps.tolist()) == ([1], [1])


@PROPERTY
@given(st.dictionaries(st.one_of(st.integers(0, 12), st.integers(2**64 - 6, 2**64 - 1)), st.integers(-5, 5).filter(bool)))
def test_consecutive_makes_the_fewest_terms_that_say_the_same(wanted: dict[int, int]) -> None:
    seeds = np.array(sorted(wanted), np.uint64)
    terms = consecutive((4, 2), seeds, np.array([wanted[seed] for seed in sorted(wanted)], np.int64))
    assert all(term.groups == (4, 2) for term in terms)
    assert sums(terms, 4) == wanted
    assert len(terms) == sum(seed - 1 not in wanted for seed in wanted)
