"""The kernel's sums are exact, compiled or not, whatever the chunk, the place it starts at and the float it uses."""

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY, RUN_KEY, direction

from zo import kernel, kernel_numpy
from zo.directions import BLOCK
from zo.lattice import LIMIT, RangeError

GROUP, SIZE = 6, 3 * BLOCK + 41
KERNELS = [kernel_numpy]
if kernel.COMPILED:
    from zo import kernel_compiled

    KERNELS.append(kernel_compiled)
either = pytest.mark.parametrize("made", KERNELS, ids=lambda made: made.__name__.rpartition(".")[2])


def reference(seeds: list[int], steps: list[int], start: int = 0, stop: int = SIZE) -> list[int]:
    """The sum in Python integers."""
    rows = [direction(RUN_KEY, GROUP, seed, SIZE) for seed in seeds]
    return [sum(step * row[i] for step, row in zip(steps, rows, strict=True)) for i in range(start, stop)]


def test_sums_use_float32_while_exact_then_float64_then_refuse() -> None:
    assert kernel.exact_type(0) is np.float32
    assert kernel.exact_type(LIMIT) is np.float32
    assert kernel.exact_type(LIMIT + 1) is np.float64
    assert kernel.exact_type(2**53) is np.float64
    with pytest.raises(RangeError, match=r"2\*\*53"):
        kernel.exact_type(2**53 + 1)


@either
@PROPERTY
@given(
    st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from((1, 2**10, 2**22, 2**30, 2**50)),
    st.integers(0, 3),
    st.data(),
)
def test_combine_gives_the_exact_sum_for_every_branch(
    made: ModuleType, seeds: list[int], branches: int, largest: int, block: int, data: st.DataObject
) -> None:
    row = st.lists(st.integers(-largest, largest), min_size=len(seeds), max_size=len(seeds))
    steps = [data.draw(row) for _ in range(branches)]
    total = made.combine(RUN_KEY, GROUP, np.array(seeds, np.uint64), np.array(steps), block * BLOCK, SIZE)
    assert total.tolist() == [reference(seeds, row, block * BLOCK) for row in steps]


@either
@pytest.mark.parametrize("count", [kernel.SLAB - 1, kernel.SLAB, kernel.SLAB + 1, 2 * kernel.SLAB + 3])
@pytest.mark.parametrize("largest", [2**8, 2**42])
def test_combine_is_exact_across_slabs_of_seeds(made: ModuleType, count: int, largest: int) -> None:
    steps = np.random.default_rng(count).integers(-largest, largest, count)
    total = made.combine(RUN_KEY, GROUP, np.arange(count, dtype=np.uint64), steps[None], 0, SIZE)[0]
    assert total.tolist() == reference(list(range(count)), steps.tolist())


@either
def test_combine_of_no_seeds_is_zero(made: ModuleType) -> None:
    assert made.combine(RUN_KEY, GROUP, np.empty(0, np.uint64), np.empty((2, 0), np.int64), 0, 5).tolist() == [[0] * 5] * 2


@either
def test_combine_refuses_sums_no_float_holds(made: ModuleType) -> None:
    with pytest.raises(RangeError, match=r"2\*\*53"):
        made.combine(RUN_KEY, GROUP, np.arange(2, dtype=np.uint64), np.array([[2**53, -2]]), 0, 10)


@either
@pytest.mark.parametrize("count", [1, 2, kernel.FEW, kernel.FEW + 1, kernel.SLAB + 1])
@pytest.mark.parametrize("chunk", [BLOCK, 2 * BLOCK, 1 << 17])
@pytest.mark.parametrize("block", [0, 1, 3])
def test_adding_in_place_is_exact_from_any_block_in_any_chunk(made: ModuleType, count: int, chunk: int, block: int) -> None:
    steps = np.random.default_rng(count).integers(-1000, 1000, count)
    values = np.arange(SIZE, dtype=np.float32) / 8
    made.add_in_place(RUN_KEY, GROUP, np.arange(count, dtype=np.uint64), steps, values[block * BLOCK :], block * BLOCK, 0.125, chunk)
    wanted = [0] * (block * BLOCK) + reference(list(range(count)), steps.tolist(), block * BLOCK)
    assert (values * 8).tolist() == [i + delta for i, delta in enumerate(wanted)]


@either
def test_large_steps_that_cancel_are_added_exactly(made: ModuleType) -> None:
    size, seeds = 4, list(range(200))
    first = direction(RUN_KEY, GROUP, 0, SIZE)[:size]
    same = next(seed for seed in seeds[1:] if direction(RUN_KEY, GROUP, seed, SIZE)[:size] == first)
    values = np.full(size, 3, np.float32)
    made.add_in_place(RUN_KEY, GROUP, np.array([0, same], np.uint64), np.array([2**52, 5 - 2**52]), values, 0, 1.0, BLOCK)
    assert values.tolist() == [3 + 5 * sign for sign in first]
