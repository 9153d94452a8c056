"""Every policy with sensors that a test sets: when it objects, in which words, and when it lets go."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from edge_agent.flash import DAY, DailyBudget, WriteBudget, cost
from edge_agent.manners import Policy
from edge_agent.manners.policies import CALM, Flash, Heat, Hours, Others, Power, Throttling, Traffic
from edge_agent.manners.policy import seldom
from edge_agent.sensors import Battery, Throttle
from edge_agent.windows import parse


@dataclass
class Fake:
    """A sensor, and a clock."""

    value: Any = None
    now: float = 0.0
    reads: int = 0

    def read(self) -> Any:
        self.reads += 1
        return self.value

    def clock(self) -> float:
        return self.now


def why(policy: Policy) -> str:
    objection = policy.objection()
    return objection.reason if objection else ""


def series(policy: Policy, fake: Fake, *values: Any) -> list[bool]:
    """Whether it objects at these values of the sensor, one after the other."""
    found = []
    for fake.value in values:
        found.append(bool(why(policy)))
    return found


def test_heat_pauses_until_it_has_cooled_down() -> None:
    fake = Fake()
    policy = Heat(fake.read, 80, 70)
    assert series(policy, fake, None, 20, 79.9, 80, 79, 70, 69.9, 79) == [False, False, False, True, True, True, False, False]
    fake.value = 85.4
    assert why(policy) == "it is hot: 85 °C; going on below 70 °C"


def test_a_throttled_board_pauses_until_it_has_run_at_full_speed_for_a_while() -> None:
    fake = Fake(Throttle(0b0101))
    policy = Throttling(fake.read, fake.clock)
    assert why(policy) == "the board is held back: too little voltage, throttled"
    fake.value, fake.now = Throttle(0x50000), 1.0  # has been, since it was started
    assert why(policy) != ""
    fake.now = CALM + 1
    assert why(policy) == ""
    fake.value = None
    assert why(policy) == ""


def test_a_low_battery_pauses_until_mains_or_a_better_charge() -> None:
    fake = Fake()
    policy = Power(fake.read, 50)
    charges = (90, 51, 50, 54, 55.1, 54)
    assert series(policy, fake, *(Battery(each, False) for each in charges)) == [False, False, True, True, False, False]
    fake.value = Battery(12, False)
    assert why(policy) == "on battery, 12 % left; going on at mains, or above 55 %"
    fake.value = Battery(12, True)
    assert why(policy) == ""
    fake.value = None
    assert why(policy) == ""


def test_at_a_hundred_per_cent_only_mains_will_do() -> None:
    fake = Fake(Battery(100, False))
    policy = Power(fake.read, 100)
    assert why(policy) == "on battery; waiting for mains"
    fake.value = Battery(100, True)
    assert why(policy) == ""


def test_others_that_need_the_processor_are_waited_for() -> None:
    fake = Fake(0.8)
    policy = Others(fake.read, 0.5, fake.clock)
    assert why(policy) == "others need the processor (80% of it)"
    fake.value, fake.now = 0.1, CALM - 1
    assert why(policy) != ""
    fake.now = CALM
    assert why(policy) == ""


def test_outside_its_hours_it_rests() -> None:
    fake = Fake(datetime(2026, 3, 2, 12, 0))
    policy = Hours([parse("22:00-06:00"), parse("sat-sun 00:00-24:00")], fake.read)
    assert why(policy) == "Mon 12:00 is outside the hours allowed"
    fake.value = datetime(2026, 3, 2, 23, 0)
    assert why(policy) == ""
    fake.value = datetime(2026, 3, 7, 12, 0)
    assert why(policy) == ""
    assert why(Hours([], fake.read)) == ""


def test_a_metered_line_rests_until_a_tenth_of_its_bytes_is_back() -> None:
    fake = Fake()
    budget = DailyBudget(20e6, clock=fake.clock)
    policy = Traffic(budget)
    budget.spend(9.9e6)
    assert why(policy) == ""
    budget.spend(0.2e6)
    assert why(policy) == "the bytes of the network are spent (10.1 MB so far); they come back with time"
    fake.now = 0.05 * DAY
    assert why(policy) != ""
    fake.now = 0.12 * DAY
    assert why(policy) == ""


def test_spent_bytes_of_the_disk_are_told_but_nothing_rests() -> None:
    fake = Fake()
    budget = WriteBudget(2e6, clock=fake.clock)
    policy = Flash(budget, lambda: cost(10_000))
    assert policy.objection() is None
    budget.take(990_000)
    objection = policy.objection()
    assert objection is not None
    assert (objection.rest, objection.reason) == (False, "the bytes of the disk are spent; nothing is saved until some are back")
    fake.now = DAY / 10
    assert policy.objection() is None


def test_a_slow_sensor_is_read_seldom() -> None:
    fake = Fake(1)
    read = seldom(fake.read, 2.0, fake.clock)
    assert [read(), read()] == [1, 1]
    fake.value, fake.now = 2, 1.9
    assert (read(), fake.reads) == (1, 1)
    fake.now = 2.0
    assert (read(), fake.reads) == (2, 2)
