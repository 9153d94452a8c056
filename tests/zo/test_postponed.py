"""What is postponed is seen by every reader, whatever is done in between, and gives the bits that `add` gives."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from passing import Passing
from reference import (
    LAYOUT,
    LIMIT,
    PROPERTY,
    RUN_KEY,
    cancelling_terms,
    direction,
    flat_group,
    made,
    one,
    seeds_that_agree,
    start,
    term_lists,
)

from zo.group import Group
from zo.lattice import RangeError
from zo.parameters import MOST_POSTPONED, Parameters
from zo.terms import STEP_LIMIT, Term, negated

GROUPS, NAMES = [group.id for group in LAYOUT], [tensor.name for group in LAYOUT for tensor in group.tensors]


def raw(parameters: Parameters) -> dict[str, np.ndarray]:
    """Views, to look at what has been done so far: reading them settles nothing."""
    return parameters.tensors()


def contents(views: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in views.items()}


def passing(groups: Sequence[Group] = LAYOUT) -> Passing:
    return Passing(RUN_KEY, groups, made(groups).tensors())


def tried(change: Callable[[], None]) -> bool:
    """Whether it was allowed."""
    try:
        change()
    except RangeError:
        return False
    return True


# --- any interleaving ---


def branched(parameters: Parameters, terms_p: list[list[Term]]) -> dict[str, bytes]:
    out = {tensor.name: np.zeros((len(terms_p), *tensor.shape), np.float32) for group in LAYOUT for tensor in group.tensors}
    parameters.branches(terms_p, out)
    return contents(out)


READERS: dict[str, Callable[[Parameters], object]] = {
    "flat": lambda p: [p.flat(group).tobytes() for group in reversed(GROUPS)],
    "tensor": lambda p: [p.tensor(name).tobytes() for name in reversed(NAMES)],
    "tensors": lambda p: contents(p.tensors()),
    "copy": lambda p: p.copy().digest(),
    "digest": Parameters.digest,
    "group_digest": lambda p: [p.group_digest(group) for group in reversed(GROUPS)],
    "branches": lambda p: branched(p, [[one(3, 0, 9)], [], [one(-(2**18), 3)]]),
}
LARGE = st.builds(one, st.integers(-LIMIT, LIMIT), st.sampled_from(GROUPS), seed=st.sampled_from((0, 1, 2**53 + 1)))
TERMS = st.one_of(term_lists(), term_lists(largest=2**22), cancelling_terms(), st.lists(LARGE, max_size=3))
ACTIONS = st.one_of(
    st.tuples(st.just("postpone"), TERMS),
    st.tuples(st.sampled_from(("add", "postpone")), TERMS),
    st.tuples(st.just("load"), st.tuples(st.sampled_from(LAYOUT), st.integers(0, 9))),
    st.tuples(st.sampled_from(("settle", *READERS)), st.none()),
)


@PROPERTY
@given(st.lists(ACTIONS, min_size=1, max_size=10), st.sampled_from((2**20, 2**24)))
def test_any_interleaving_gives_what_add_alone_gives(actions: list[tuple[str, object]], bound: int) -> None:
    values = start(LAYOUT, bound=bound)  # near the limit, some changes are refused
    plain, lazy = made(LAYOUT, values), made(LAYOUT, values)
    for what, operand in actions:
        if what in ("add", "postpone"):
            assert tried(lambda: getattr(lazy, what)(operand)) == tried(lambda: plain.add(operand))  # noqa: B023
        elif what == "load":
            group, seed = operand
            loaded = np.ldexp(np.array(start(LAYOUT, seed)[group.id], np.float32), group.log2_unit)
            plain.load(group.id, loaded)
            lazy.load(group.id, loaded)
        elif what == "settle":
            lazy.settle()
        elif bound == 2**20 or what != "branches":
            assert READERS[what](lazy) == READERS[what](plain), what
    assert lazy.digest() == plain.digest()


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_sees_what_was_postponed(reader: str) -> None:
    terms = [one(5, 0, 3, 9), one(-(2**17), 9, seed=4)]
    plain, lazy, before = made(), made(), READERS[reader](made())
    plain.add(terms)
    lazy.postpone(terms)
    assert READERS[reader](lazy) == READERS[reader](plain) != before


def test_loading_a_group_loses_nothing_that_was_postponed_for_others() -> None:
    plain, lazy = made(), made()
    values = plain.flat(3).copy()
    for parameters, change in ((plain, plain.add), (lazy, lazy.postpone)):
        change([one(5, 0, 3, 9)])
        parameters.load(3, values)
    assert lazy.digest() == plain.digest()
    assert lazy.flat(3).tobytes() == values.tobytes()


def test_values_that_cannot_be_loaded_lose_nothing_that_was_postponed() -> None:
    plain, lazy = made(), made()
    plain.add([one(5, 3)])
    lazy.postpone([one(5, 3)])
    with pytest.raises(RangeError):
        lazy.load(3, np.full(82, 2.0**-30))
    assert lazy.digest() == plain.digest()


# --- when it is done ---


def test_views_see_what_was_postponed_after_settle_and_not_before() -> None:
    parameters = made()
    views, before = raw(parameters), contents(raw(parameters))
    parameters.postpone([one(5, 0, 3, 9)])
    assert contents(views) == before
    parameters.settle()
    after = contents(views)
    assert all(after[name] != before[name] for name in NAMES)
    parameters.settle()
    assert contents(views) == after


def test_what_was_postponed_is_done_with_the_next_addition_in_one_pass() -> None:
    parameters, plain = passing(), made()
    for step in range(5):
        parameters.postpone([one(step + 1, 0, 3, seed=step)])
    assert parameters.passes.total() == 0
    parameters.add([one(7, 3, 9)])
    assert parameters.passes.total() == 3
    plain.add([*(one(step + 1, 0, 3, seed=step) for step in range(5)), one(7, 3, 9)])
    assert parameters.digest() == plain.digest()
    assert parameters.passes.total() == 3


def test_what_is_postponed_and_undone_takes_no_pass_at_all() -> None:
    parameters = passing()
    parameters.postpone([one(5, 0, 3, 9)])
    parameters.add([one(-5, 0, 3, 9)])
    assert parameters.passes.total() == 0
    assert parameters.digest() == made().digest()


def test_no_more_terms_than_so_many_are_postponed() -> None:
    parameters, plain = passing(), made()
    views, before = raw(parameters), contents(raw(parameters))
    terms = [one(1, 0, 3, 9, seed=seed) for seed in range(MOST_POSTPONED + 1)]
    for term in terms[:-1]:
        parameters.postpone([term])
    assert contents(views) == before
    parameters.postpone(terms[-1:])
    assert parameters.passes.total() == 3
    plain.add(terms)
    assert contents(views) == contents(plain.tensors())
    parameters.postpone(terms[:1])  # and it begins anew
    assert parameters.passes.total() == 3


@pytest.mark.parametrize("count", [MOST_POSTPONED, MOST_POSTPONED + 1, 3 * MOST_POSTPONED])
def test_many_terms_at_once_are_postponed_or_added(count: int) -> None:
    parameters, plain = made(), made()
    terms = [one(1 - seed, 0, 3, 9, seed=seed) for seed in range(count)]
    parameters.postpone(terms)
    plain.add(terms)
    assert parameters.digest() == plain.digest()


def test_a_copy_owes_nothing() -> None:
    parameters = made()
    parameters.postpone([one(5, 0, 3, 9)])
    copy = parameters.copy()
    parameters.postpone([one(-5, 0, 3, 9)])
    assert parameters.digest() == made().digest()
    copy.settle()
    plain = made()
    plain.add([one(5, 0, 3, 9)])
    assert copy.digest() == plain.digest()


# --- the exact range ---


@pytest.mark.parametrize("how", [Parameters.add, Parameters.postpone])
@pytest.mark.parametrize(("group", "name"), [(3, "a"), (0, "gain"), (9, "w")])
def test_a_refusal_changes_nothing_and_leaves_what_was_postponed(
    how: Callable[[Parameters, list[Term]], None], group: int, name: str
) -> None:
    parameters, plain = made(), made()
    views, before = raw(parameters), contents(raw(parameters))
    parameters.postpone([one(12, 0, 3, 9, seed=4)])
    with pytest.raises(RangeError, match=f"'{name}'.*{LIMIT}"):
        how(parameters, [one(7, 0, 3, 9), one(LIMIT, group, seed=1)])
    assert contents(views) == before
    parameters.postpone([one(2, 3, seed=8)])  # goes on as if nothing had been
    assert contents(views) == before
    plain.add([one(12, 0, 3, 9, seed=4), one(2, 3, seed=8)])
    assert parameters.digest() == plain.digest()


def test_a_value_may_reach_the_limit_by_what_is_postponed_but_not_leave_it() -> None:
    group = flat_group(10)
    lazy = made([group], {0: [0] * 10})
    for _ in range(4):
        lazy.postpone([one(LIMIT // 4)])
    with pytest.raises(RangeError, match="'flat'"):
        lazy.postpone([one(1)])
    lazy.postpone([one(-LIMIT)])
    assert not lazy.flat(0).any()


def test_going_to_and_fro_near_the_limit_is_never_refused() -> None:
    lazy = made([flat_group(30)], {0: [0] * 30})
    for step in [LIMIT - 1, 1 - LIMIT, 1 - LIMIT, LIMIT - 1] * 3:
        lazy.postpone([one(step)])
    assert not lazy.flat(0).any()


def test_a_value_that_is_restored_at_the_limit_is_never_refused() -> None:
    """A probe at the edge of the range, and the postponed way back from it."""
    z = direction(RUN_KEY, 0, 0, 4)
    lazy = made([flat_group(4)], {0: [(LIMIT - 8) * sign for sign in z]})
    before = lazy.digest()
    for _ in range(100):
        lazy.add([one(8)])
        lazy.postpone([one(-8)])
    assert lazy.digest() == before


def test_sums_at_the_edge_of_exactness_are_refused_or_not_as_add_alone_would() -> None:
    group = flat_group(4)
    a, b, c = seeds_that_agree(0, 4, 3)
    half = STEP_LIMIT // 2
    together_too_much = [one(half, seed=a), one(-half, seed=b)]
    alone_too_much = [one(-half, seed=a), one(half, seed=b), one(1, seed=c)]
    for terms, allowed in ((together_too_much, True), (alone_too_much, False)):
        plain, lazy = made([group]), made([group])
        plain.add([one(1, seed=a)])
        lazy.postpone([one(1, seed=a)])
        assert tried(lambda: plain.add(terms)) == tried(lambda: lazy.add(terms)) == allowed  # noqa: B023
        assert lazy.digest() == plain.digest()


# --- as a step does it ---


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(-(2**12), 2**12)), min_size=1, max_size=8))
def test_probes_and_updates_in_turn_end_where_the_updates_alone_lead(steps: list[tuple[int, int]]) -> None:
    lazy, plain = made(), made()
    for seed, step in steps:
        above, below, update = [one(2**10, *GROUPS, seed=seed)], [one(-(2**10), *GROUPS, seed=seed)], [one(step, *GROUPS, seed=seed)]
        lazy.add(above)
        lazy.add([*negated(above), *below])
        lazy.postpone(negated(below))
        lazy.postpone(update)
        plain.add(update)
    assert lazy.digest() == plain.digest()
