"""`add` and `branches` give exactly what Python integers give, whatever the order, the chunk and the threads."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    ABSENT,
    LAYOUT,
    LIMIT,
    PROPERTY,
    RUN_KEY,
    added,
    cancelling_terms,
    direction,
    flat_group,
    made,
    one,
    outputs,
    seeds_that_agree,
    start,
    tensors,
    term_lists,
    units,
)

from zo.group import Group, Tensor
from zo.kernel import FEW, SLAB
from zo.lattice import RangeError
from zo.parameters import Parameters
from zo.terms import Term, negated

CHUNKS, THREADS = st.sampled_from((256, 512, 1 << 17)), st.integers(1, 3)


def random_terms(group: int, seeds: int, largest: int) -> list[Term]:
    return [Term((group,), 2**40, np.random.default_rng(seeds).integers(-largest, largest, seeds))]


# --- against the reference ---


@PROPERTY
@given(cancelling_terms(), CHUNKS, THREADS)
def test_add_gives_what_python_integers_give(terms: list[Term], chunk: int, threads: int) -> None:
    parameters = made(chunk=chunk, threads=threads)
    parameters.add(terms)
    for group in LAYOUT:
        assert units(parameters, group) == added(RUN_KEY, group, start(LAYOUT)[group.id], terms)


@pytest.mark.parametrize("size", [1, 7, 8, 63, 65, 255, 256, 257, 1000, 2 * 16_384 + 5])
@pytest.mark.parametrize("seeds", [1, 2, FEW, FEW + 1])
def test_any_chunk_and_any_thread_count_give_the_reference_bits(size: int, seeds: int) -> None:
    group = flat_group(size)
    terms = random_terms(0, seeds, 2**15)
    wanted = added(RUN_KEY, group, start([group])[0], terms)
    for chunk, threads in [(256, 1), (256, 3), (768, 2), (1 << 14, 5), (1 << 17, 1)]:
        parameters = made([group], chunk=chunk, threads=threads)
        parameters.add(terms)
        assert units(parameters, group) == wanted


@pytest.mark.parametrize("seeds", [3, SLAB + 3])
@pytest.mark.parametrize("largest", [2**9, 2**17])
def test_a_group_of_several_default_chunks_is_the_same_on_one_thread_and_on_many(seeds: int, largest: int) -> None:
    group = flat_group(3 * (1 << 17) + 77)
    terms = random_terms(0, seeds, largest)
    digests = set()
    for chunk, threads in [(1 << 17, 1), (1 << 17, 4), (256 * 37, 3)]:
        parameters = made([group], chunk=chunk, threads=threads)
        parameters.add(terms)
        digests.add(parameters.digest())
    assert len(digests) == 1


@pytest.mark.parametrize("log2_unit", [-100, -20, 0, 60])
def test_every_unit_adds_alike(log2_unit: int) -> None:
    group, terms = flat_group(100, log2_unit), [*random_terms(0, 3, 2**20), *random_terms(0, 20, 2**17)]
    parameters = made([group])
    parameters.add(terms)
    assert units(parameters, group) == added(RUN_KEY, group, start([group])[0], terms)


# --- order, undoing, restriction ---


@PROPERTY
@given(cancelling_terms(), st.data())
def test_any_order_of_the_same_terms_gives_the_same_bits(terms: list[Term], data: st.DataObject) -> None:
    one_way, other_way = made(), made()
    one_way.add(terms)
    other_way.add(data.draw(st.permutations(terms)))
    assert one_way.digest() == other_way.digest()


@PROPERTY
@given(term_lists())
def test_one_addition_or_one_for_each_step_gives_the_same_bits(terms: list[Term]) -> None:
    at_once, step_by_step = made(), made()
    at_once.add(terms)
    for term in reversed(terms):
        for i, step in enumerate(term.steps.tolist()):
            step_by_step.add([one(step, *term.groups, seed=term.first_seed + i)] if term.groups else [])
    assert at_once.digest() == step_by_step.digest()


@PROPERTY
@given(cancelling_terms())
def test_adding_and_then_adding_the_negation_restores_the_bits(terms: list[Term]) -> None:
    parameters = made()
    before = parameters.digest()
    parameters.add(terms)
    parameters.add(negated(terms))
    assert parameters.digest() == before


def test_huge_steps_on_one_seed_cancel_in_any_order() -> None:
    steps = [2**40, -(2**41), 7, 2**40]
    for order in (steps, steps[::-1], sorted(steps)):
        parameters = made()
        parameters.add([one(step, 0, 3, 9, seed=5) for step in order])
        for group in LAYOUT:
            assert units(parameters, group) == added(RUN_KEY, group, start(LAYOUT)[group.id], [one(7, 0, 3, 9, seed=5)])


@pytest.mark.parametrize("size", [2**24, 2**40, 2**52])
def test_huge_steps_on_seeds_whose_directions_agree_cancel_exactly(size: int) -> None:
    group = flat_group(4)
    a, b, c = seeds_that_agree(0, 4, 3)
    terms = [one(size, seed=a), one(9 - size, seed=b), one(-2, seed=c)]
    wanted = added(RUN_KEY, group, start([group])[0], [one(7, seed=a)])
    for order in (terms, terms[::-1]):
        parameters = made([group])
        parameters.add(order)
        assert units(parameters, group) == wanted
        out = outputs(parameters, 1)
        parameters.branches([negated(order)], out)
        assert np.ldexp(out["flat"][0], 20).tolist() == start([group])[0]


@pytest.mark.parametrize("kept", [(3,), (0, 9), (9, 0), ()])
def test_a_subset_of_groups_behaves_as_the_restriction_of_the_whole(kept: tuple[int, ...]) -> None:
    terms = [*random_terms(3, 5, 1000), Term((9, 0, ABSENT, 3), 8, np.array([5, -6, 7])), one(2**17, 0, seed=2**64 - 1)]
    whole, part = made(), made([group for wanted in kept for group in LAYOUT if group.id == wanted])
    whole.add(terms)
    part.add(terms)
    assert part.tensors().keys() == {tensor.name for group in LAYOUT if group.id in kept for tensor in group.tensors}
    for name, values in part.tensors().items():
        assert values.tobytes() == whole.tensor(name).tobytes()
    assert [part.group_digest(g) for g in kept] == [whole.group_digest(g) for g in kept]


def test_a_group_has_one_direction_whatever_tensors_it_is_cut_into() -> None:
    cut = Group(0, "body", -20, (Tensor("x", (3, 50)), Tensor("nothing", (0, 4)), Tensor("y", (150,))))
    whole, pieces = made([flat_group(300)]), made([cut])
    for parameters in (whole, pieces):
        parameters.add(random_terms(0, 3, 1000))
    assert np.concatenate([pieces.tensor(t.name).ravel() for t in cut.tensors]).tobytes() == whole.tensor("flat").tobytes()
    assert pieces.digest() == whole.digest()


def test_a_scalar_tensor_is_a_tensor_too() -> None:
    group = Group(0, "body", 0, (Tensor("scalar", ()), Tensor("row", (2,))))
    parameters = Parameters(RUN_KEY, [group], {"scalar": np.array(5.0), "row": np.zeros(2)})
    parameters.add([one(2)])
    assert parameters.tensor("scalar").shape == ()
    assert parameters.tensor("scalar").item() == 5 + 2 * direction(RUN_KEY, 0, 0, 3)[0]


def test_groups_have_directions_of_their_own() -> None:
    groups = [flat_group(256, group=0, name="x"), flat_group(256, group=1, name="y")]
    parameters = made(groups, {0: [0] * 256, 1: [0] * 256})
    parameters.add([one(1, 0, 1)])
    assert parameters.tensor("x").tolist() != parameters.tensor("y").tolist()


# --- branches ---


@PROPERTY
@given(st.lists(cancelling_terms(), min_size=1, max_size=4), CHUNKS)
def test_branches_are_additions_to_copies_and_leave_theta_alone(terms_p: list[list[Term]], chunk: int) -> None:
    parameters = made(chunk=chunk)
    before, out = parameters.digest(), outputs(parameters, len(terms_p))
    parameters.branches(terms_p, out)
    assert parameters.digest() == before
    for p, terms in enumerate(terms_p):
        copy = parameters.copy()
        copy.add(terms)
        for name, values in copy.tensors().items():
            assert out[name][p].tobytes() == values.tobytes()


@pytest.mark.parametrize("seeds", [1, FEW + 1, SLAB + 1])
@pytest.mark.parametrize("largest", [2**8, 2**16, 2**18])
def test_branches_are_additions_also_for_groups_of_several_chunks(seeds: int, largest: int) -> None:
    group = flat_group(2 * 16_384 + 300)
    parameters = made([group], start([group], bound=2**17), chunk=256)
    terms_p = [random_terms(0, seeds, largest), [one(-3, seed=1)], []]
    out = outputs(parameters, 3)
    parameters.branches(terms_p, out)
    for p, terms in enumerate(terms_p):
        copy = parameters.copy()
        copy.add(terms)
        assert out["flat"][p].tobytes() == copy.tensor("flat").tobytes()


def test_only_the_tensors_asked_for_are_branched() -> None:
    parameters = made()
    out = outputs(parameters, 2, "b", "w")
    parameters.branches([[one(4, 3, 9)], [one(-4, 3, 9)]], out)
    parameters.add([one(4, 3, 9)])
    assert out.keys() == {"b", "w"}
    assert out["b"][0].tobytes() == parameters.tensor("b").tobytes()
    assert out["w"][0].tobytes() == parameters.tensor("w").tobytes()


# --- digests ---


def test_the_digest_depends_on_every_value() -> None:
    base, seen = made(), set()
    for group in LAYOUT:
        for place in range(group.size):
            values = start(LAYOUT)
            values[group.id][place] += 1
            other = made(LAYOUT, values)
            assert [g.id for g in LAYOUT if other.group_digest(g.id) != base.group_digest(g.id)] == [group.id]
            seen.add(other.digest())
    assert len(seen | {base.digest()}) == sum(group.size for group in LAYOUT) + 1


def test_the_digest_does_not_depend_on_the_order_in_which_groups_are_given() -> None:
    assert made(LAYOUT).digest() == made(LAYOUT[::-1]).digest()


def test_the_digest_is_blake2b_over_digests_of_little_endian_values_by_group_id() -> None:
    def blake2b(data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=32).digest()

    parameters = made([flat_group(2, 0, group=8, name="x"), flat_group(1, 1, group=5, name="y")], {8: [1, -2], 5: [3]})
    assert parameters.group_digest(8) == blake2b(bytes.fromhex("0000803f 000000c0"))
    assert parameters.group_digest(5) == blake2b(bytes.fromhex("0000c040"))
    assert parameters.digest() == blake2b(parameters.group_digest(5) + parameters.group_digest(8))


# --- making, reading, copying ---


def test_nothing_changes_without_a_term_for_a_group_that_is_held() -> None:
    parameters = made()
    before, out = parameters.digest(), outputs(parameters, 1)
    terms = [one(9, ABSENT), Term((), 0, np.array([4])), Term((0, 3), 0, np.empty(0, np.int64)), one(0, 0, 3, 9)]
    parameters.add([])
    parameters.add(terms)
    parameters.branches([terms], out)
    assert parameters.digest() == before
    for name, values in parameters.tensors().items():
        assert out[name][0].tobytes() == values.tobytes()


def test_terms_may_come_from_a_generator() -> None:
    terms = [one(4, 3, 9, seed=seed) for seed in range(3)]
    one_way, other_way, out = made(), made(), outputs(made(), 1)
    one_way.add(terms)
    other_way.branches([(term for term in terms)], out)
    other_way.add(term for term in terms)
    assert one_way.digest() == other_way.digest()
    assert out["w"][0].tobytes() == one_way.tensor("w").tobytes()


def test_tensors_are_live_views_of_copied_values() -> None:
    given_values = tensors(LAYOUT, start(LAYOUT))
    parameters = Parameters(RUN_KEY, LAYOUT, given_values)
    live, all_live = parameters.tensor("w"), parameters.tensors()
    parameters.add([one(1, 9)])
    assert live.shape == (3, 257)
    assert not np.array_equal(live, given_values["w"])
    assert np.shares_memory(live, all_live["w"])
    assert units(parameters, LAYOUT[2]) == added(RUN_KEY, LAYOUT[2], start(LAYOUT)[9], [one(1, 9)])


def test_a_copy_goes_its_own_way() -> None:
    parameters = made(chunk=512, threads=2)
    copy = parameters.copy()
    assert (copy.run_key, copy.chunk, copy.threads, copy.groups) == (RUN_KEY, 512, 2, parameters.groups)
    copy.add([one(1, 3)])
    assert copy.digest() != parameters.digest() == made().digest()


@pytest.mark.parametrize("chunk", [0, -256, 100, 257])
def test_a_chunk_that_is_no_multiple_of_a_block_is_refused(chunk: int) -> None:
    with pytest.raises(ValueError, match=str(chunk)):
        made(chunk=chunk)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [0.5, math.nan, math.inf, LIMIT + 2.0, -0.0])
def test_values_off_the_lattice_are_refused_by_name(bad: float, kind: type) -> None:
    with pytest.raises(RangeError, match="'flat'"):
        Parameters(RUN_KEY, [flat_group(2, 0)], {"flat": np.array([1.0, bad], kind)})


@pytest.mark.parametrize("bad", [LIMIT + 1.0, 1 + 2.0**-40])
def test_float64_values_that_float32_would_round_onto_the_lattice_are_refused(bad: float) -> None:
    with pytest.raises(RangeError, match="'flat'"):
        Parameters(RUN_KEY, [flat_group(2, 0)], {"flat": np.array([1.0, bad])})


def test_values_exactly_at_the_limit_are_accepted() -> None:
    group = flat_group(2, 0)
    assert units(Parameters(RUN_KEY, [group], {"flat": np.array([LIMIT, -LIMIT], np.float64)}), group) == [LIMIT, -LIMIT]


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4), (3, 4, 1), (4, 3), (12,)])
def test_a_tensor_of_another_shape_is_refused_not_broadcast(shape: tuple[int, ...]) -> None:
    group = Group(0, "body", 0, (Tensor("t", (3, 4)),))
    with pytest.raises(ValueError, match="shape"):
        Parameters(RUN_KEY, [group], {"t": np.ones(shape, np.float32)})


# --- the values of a group ---


def test_the_flat_values_are_live_and_in_the_order_of_the_directions() -> None:
    parameters = made()
    flat = parameters.flat(3)
    assert (flat.dtype, flat.shape) == (np.float32, (82,))
    parameters.add([one(5, 3), one(7, 0)])
    assert np.ldexp(flat.astype(np.float64), 20).tolist() == added(RUN_KEY, LAYOUT[0], start(LAYOUT)[3], [one(5, 3)])
    assert np.shares_memory(flat, parameters.tensor("a"))
    assert np.shares_memory(flat, parameters.tensor("b"))
    assert parameters.flat(0).size == 300
    with pytest.raises(KeyError):
        parameters.flat(ABSENT)


@PROPERTY
@given(cancelling_terms(), cancelling_terms())
def test_values_that_are_loaded_are_those_of_their_group_and_are_added_to(first: list[Term], then: list[Term]) -> None:
    source, target, wanted = made(), made(), made()
    source.add(first)
    wanted.add(then)
    live = target.tensors()
    target.load(9, source.flat(9))
    assert target.group_digest(9) == source.group_digest(9)
    assert [target.group_digest(g) for g in (0, 3)] == [made().group_digest(g) for g in (0, 3)]
    assert all(np.shares_memory(target.tensor(name), values) for name, values in live.items())
    source.add(then)
    target.add(then)
    assert target.group_digest(9) == source.group_digest(9)
    assert [target.group_digest(g) for g in (0, 3)] == [wanted.group_digest(g) for g in (0, 3)]


def test_loaded_values_are_copied() -> None:
    parameters, given_values = made([flat_group(4, 0)]), np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    parameters.load(0, given_values)
    given_values[0] = 9
    assert parameters.flat(0).tolist() == [1, 2, 3, 4]


def test_loading_a_read_only_view_of_bytes_leaves_values_that_can_change() -> None:
    parameters = made([flat_group(4, 0)])
    parameters.load(0, np.frombuffer(np.array([1, 2, 3, 4], "<f4").tobytes(), "<f4"))
    parameters.add([one(1)])
    assert parameters.flat(0).tolist() == [value + sign for value, sign in zip([1, 2, 3, 4], direction(RUN_KEY, 0, 0, 4), strict=True)]


@pytest.mark.parametrize("bad", [0.5, math.nan, math.inf, LIMIT + 2.0, -0.0])
@pytest.mark.parametrize(("place", "name"), [(0, "x"), (1, "y"), (2, "y")])
def test_values_off_the_lattice_are_not_loaded(bad: float, place: int, name: str) -> None:
    """Nor is any other value of the group, before or behind them."""
    group = Group(0, "body", 0, (Tensor("x", (1,)), Tensor("y", (2,))))
    parameters = made([group])
    before = parameters.digest()
    values = np.array([5.0, 6.0, 7.0])
    values[place] = bad
    with pytest.raises(RangeError, match=f"'{name}'"):
        parameters.load(0, values)
    assert parameters.digest() == before


@pytest.mark.parametrize("shape", [(), (0,), (81,), (83,), (77,), (164,), (2, 82), (82, 1)])
def test_rows_of_another_length_are_not_loaded(shape: tuple[int, ...]) -> None:
    parameters = made()
    before = parameters.digest()
    with pytest.raises((ValueError, IndexError)):
        parameters.load(3, np.ones(shape, np.float32))
    assert parameters.digest() == before


def test_the_range_is_that_of_the_loaded_values() -> None:
    """Neither the bound of those before them: refused too late, or for nothing."""
    group, z = flat_group(4), direction(RUN_KEY, 0, 0, 4)
    full = np.ldexp(np.array(z, np.float64) * LIMIT, -20)
    parameters = made([group], {0: [0] * 4})
    parameters.load(0, full)
    before = parameters.digest()
    with pytest.raises(RangeError, match="'flat'"):
        parameters.add([one(1)])
    assert parameters.digest() == before
    out = outputs(parameters, 1)
    with pytest.raises(RangeError, match="'flat'"):
        parameters.branches([[one(1)]], out)
    parameters.load(0, np.zeros(4))
    parameters.add([one(LIMIT)])
    assert np.array_equal(parameters.flat(0), full)


# --- probes ---


@PROPERTY
@given(
    st.lists(st.sampled_from((0, 3, 9)), unique=True, min_size=1),
    st.sampled_from((0, 5, 2**32 - 2, 2**53 + 1, 2**64 - 4)),
    st.integers(0, 4),
    st.sampled_from(((1, -1), (2**6, -(2**6)), (2**20,), (-3, 0, 3))),
    st.booleans(),
)
def test_probes_are_the_branches_of_the_same_terms_to_the_last_bit(
    groups: list[int], first_seed: int, count: int, steps: tuple[int, ...], postponed: bool
) -> None:
    parameters = made()
    if postponed:
        parameters.postpone([Term((0, 3), 8, np.array([7, -2]))])
    terms = [[Term(tuple(groups), first_seed + place, np.array([step]))] for place in range(count) for step in steps]
    named = [tensor for group in LAYOUT if group.id in groups for tensor in group.tensors]
    expected, found = (
        {tensor.name: np.full((len(steps) * count, *tensor.shape), np.nan, np.float32) for tensor in named} for _ in range(2)
    )
    before = parameters.copy().digest()
    if count:
        parameters.branches(terms, expected)
    parameters.probes(groups, first_seed, count, steps, found)
    assert {name: array.tobytes() for name, array in found.items()} == {name: array.tobytes() for name, array in expected.items()}
    assert parameters.digest() == before


def test_probes_beyond_the_lattice_are_refused_by_name_as_branches_are() -> None:
    parameters, out = made([flat_group(64)], {0: [LIMIT - 5] * 64}), {"flat": np.zeros((4, 64), np.float32)}
    before = parameters.digest()
    parameters.probes([0], 3, 2, [5, -5], out)
    for call in (
        lambda: parameters.probes([0], 3, 2, [6, -6], out),
        lambda: parameters.branches([[Term((0,), 3, np.array([6]))]] * 4, out),
    ):
        with pytest.raises(RangeError, match="'flat'"):
            call()
    assert parameters.digest() == before
