"""Which seeds a device gets: its own, or a slot of the pool."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY

from zo.seeds import ALONE, MOST_DEVICES, first_seed

MOST_DIRECTIONS, MOST_ROUNDS = 4096, 2**30
ROUNDS, DEVICES = st.integers(1, MOST_ROUNDS - 1), st.integers(0, MOST_DEVICES - 1)
KEYS = st.integers(0, 2**32 - 1)


@st.composite
def pools(draw: st.DrawFn) -> tuple[int, int]:
    """Directions of a device, and a pool that holds them at least once."""
    count = draw(st.integers(1, 64))
    return count, draw(st.integers(count, 40 * count))


# --- seeds of their own ---


@PROPERTY
@given(KEYS, st.integers(1, MOST_DIRECTIONS), ROUNDS, DEVICES, ROUNDS, DEVICES)
def test_own_seeds_never_meet(run_key: int, count: int, round_a: int, device_a: int, round_b: int, device_b: int) -> None:
    for a, b in [((round_a, device_a), (round_b, device_b)), ((round_a, device_a), (round_a, device_b))]:
        first, second = first_seed(run_key, *a, count), first_seed(run_key, *b, count)
        assert (first == second) if a == b else abs(first - second) >= count


@pytest.mark.parametrize("count", [1, 7, MOST_DIRECTIONS])
def test_the_last_device_of_a_round_and_the_first_of_the_next_do_not_meet(count: int) -> None:
    assert first_seed(1, 5, MOST_DEVICES - 1, count) + count <= first_seed(1, 6, 0, count)
    assert first_seed(1, 5, 2, count) + count == first_seed(1, 5, 3, count)  # no gaps, so that a fold has few terms


def test_a_device_alone_never_meets_a_fleet() -> None:
    last = first_seed(1, MOST_ROUNDS - 1, MOST_DEVICES - 1, MOST_DIRECTIONS) + MOST_DIRECTIONS
    assert last <= ALONE
    assert ALONE + last <= 2**63  # where the seeds of calibration begin


# --- a pool ---


@PROPERTY
@given(KEYS, ROUNDS, pools(), st.integers(0, MOST_DEVICES - 100))
def test_slots_lie_in_the_pool_side_by_side_and_meet_only_when_devices_outnumber_them(
    run_key: int, number: int, sizes: tuple[int, int], device: int
) -> None:
    count, pool = sizes
    slots = pool // count
    for first in (0, device - device % slots):
        found = [first_seed(run_key, number, each, count, pool) for each in range(first, first + slots)]
        assert sorted(found) == list(range(0, slots * count, count))
        assert slots * count <= pool


@PROPERTY
@given(KEYS, ROUNDS, pools(), DEVICES)
def test_the_same_device_of_a_round_always_has_the_same_slot(run_key: int, number: int, sizes: tuple[int, int], device: int) -> None:
    once = first_seed(run_key, number, device, *sizes)
    for other in range(1, 8):  # more rounds than are remembered
        first_seed(run_key, number + other, device, *sizes)
    assert first_seed(run_key, number, device, *sizes) == once


def test_slots_are_dealt_anew_every_round_and_in_every_run() -> None:
    deals = {
        tuple(first_seed(key, number, device, 8, 4096) for device in range(16)) for key in (0, 1, 2**32 - 1) for number in range(1, 50)
    }
    assert len(deals) == 3 * 49


def test_over_the_rounds_a_device_has_every_slot_about_equally_often() -> None:
    counts = [0] * 16
    for number in range(1, 3201):
        counts[first_seed(7, number, 3, 4, 64) // 4] += 1
    assert all(abs(count - 200) <= 5 * (200 * 15 / 16) ** 0.5 for count in counts)


def test_devices_that_share_a_slot_do_so_by_chance_only() -> None:
    shared = [first_seed(7, number, 3, 4, 64) == first_seed(7, number, 3 + 16, 4, 64) for number in range(1, 321)]
    assert sum(shared) <= 50  # 20 are expected; all of them, were the second deal the first one again


GOLDEN = {
    (0, 1, 8, 64): [24, 32, 48, 16, 56, 0],
    (0xC0FFEE01, 5, 8, 4096): [968, 824, 1384, 1104, 1672, 504],
    (2**32 - 1, 2**30, 3, 50): [36, 33, 3, 27, 9, 24],
}


def test_the_deal_is_the_same_in_every_process_and_version() -> None:
    """A coordinator that was killed deals the open round again: its plans, and so the reports accepted, must keep their meaning."""
    for (run_key, number, count, pool), wanted in GOLDEN.items():
        assert [first_seed(run_key, number, device, count, pool) for device in range(6)] == wanted
    code = "from zo.seeds import first_seed; print([first_seed(0xC0FFEE01, 5, device, 8, 4096) for device in range(6)])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(GOLDEN[0xC0FFEE01, 5, 8, 4096])


def test_own_seeds_are_where_they_always_were() -> None:
    assert first_seed(9, 1, 0, 8) == 2**32
    assert first_seed(9, 3, 5, 8) == 3 * 2**32 + 40
