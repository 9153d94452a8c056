"""What the numerics must compute, in Python integers: no chunks, no floats, no vectorised generator."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.random import Philox

from zo.group import Group, Tensor
from zo.parameters import Parameters
from zo.terms import Term

LIMIT = 2**24
PROPERTY = settings(deadline=None, max_examples=60)  # no deadline: a slow machine is not a failure
RUN_KEY = 0xC0FFEE01

# Sizes 82, 300 and 771, on three different units; a Term may also name ABSENT, which nobody holds.
LAYOUT = (
    Group(3, "body", -20, (Tensor("a", (7, 11)), Tensor("b", (5,)))),
    Group(0, "body", 4, (Tensor("gain", (300,)),)),
    Group(9, "head", -30, (Tensor("w", (3, 257)),)),
)
ABSENT = 77


@lru_cache(maxsize=4096)
def direction(run_key: int, group: int, seed: int, size: int) -> list[int]:
    """z(seed, group), straight from numpy's raw words."""
    words = Philox(key=np.array([run_key << 32 | group, seed], np.uint64)).random_raw(-(-size // 64)).tolist()
    return [1 if words[i // 64] >> (i % 64) & 1 else -1 for i in range(size)]


def added(run_key: int, group: Group, units: Sequence[int], terms: Iterable[Term]) -> list[int]:
    """The group's values, in units, after the terms; AssertionError where the result has no place on the lattice."""
    result = list(units)
    for term in terms:
        if group.id in term.groups:
            for i, step in enumerate(term.steps.tolist()):
                z = direction(run_key, group.id, term.first_seed + i, group.size)
                result = [value + step * sign for value, sign in zip(result, z, strict=True)]
    assert all(abs(value) <= LIMIT for value in result)
    return result


def units(parameters: Parameters, group: Group) -> list[int]:
    """The group's values in units, as integers, tensors in order."""
    flat = np.concatenate([parameters.tensor(tensor.name).ravel() for tensor in group.tensors])
    return [int(value) for value in np.ldexp(flat.astype(np.float64), -group.log2_unit)]


def tensors(groups: Sequence[Group], values: Mapping[int, Sequence[int]]) -> dict[str, np.ndarray]:
    """float32 tensors by name, from integers by group id."""
    named: dict[str, np.ndarray] = {}
    for group in groups:
        named |= group.split(np.ldexp(np.array(values[group.id], np.float64), group.log2_unit).astype(np.float32))
    return named


def start(groups: Sequence[Group], seed: int = 0, bound: int = 2**20) -> dict[int, list[int]]:
    """Integers within +-bound for every group, each group its own whatever the others are."""
    return {g.id: np.random.default_rng([seed, g.id]).integers(-bound, bound, g.size, endpoint=True).tolist() for g in groups}


def made(groups: Sequence[Group] = LAYOUT, values: Mapping[int, Sequence[int]] | None = None, **settings: int) -> Parameters:
    """Parameters of the groups, from integers (`start` by default)."""
    return Parameters(RUN_KEY, groups, tensors(groups, start(groups) if values is None else values), **settings)


def flat_group(size: int, log2_unit: int = -20, group: int = 0, name: str = "flat") -> Group:
    """A group of one tensor."""
    return Group(group, "body", log2_unit, (Tensor(name, (size,)),))


def seeds_that_agree(group: int, size: int, count: int) -> list[int]:
    """Seeds whose directions on a (tiny) group all equal that of seed 0."""
    first = direction(RUN_KEY, group, 0, size)
    found = [seed for seed in range(200 * 2**size) if direction(RUN_KEY, group, seed, size) == first]
    assert len(found) >= count
    return found[:count]


def one(step: int, *groups: int, seed: int = 0) -> Term:
    return Term(groups or (0,), seed, np.array([step]))


def outputs(parameters: Parameters, branches: int, *names: str) -> dict[str, np.ndarray]:
    """Room for branches, filled with a value that nothing on the lattices has."""
    shapes = {name: values.shape for name, values in parameters.tensors().items() if not names or name in names}
    return {name: np.full((branches, *shape), np.nan, np.float32) for name, shape in shapes.items()}


@st.composite
def term_lists(draw: st.DrawFn, largest: int = 2**16, most: int = 6) -> list[Term]:
    """Terms on groups of LAYOUT and ABSENT whose seeds often meet; sums stay within 30 * largest."""

    def term() -> Term:
        groups = draw(st.lists(st.sampled_from((0, 3, 9, ABSENT)), unique=True, max_size=4))
        first_seed = draw(st.sampled_from((0, 1, 3, 2**32 - 1, 2**32, 2**53 + 1, 2**64 - 5)))
        steps = draw(st.lists(st.integers(-largest, largest), max_size=5))
        return Term(tuple(groups), first_seed, np.array(steps, np.int64))

    return [term() for _ in range(draw(st.integers(0, most)))]


@st.composite
def cancelling_terms(draw: st.DrawFn) -> list[Term]:
    """`term_lists` with steps of up to +-2**40 mixed in that cancel, seed by seed, in any order."""
    terms = draw(term_lists())
    for _ in range(draw(st.integers(1, 3))):
        size = 2 ** draw(st.integers(24, 40))
        groups, seed = draw(st.sampled_from(((0,), (3, 9), (0, 3, 9)))), draw(st.sampled_from((0, 1, 2**64 - 1)))
        terms += [Term(groups, seed, np.array([size])), Term(groups, seed, np.array([-size]))]
    return draw(st.permutations(terms))
