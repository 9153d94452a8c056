"""Whose reports are too large again and again is named once; whose are now and then, never."""

import pytest

from coordinator.offenders import LATELY, OFTEN, Offenders


@pytest.fixture
def named() -> list[str]:
    return []


@pytest.fixture
def offenders(named: list[str]) -> Offenders:
    return Offenders(lambda kind, text: named.append(f"{kind}: {text}"))


def test_a_device_that_does_it_every_time_is_named_after_a_few_rounds_and_not_again(offenders: Offenders, named: list[str]) -> None:
    for number in range(1, 50):
        offenders.saw([0, 1, 2], [1])
        assert len(named) == (number >= OFTEN)
    assert named[0].startswith("tempered: device 1 ")


def test_a_device_that_begins_late_or_pauses_between_is_named_as_soon(offenders: Offenders, named: list[str]) -> None:
    for _ in range(100):
        offenders.saw([0], [])
    for _ in range(OFTEN):
        offenders.saw([0], [0])
        offenders.saw([0], [])
    assert len(named) == 1


def test_chance_names_nobody(offenders: Offenders, named: list[str]) -> None:
    for number in range(200):
        offenders.saw(range(8), [number % 8] if number % 3 == 0 else [])
    assert named == []


def test_only_a_devices_own_reports_count(offenders: Offenders, named: list[str]) -> None:
    for _ in range(OFTEN):
        offenders.saw([5], [5])
        for _ in range(LATELY):
            offenders.saw([1, 2], [])
    assert len(named) == 1
