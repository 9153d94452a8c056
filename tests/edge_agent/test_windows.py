"""Times of the week are read as they are meant."""

from datetime import datetime

import pytest

from edge_agent.windows import parse

MONDAY = datetime(2026, 3, 2)


def at(day: int, clock: str) -> datetime:
    hour, minute = map(int, clock.split(":"))
    return MONDAY.replace(day=2 + day, hour=hour, minute=minute)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("09:00-17:00", [(0, "09:00"), (6, "16:59")], [(0, "08:59"), (3, "17:00")]),
        ("22:00-06:00", [(0, "22:00"), (1, "05:59"), (0, "00:00")], [(0, "06:00"), (0, "21:59")]),
        ("sat-sun 00:00-24:00", [(5, "00:00"), (6, "23:59")], [(4, "23:59"), (0, "00:00")]),
        ("fri 22:00-06:00", [(4, "22:00"), (5, "05:59")], [(4, "05:00"), (5, "22:00")]),
        ("sat-mon 10:00-11:00", [(5, "10:30"), (0, "10:30")], [(1, "10:30")]),
    ],
)
def test_a_window_is_open_from_start_to_stop_on_its_days(text: str, inside: list[tuple[int, str]], outside: list[tuple[int, str]]) -> None:
    window = parse(text)
    assert all(window.open(at(*moment)) for moment in inside)
    assert not any(window.open(at(*moment)) for moment in outside)


@pytest.mark.parametrize("text", ["", "9-17", "25:00-26:00", "09:60-10:00", "xyz 09:00-10:00", "09:00-09:00", "24:00-06:00", "09:00-24:30"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        parse(text)
