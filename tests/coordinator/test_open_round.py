"""An open round is due at its goal, or at its deadline with its minimum, and says what it still lacks."""

import pytest
from local_coordinator import report
from made_rounds import Clock

from coordinator.config import Round
from coordinator.open_round import OpenRound


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(clock: Clock, limits: Round, reports: int) -> OpenRound:
    made = OpenRound(7, limits, clock)
    made.reports.update({device: report(device, 7) for device in range(reports)})
    return made


def test_it_is_due_at_its_goal_whatever_the_time(clock: Clock) -> None:
    limits = Round(3, 2, 30.0)
    assert [opened(clock, limits, count).due for count in range(5)] == [False, False, False, True, True]


def test_it_is_due_at_its_deadline_with_its_minimum_and_never_below_it(clock: Clock) -> None:
    enough, too_few = (opened(clock, Round(3, 2, 30.0), count) for count in (2, 1))
    clock.now += 29.9
    assert not enough.due
    clock.now += 0.1
    assert (enough.due, enough.overdue, enough.waited) == (True, False, pytest.approx(30.0))
    clock.now += 1e9
    assert (too_few.due, too_few.overdue) == (False, True)


def test_it_says_what_it_lacks(clock: Clock) -> None:
    made = opened(clock, Round(3, 2, 30.0), 1)
    clock.now += 10
    assert made.lacks == "round 7 has 1 of 3 reports; 2 are enough in 20 s"
    assert not made.overdue
    clock.now += 21
    assert made.lacks == "round 7 has 1 reports and needs 2; its deadline has passed"
    assert made.overdue
