"""The write budget: no 24 hours see more than their share, whatever restarts and clocks do."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from edge_agent.flash import BLOCK, DAY, WriteBudget, cost

DAILY = 50e6
YEARS = 365 * DAY


@dataclass
class Device:
    """A device whose agent writes and restarts. now: seconds that have really passed. wrong: what its clock adds."""

    daily: float
    now: float = 0.0
    wrong: float = 0.0
    written: list[tuple[float, int]] = field(default_factory=list)
    record: dict[str, Any] | None = None
    recorded: float = 0.0  # what the device's clock said then

    def __post_init__(self) -> None:
        self.budget = WriteBudget(self.daily, clock=lambda: self.now)

    def write(self, size: int, reserve: float = 0.0) -> bool:
        if not self.budget.take(size, reserve):
            return False
        self.written.append((self.now, cost(size)))
        self.record, self.recorded = self.budget.record(), self.now + self.wrong
        return True

    def restart(self) -> None:
        """The record goes on; its time is shifted so that the real clock of this machine tells what the device's would."""
        if self.record is not None:
            passed = self.now + self.wrong - self.recorded
            given = self.record | {"at": time.time() - passed}
            self.budget = WriteBudget(self.daily, **given, clock=lambda: self.now)

    def most_in_a_day(self) -> int:
        """The most bytes that any 24 hours saw."""
        most = total = first = 0
        for place, (at, size) in enumerate(self.written):
            total += size
            while self.written[first][0] <= at - DAY:
                total -= self.written[first][1]
                first += 1
            most = max(most, total)
            assert first <= place
        return most


def live(device: Device, draw: random.Random, wrong_clocks: Callable[[], float], days: float = 4.0) -> None:
    while device.now < days * DAY:
        for _ in range(draw.choice([1, 1, 2, 40])):
            device.write(draw.choice([10, 100, 5_000, 300_000, 3_000_000]), draw.choice([0, 0, device.daily / 4]))
        device.now += draw.choice([0.01, 1, 60, 3600, draw.uniform(0, DAY / 2)])
        if draw.random() < 0.3:
            device.wrong = wrong_clocks()
            device.restart()


@pytest.mark.parametrize("daily", [1e5, DAILY])
@pytest.mark.parametrize("seed", range(5))
def test_no_day_sees_more_than_its_share_over_restarts(seed: int, daily: float) -> None:
    device, draw = Device(daily), random.Random(seed)
    live(device, draw, lambda: 0.0)
    assert 0.5 * daily < device.most_in_a_day() <= daily + 1


@pytest.mark.parametrize("seed", range(5))
def test_no_day_sees_more_than_its_share_where_the_clock_falls_back(seed: int) -> None:
    device, draw = Device(DAILY), random.Random(seed)
    live(device, draw, lambda: device.wrong - draw.choice([0, 1, 3600, DAY]))
    assert 0.4 * DAILY < device.most_in_a_day() <= DAILY + 1


@pytest.mark.parametrize("seed", range(5))
def test_no_day_sees_more_than_its_share_where_the_clock_leaps_to_1970_and_to_the_future(seed: int) -> None:
    device, draw = Device(DAILY), random.Random(seed)
    live(device, draw, lambda: draw.choice([0, 0, -56 * YEARS, 75 * YEARS, 2 * YEARS]))
    assert 0.4 * DAILY < device.most_in_a_day() <= DAILY + 1


def test_half_is_there_at_once_and_the_other_half_comes_over_the_day() -> None:
    device = Device(DAILY)
    assert device.budget.left == DAILY / 2
    assert device.write(int(DAILY / 2) - 2 * BLOCK)
    assert device.budget.left < 2 * BLOCK
    device.now += DAY / 4
    assert DAILY / 8 <= device.budget.left < DAILY / 8 + 2 * BLOCK
    device.now += 10 * DAY
    assert device.budget.left == DAILY / 2


@pytest.mark.parametrize(
    ("size", "counted"), [(0, BLOCK), (1, 2 * BLOCK), (BLOCK, 2 * BLOCK), (BLOCK + 1, 3 * BLOCK), (10**6, 245 * BLOCK + BLOCK)]
)
def test_whole_blocks_are_counted_and_one_for_the_folder(size: int, counted: int) -> None:
    budget = WriteBudget(DAILY, clock=lambda: 0.0)
    assert cost(size) == counted
    assert budget.take(size)
    assert budget.left == DAILY / 2 - counted


def test_a_reserve_is_left() -> None:
    budget = WriteBudget(2.0 * 10 * BLOCK, clock=lambda: 0.0)
    assert budget.take(1, reserve=8 * BLOCK)
    assert not budget.take(1, reserve=7 * BLOCK)
    assert budget.left == 8 * BLOCK
    assert budget.take(1, reserve=6 * BLOCK)
    assert budget.take(1)
    assert budget.take(3 * BLOCK)
    assert budget.left == 0
    assert not budget.take(0)


def test_what_is_refused_is_not_counted() -> None:
    budget = WriteBudget(2.0 * BLOCK, clock=lambda: 0.0)
    assert not budget.take(1)
    assert budget.left == BLOCK


def test_without_a_budget_nothing_is_ever_allowed() -> None:
    device = Device(0.0)
    device.now += 100 * DAY
    assert not device.write(0)


@pytest.mark.parametrize(
    ("away", "left"),
    [
        (0, 1e6),
        (DAY / 10, 1e6 + DAILY / 20),
        (10 * DAY, DAILY / 2),
        (-1, 1e6),
        (-50 * YEARS, 1e6),
        (56 * YEARS, 1e6),
    ],
)
def test_the_time_between_two_processes_gives_its_share_where_the_clock_can_be_believed(away: float, left: float) -> None:
    budget = WriteBudget(DAILY, 1e6, time.time() - away, clock=lambda: 0.0)
    assert left <= budget.left < left + 1000


@pytest.mark.parametrize(("left", "found"), [(-5.0, 0.0), (1e12, DAILY / 2), (float("nan"), 0.0)])
def test_an_impossible_record_is_brought_into_range(left: float, found: float) -> None:
    assert WriteBudget(DAILY, left, time.time() + 5, clock=lambda: 0.0).left == found
