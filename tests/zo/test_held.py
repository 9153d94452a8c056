"""A group that is held stays on its lattice: what would leave the exact range is refused by name, and zero is never -0.0."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import LAYOUT, LIMIT, PROPERTY, RUN_KEY, added, direction, flat_group, made, one, outputs, seeds_that_agree, start, units

from zo.group import Group, Tensor
from zo.kernel import FEW
from zo.lattice import RangeError
from zo.terms import Term, negated


@pytest.mark.parametrize("log2_unit", [-20, 0, 60])
@pytest.mark.parametrize("steps", [[LIMIT], [LIMIT - 1], [LIMIT // 2] * 2])
def test_exactly_limit_is_allowed_and_one_more_is_refused(steps: list[int], log2_unit: int) -> None:
    """One more than LIMIT would be rounded down onto LIMIT by float32, unseen."""
    group = flat_group(4, log2_unit)
    seeds = seeds_that_agree(0, 4, len(steps) + 1)
    terms = [one(step, seed=seed) for step, seed in zip(steps, seeds, strict=False)]
    rest = LIMIT - sum(steps)
    for last in (rest, rest + 1):
        parameters = made([group], {0: [0] * 4})
        change = [*terms, one(last, seed=seeds[-1])]
        out, before = outputs(parameters, 1), parameters.digest()
        if last == rest:
            parameters.branches([change], out)
            parameters.add(change)
            assert units(parameters, group) == [LIMIT * sign for sign in direction(RUN_KEY, 0, 0, 4)]
            assert np.ldexp(out["flat"][0], -log2_unit).tolist() == units(parameters, group)
        else:
            with pytest.raises(RangeError, match=f"'flat'.*{LIMIT}"):
                parameters.add(change)
            with pytest.raises(RangeError, match=f"'flat'.*{LIMIT}"):
                parameters.branches([[], change], outputs(parameters, 2))
            assert parameters.digest() == before


@pytest.mark.parametrize("seeds", [1, FEW + 1])
def test_reaching_the_limit_while_another_value_leaves_it_is_allowed(seeds: int) -> None:
    group, z = flat_group(2), direction(RUN_KEY, 0, 0, 2)
    parameters = made([group], {0: [-LIMIT * z[0], (LIMIT - 5) * z[1]]})
    same = seeds_that_agree(0, 2, 2 * seeds)
    out, terms = outputs(parameters, 1), [one(5)] + [one((-1) ** i, seed=seed) for i, seed in enumerate(same[1:-1])]
    parameters.branches([terms], out)
    parameters.add(terms)
    assert units(parameters, group) == np.ldexp(out["flat"][0], 20).tolist() == [(5 - LIMIT) * z[0], LIMIT * z[1]]


def test_many_small_additions_reach_the_limit_and_stop_there() -> None:
    group = flat_group(10)
    parameters = made([group], {0: [0] * 10})
    for _ in range(4):
        parameters.add([one(LIMIT // 4)])
    before = parameters.digest()
    with pytest.raises(RangeError, match="'flat'"):
        parameters.branches([[one(1)]], outputs(parameters, 1))
    with pytest.raises(RangeError, match="'flat'"):
        parameters.add([one(1)])
    assert parameters.digest() == before
    assert units(parameters, group) == [LIMIT * sign for sign in direction(RUN_KEY, 0, 0, 10)]


@pytest.mark.parametrize("step", [1, -1, 2, 2**24, 2**45])
def test_a_value_at_the_limit_can_come_back_but_not_go_further(step: int) -> None:
    group = flat_group(1)
    parameters = made([group], {0: [LIMIT]})
    outward = step * direction(RUN_KEY, 0, 0, 1)[0] > 0
    if outward or abs(step) > 2 * LIMIT:
        with pytest.raises(RangeError, match="'flat'"):
            parameters.add([one(step)])
        assert units(parameters, group) == [LIMIT]
    else:
        parameters.add([one(step)])
        assert units(parameters, group) == [LIMIT - abs(step)]


@pytest.mark.parametrize("value", [LIMIT, -LIMIT])
def test_values_next_to_one_at_the_limit_still_move_exactly(value: int) -> None:
    group = flat_group(20)
    values = {0: [value, *start([group])[0][1:]]}
    z = direction(RUN_KEY, 0, 0, 20)
    terms = [one(3 if z[0] * value < 0 else -3)]
    parameters, out = made([group], values), outputs(made([group], values), 1)
    parameters.branches([terms], out)
    parameters.add(terms)
    assert units(parameters, group) == np.ldexp(out["flat"][0], 20).tolist() == added(RUN_KEY, group, values[0], terms)


@pytest.mark.parametrize("size", [40, 700])
def test_sums_beyond_limit_on_many_seeds_are_allowed_when_the_result_is_in_range(size: int) -> None:
    group = flat_group(size)
    terms = [Term((0,), 1000, np.full(300, 2**17))]
    assert np.abs(terms[0].steps).sum() > 2 * LIMIT
    wanted = added(RUN_KEY, group, start([group])[0], terms)
    for order in (terms, [one(2**17, seed=1000 + i) for i in reversed(range(300))]):
        parameters, out = made([group], chunk=256), outputs(made([group]), 1)
        parameters.branches([order], out)
        parameters.add(order)
        assert units(parameters, group) == np.ldexp(out["flat"][0], 20).tolist() == wanted


@pytest.mark.parametrize(("group", "name"), [(3, "a"), (0, "gain"), (9, "w")])
def test_leaving_the_range_in_one_group_changes_nothing_in_any(group: int, name: str) -> None:
    terms = [one(12, 0, 3, 9, seed=4), one(LIMIT, group, seed=1)]
    parameters = made(chunk=256)
    before = parameters.digest()
    with pytest.raises(RangeError, match=f"'{name}'.*{LIMIT}"):
        parameters.add(terms)
    assert parameters.digest() == before
    parameters.add(terms[:1])
    for each in LAYOUT:
        assert units(parameters, each) == added(RUN_KEY, each, start(LAYOUT)[each.id], terms[:1])


@pytest.mark.parametrize(("group", "name"), [(3, "a"), (0, "gain"), (9, "w")])
def test_leaving_the_range_in_one_branch_of_one_group_writes_nothing_anywhere(group: int, name: str) -> None:
    parameters = made()
    before, out = parameters.digest(), outputs(parameters, 2)
    with pytest.raises(RangeError, match=f"'{name}'.*{LIMIT}"):
        parameters.branches([[one(12, 0, 3, 9)], [one(LIMIT, group, seed=1)]], out)
    assert parameters.digest() == before
    assert all(np.isnan(values).all() for values in out.values())


@pytest.mark.parametrize(("place", "name"), [(0, "a"), (76, "a"), (77, "b"), (81, "b")])
def test_the_error_names_the_tensor_the_value_is_in(place: int, name: str) -> None:
    values = start(LAYOUT)
    values[3] = [LIMIT if i == place else 0 for i in range(82)]
    parameters = made(LAYOUT, values)
    step = direction(RUN_KEY, 3, 0, 82)[place]
    with pytest.raises(RangeError, match=f"'{name}'.*{LIMIT}"):
        parameters.add([one(step, 3)])
    with pytest.raises(RangeError, match=f"'{name}'.*{LIMIT}"):
        parameters.branches([[one(step, 3)]], outputs(parameters, 1))


def test_a_value_beyond_the_first_chunk_is_found_and_named() -> None:
    group = Group(0, "body", -20, (Tensor("first", (1000,)), Tensor("second", (10,))))
    parameters = made([group], {0: [0] * 1009 + [LIMIT]}, chunk=256)
    with pytest.raises(RangeError, match="'second'"):
        parameters.add([one(direction(RUN_KEY, 0, 0, 1010)[-1])])


def test_going_to_and_fro_near_the_limit_is_never_refused() -> None:
    group = flat_group(30)
    parameters = made([group], {0: [0] * 30})
    for step in [LIMIT - 1, 1 - LIMIT, 1 - LIMIT, LIMIT - 1] * 3:
        parameters.add([one(step)])
    assert units(parameters, group) == [0] * 30


@pytest.mark.parametrize(
    "terms",
    [[one(2**53), one(1)], [one(2**53), one(-(2**53), seed=1)], [one(2**53)] * 1024, [one(-(2**53))] * 600],
    ids=["2**53 + 1", "2**54 on two seeds", "2**63", "-600 * 2**53"],
)
def test_sums_too_large_to_be_exact_are_refused(terms: list[Term]) -> None:
    parameters = made([flat_group(20)])
    before, out = parameters.digest(), outputs(parameters, 1)
    with pytest.raises(RangeError):
        parameters.branches([terms], out)
    with pytest.raises(RangeError):
        parameters.add(terms)
    assert parameters.digest() == before


# --- zero ---


@PROPERTY
@given(st.lists(st.sampled_from((-2, -1, 0, 1, 2)), min_size=1, max_size=FEW + 3), st.integers(0, 2**64 - 20))
def test_zero_is_never_minus_zero(steps: list[int], seed: int) -> None:
    group = flat_group(300)
    parameters, out = made([group], {0: [(i % 5) - 2 for i in range(300)]}), outputs(made([group]), 2)
    terms = [Term((0,), seed, np.array(steps))]
    parameters.branches([terms, negated(terms)], out)
    parameters.add(terms)
    for values in (parameters.tensor("flat"), out["flat"]):
        assert not np.signbit(values[values == 0]).any()


def test_values_brought_to_zero_from_either_side_are_plus_zero() -> None:
    group = flat_group(300)
    parameters = made([group], {0: [0] * 300})
    zeros = parameters.digest()
    parameters.add([one(5)])
    out = outputs(parameters, 1)
    parameters.branches([[one(-5)]], out)
    parameters.add([one(-5)])
    assert parameters.digest() == zeros
    assert not np.signbit(parameters.tensor("flat")).any()
    assert not np.signbit(out["flat"]).any()
