"""Blocks go round the devices: so many at a time, each as often as its slopes say, without long gaps."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.allocation import by_block, turn
from coordinator.allocation.turns import LEAST, shares

SLOPES = st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(any)


@given(SLOPES, st.data())
def test_a_device_tries_as_many_as_asked_none_twice(slopes: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(slopes)))
    found = turn(slopes, count, data.draw(st.integers(1, 1 << 40)), data.draw(st.integers(0, 1 << 20)))
    assert len(found) == len(set(found)) == count
    assert list(found) == sorted(found)
    assert set(found) <= set(range(len(slopes)))


@given(SLOPES, st.data())
def test_shares_go_with_slopes_between_a_least_and_always(slopes: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(slopes)))
    found = shares(slopes, count)
    assert found.sum() == pytest.approx(count)
    assert found.max() <= 1 + 1e-9
    even = count / len(slopes)
    assert found.min() >= min(1, LEAST * even / (1 + LEAST)) - 1e-9
    steep, flat = np.argmax(slopes), np.argmin(slopes)
    assert found[steep] >= found[flat]


def test_of_two_blocks_the_one_with_twice_the_square_has_two_turns_of_three() -> None:
    assert shares([1.0, 2.0, 3.0], 1).tolist() == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert shares([1.0, 1.0, 6.0], 2).tolist() == pytest.approx([0.5, 0.5, 1.0])
    assert shares([5.0, 1.0], 2).tolist() == [1.0, 1.0]


def test_a_device_has_each_block_as_often_as_its_share_and_none_has_a_long_gap() -> None:
    slopes, rounds = [1.0, 1.0, 2.0, 4.0, 8.0, 16.0], 200
    for count in (1, 2, 3):
        often = shares(slopes, count)
        turns = [turn(slopes, count, number, 3) for number in range(rounds)]
        counted = Counter(block for each in turns for block in each)
        assert [counted[block] / rounds for block in range(6)] == pytest.approx(often, abs=0.02)
        for block in range(6):
            having = [number for number, each in enumerate(turns) if block in each]
            assert max(np.diff(having)) <= 3 / often[block] + 1


def test_in_every_round_the_devices_share_the_blocks_out_evenly() -> None:
    for number in range(50):
        counted = Counter(block for device in range(12) for block in turn([1.0] * 6, 1, number, device))
        assert min(counted[block] for block in range(6)) >= 1
        assert max(counted.values()) <= 3


def test_a_blocks_slope_is_that_of_its_known_groups_together_and_what_is_not_known_counts_as_the_others() -> None:
    assert by_block([(0,), (1,), (2,)], {}) == [1.0, 1.0, 1.0]
    assert by_block([(0,), (1,), (2,)], {0: 0.0, 1: 0.0, 2: 0.0}) == [1.0, 1.0, 1.0]
    slices = [(0, 3), (1, 4), (2, 5)]
    assert by_block(slices, {0: 1.0, 3: 2.0, 1: 4.0, 4: 1.0}) == [3.0, 5.0, 4.0]
    assert by_block(slices, {0: 1.0, 1: 4.0, 2: 7.0}) == [1.0, 4.0, 7.0]
