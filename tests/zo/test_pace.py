"""The pace finds the rate whose strides end in the lowest point, from whichever side, and only where that is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zo.pace import AHEAD, LONGER, MOST_CHANGE, REACH, Pace, mean_and_error


def bowl(rate: float, best: float, devices: int = 6, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Looks along a stride at `rate` in a bowl whose lowest point `best` would have reached: losses [devices, 3]."""
    height = np.random.default_rng(seed).uniform(0.5, 2, devices)[:, None]
    at = np.array([rate, 2 * rate, 0.0])
    losses = height * (at - best) ** 2 / best**2 + 1
    return losses + noise * np.random.default_rng(seed + 1).standard_normal(losses.shape)


@settings(deadline=None)
@given(best=st.floats(0.05, 30), start=st.sampled_from([0.1, 1.0, 8.0]))
def test_it_comes_to_the_best_rate_and_a_little_beyond(best: float, start: float) -> None:
    pace = Pace(["body"], ["body"])
    pace.factors["body"] = start
    for _ in range(40):
        pace.learn(bowl(pace.factors["body"], best), pace.factors)
    assert pace.factors["body"] == pytest.approx(min(AHEAD * best, REACH), rel=0.05)


def test_it_changes_by_no_more_than_so_much_at_once() -> None:
    for best, wanted in ((100.0, MOST_CHANGE), (0.01, 1 / MOST_CHANGE)):
        pace = Pace(["body"], ["body"])
        pace.learn(bowl(1.0, best), pace.factors)
        assert pace.factors["body"] == pytest.approx(wanted)


def test_where_the_devices_do_not_agree_nothing_changes() -> None:
    pace = Pace(["body"], ["body"])
    slopes = np.array([1.0, -1.0, 0.5, -0.5])
    pace.learn(np.stack([np.ones(4), 1 + slopes, 1 - slopes], axis=1), pace.factors)
    assert pace.factors == {"body": 1.0}


def test_what_is_too_little_to_be_told_may_be_more() -> None:
    pace, chance = Pace(["body"], ["body"]), np.array([1.0, -1.0, 0.5, -0.5]) / 100
    pace.learn(np.stack([np.ones(4), 1 + chance, 1 - chance], axis=1), pace.factors)
    assert pace.factors["body"] == pytest.approx(LONGER)
    pace.learn(np.stack([np.ones(4), 1 + 10 * chance, 1 - 10 * chance], axis=1), pace.factors)
    assert pace.factors["body"] == pytest.approx(LONGER)


def test_a_right_rate_whose_strides_are_too_short_to_be_seen_is_tried_a_little_higher_and_comes_back() -> None:
    pace, best, seen = Pace(["body"], ["body"]), 0.3, list[float]()
    for number in range(30):
        at = pace.factors["body"] * np.array([1.0, 2.0, 0.0])
        losses = 1 + 0.01 * np.linspace(0.9, 1.1, 6)[:, None] * ((at - best) ** 2 / best**2 - 1)
        pace.learn(losses + 1e-5 * np.random.default_rng(number).standard_normal(losses.shape), pace.factors)
        seen.append(pace.factors["body"])
    assert all(0.9 * AHEAD * best < each < 1.1 * LONGER * AHEAD * best for each in seen[5:])


def test_lower_ahead_is_ahead_however_the_loss_seems_to_bend() -> None:
    """Noise of the curvature is twice that of the slope, and its sign must not turn the way around."""
    pace = Pace(["body"], ["body"])
    pace.learn(np.array([[0.306, 0.28, 0.30]] * 4), pace.factors)
    assert pace.factors["body"] == MOST_CHANGE


def test_straight_uphill_by_little_is_chance_and_by_much_is_not() -> None:
    for rise, wanted in ((0.01, LONGER), (0.3, 1 / MOST_CHANGE)):
        pace = Pace(["body"], ["body"])
        pace.learn(np.array([[1.0, 1 + rise, 1 - rise]] * 4), pace.factors)
        assert pace.factors["body"] == pytest.approx(wanted)


def test_uphill_from_the_start_of_the_stride_it_slows_down() -> None:
    pace = Pace(["body"], ["body"])
    pace.learn(np.array([[1.0, 1.3, 0.8]] * 4), pace.factors)  # slope .25 at its end, .15 at its start
    assert pace.factors["body"] == 1 / MOST_CHANGE


def test_downhill_and_curved_the_other_way_it_speeds_up() -> None:
    pace = Pace(["body"], ["body"])
    pace.learn(np.array([[1.0, 0.7, 1.2]] * 4), pace.factors)
    assert pace.factors["body"] == MOST_CHANGE


def test_each_kind_has_a_pace_of_its_own_and_only_those_that_are_paced_change() -> None:
    pace = Pace(["body", "head"], ["head"])
    looks = np.concatenate([bowl(1.0, 100.0), bowl(1.0, 0.7, seed=3)[:, 1:]], axis=1)
    pace.learn(looks, pace.factors)
    assert pace.factors["body"] == 1.0
    pace.slow(0.5)
    assert pace.factors["body"] == 1.0


@settings(deadline=None)
@given(rate=st.floats(0.1, 10))
def test_a_stride_at_another_rate_than_now_counts_at_its_own(rate: float) -> None:
    """As when the rates have fallen since, by their decay."""
    pace = Pace(["body"], ["body"])
    for _ in range(30):
        pace.learn(bowl(rate, 3.0), {"body": rate})
    assert pace.factors["body"] == pytest.approx(AHEAD * 3.0, rel=0.02)


def test_one_device_far_off_is_left_out() -> None:
    assert mean_and_error(np.array([1.0, 1.2, 0.8, 1.0, 500.0, 1.0]))[0] == pytest.approx(1.05)
    assert mean_and_error(np.array([3.0])) == (3.0, 3.0)
    assert mean_and_error(np.array([1.0, 3.0])) == (2.0, pytest.approx(6.0))
    spread = np.random.default_rng(0).normal(size=400)
    assert mean_and_error(spread)[1] == pytest.approx(np.sort(spread)[50:350].std(ddof=1) / np.sqrt(300), rel=1e-3)
