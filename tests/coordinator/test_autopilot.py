"""The autopilot looks at the right times, goes back when losses rise, pauses, and stops when nothing is gained."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from coordinator.autopilot import SOONEST, TRIES, Autopilot
from coordinator.summary import NOTHING_DONE

SELDOMEST = 8


def autopilot(least_gain: float = 0.0) -> Autopilot:
    return Autopilot(["body", "head"], ["body", "head"], SELDOMEST, least_gain)


def summary(pilot: Autopilot, loss: float, devices: int = 4, seconds: float = 60.0) -> dict[str, Any]:
    """Of an entry before which devices measured a loss, if they were asked to: device n that plus n."""
    looks = {str(device): [loss + device] for device in range(devices)} if pilot.looks else {}
    return {"looks": looks, "factors": dict(pilot.pace.factors), "device_seconds": seconds}


def fly(pilot: Autopilot, *losses: float) -> list[str]:
    """What is advised after entries at these losses."""
    return [pilot.learn(summary(pilot, loss)).act for loss in losses]


def test_it_looks_often_at_first_and_then_as_seldom_as_is_allowed() -> None:
    pilot, found = autopilot(), []
    for entry in range(40):
        if pilot.looks:
            found.append((entry, pilot.stride))
        fly(pilot, 2.0 - entry / 100)
    assert found == [(0, 0), (2, 2), (4, 2), (8, 4), (16, 8), (24, 8), (32, 8)]


def test_where_no_losses_are_asked_for_it_does_nothing() -> None:
    pilot = Autopilot(["body"], ["body"], 0, 1.0)
    assert {*fly(pilot, *[2.0 + entry for entry in range(40)])} == {"go on"}
    assert pilot.pace.factors == {"body": 1.0}


def test_losses_that_rise_twice_in_a_row_lead_back_to_the_best_entry_at_half_the_rates() -> None:
    pilot = autopilot()
    assert fly(pilot, 2.0, 2.0, 1.5, 1.5) == ["go on"] * 4  # looked at 0, 2; next at 4
    assert pilot.best_entry == 2
    assert fly(pilot, 1.9) == ["go on"]
    assert "higher than at entry 2" in pilot.told
    assert fly(pilot, 1.9) == ["go on"]
    advice = pilot.learn(summary(pilot, 1.8))  # looked at sooner: at 6
    assert (advice.act, advice.entry) == ("go back", 2)
    assert pilot.pace.factors == {"body": 0.5, "head": 0.5}


def test_a_rise_of_one_look_or_one_within_the_noise_is_forgiven() -> None:
    pilot = autopilot()
    assert {*fly(pilot, *[1.5] * 4, 1.9, 1.9, 1.5, *[1.9] * 3)} == {"go on"}
    pilot = autopilot()
    for turn in range(30):
        noisy = {str(device): [1.5 + (turn % 3 + device) % 2 - 0.01 * turn] for device in range(4)}
        assert pilot.learn({"looks": noisy if pilot.looks else {}, "device_seconds": 1.0}).act == "go on"


def test_every_device_is_compared_with_itself_whoever_takes_part() -> None:
    pilot = autopilot()
    fly(pilot, 1.5, 1.5)
    only_the_worst = {"looks": {"3": [4.5]}, "device_seconds": 1.0}
    assert pilot.learn(only_the_worst).act == "go on"
    assert "higher" not in pilot.told


def fly_with(pilot: Autopilot, who: Callable[[int], Iterable[int]], loss: Callable[[int], float], entries: int) -> list[tuple[str, int]]:
    """What is advised, where devices who(n) measure at the n-th look; and the entries that it names."""
    advices, looks = [], 0
    for entry in range(entries):
        measured = {str(device): [loss(entry) + device] for device in who(looks)} if pilot.looks else {}
        looks += pilot.looks
        advices.append(pilot.learn({"looks": measured, "device_seconds": 60.0}))
    return [(advice.act, advice.entry) for advice in advices if advice.act != "go on"]


@pytest.mark.parametrize(
    "who",
    [lambda n: [n % 4], lambda n: [n // 3], lambda n: [0] if n < 2 else [1], lambda n: range(n, n + 2)],
    ids=["one of four in turn", "each three times", "another from the third on", "overlapping"],
)
def test_a_run_whose_devices_change_goes_on_while_it_gains_and_its_best_entry_with_it(who: Callable[[int], Iterable[int]]) -> None:
    pilot = autopilot(least_gain=0.001)
    assert fly_with(pilot, who, lambda entry: 3.0 - entry / 100, 200) == []
    assert pilot.best_entry is not None
    assert pilot.best_entry > 120


def test_where_nobody_measures_twice_nothing_is_judged() -> None:
    pilot = autopilot(least_gain=10.0)
    assert fly_with(pilot, lambda n: [n], lambda entry: 1.0 + entry % 3, 200) == []


def test_a_rise_that_newcomers_alone_see_leads_back_too() -> None:
    pilot = autopilot()
    found = fly_with(pilot, lambda n: [0] if n < 3 else [1], lambda entry: 1.0 if entry < 20 else 2.0, 60)
    assert found[0] == ("go back", pilot.best_entry)


@pytest.mark.parametrize("lie", [1e12, 0.0])
def test_one_device_of_five_that_lies_neither_leads_back_nor_keeps_from_going_back(lie: float) -> None:
    def advised(lies: Callable[[int], float], honest: Callable[[int], float]) -> set[str]:
        pilot, advices = autopilot(), set()
        for entry in range(40):
            looks = {str(device): [honest(entry) + device / 10] for device in range(4)} | {"4": [lies(entry)]}
            advices.add(pilot.learn({"looks": looks if pilot.looks else {}, "device_seconds": 1.0}).act)
        return advices

    assert "go back" in advised(lambda _: lie, lambda entry: 1.0 if entry < 4 else 1.5)
    assert advised(lambda entry: lie if entry > 4 else 1.0, lambda _: 1.0) == {"go on"}


def test_after_so_many_ways_back_in_a_row_it_pauses() -> None:
    pilot, seen = autopilot(), []
    fly(pilot, 1.0, 1.0)
    for _ in range(60):
        advice = pilot.learn(summary(pilot, 2.0))
        if advice.act != "go on":
            seen.append((advice.act, advice.entry))
        if advice.act == "go back":
            pilot.learn(NOTHING_DONE | {"rolled_back_to": advice.entry})
        if advice.act == "pause":
            break
    assert seen == [("go back", 0)] * (TRIES - 1) + [("pause", 0)]
    assert "3rd time in a row" in advice.why


def test_a_better_look_makes_it_forget_the_ways_back() -> None:
    pilot, seen = autopilot(), []
    fly(pilot, 1.0, 1.0)
    loss = 1.0
    for turn in range(200):
        if turn % 20 == 19:
            loss -= 0.1
        advice = pilot.learn(summary(pilot, loss if turn % 20 > 16 else 2.0))
        seen.append(advice.act)
        if advice.act == "go back":
            pilot.learn(NOTHING_DONE | {"rolled_back_to": advice.entry})
    assert "go back" in seen


def test_it_stops_where_nothing_is_gained_and_says_what_was() -> None:
    pilot = autopilot(least_gain=0.001)
    advices = [pilot.learn(summary(pilot, 1.0)) for _ in range(60)]
    (first, *_) = (advice for advice in advices if advice.act != "go on")
    assert first.act == "stop"
    assert "gained 0.0000 +- 0.0000 nats" in first.why
    falling = autopilot(least_gain=0.001)
    assert {*fly(falling, *[2.0 - entry / 100 for entry in range(60)])} == {"go on"}


def test_without_a_least_gain_it_never_stops() -> None:
    assert {*fly(autopilot(), *[1.0] * 60)} == {"go on"}


def test_it_is_where_its_summaries_leave_it() -> None:
    pilot, again, told = autopilot(), autopilot(), []
    for entry in range(30):
        told.append(summary(pilot, 2.0 - entry / 50 if entry < 12 else 2.5))
        pilot.learn(told[-1])
    for each in told:
        again.learn(each)
    assert (again.pace.factors, again.told, again.best_entry, again.looks, again.stride) == (
        pilot.pace.factors,
        pilot.told,
        pilot.best_entry,
        pilot.looks,
        pilot.stride,
    )


@pytest.mark.parametrize("looks", [{}, {"0": [1.0]}])
def test_devices_that_measured_nothing_along_the_stride_leave_the_rates(looks: dict[str, list[float]]) -> None:
    pilot = autopilot()
    for _ in range(SOONEST + 1):
        pilot.learn({"looks": looks if pilot.looks else {}, "device_seconds": 1.0})
    assert pilot.pace.factors == {"body": 1.0, "head": 1.0}
