"""Times of the week: "22:00-06:00", or "sat-sun 00:00-24:00"."""

import re
from dataclasses import dataclass
from datetime import datetime

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True)
class Window:
    """From `start` to `stop` (minutes of a day; over midnight where stop is not above start), begun on one of `days` (0: Monday)."""

    days: frozenset[int]
    start: int
    stop: int

    def open(self, now: datetime) -> bool:
        """Whether a moment lies in it."""
        minute, today = now.hour * 60 + now.minute, now.weekday()
        if self.start < self.stop:
            return today in self.days and self.start <= minute < self.stop
        return (today in self.days and minute >= self.start) or ((today - 1) % 7 in self.days and minute < self.stop)


def parse(text: str) -> Window:
    """A window as it is written. ValueError where it is none."""
    found = re.fullmatch(r"(?:([a-z]{3})(?:-([a-z]{3}))?\s+)?(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)", text.strip().lower())
    if found:
        first, last, *clock = found.groups()
        start, stop = (int(clock[place]) * 60 + int(clock[place + 1]) for place in (0, 2))
        known = all(day is None or day in DAYS for day in (first, last))
        if known and start < 1440 and stop <= 1440 and int(clock[1]) < 60 and int(clock[3]) < 60 and start != stop:
            return Window(_days(first, last), start, stop)
    raise ValueError(f"window {text!r} must look like '22:00-06:00' or 'sat-sun 00:00-24:00'")


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    start = DAYS.index(first)
    count = (DAYS.index(last or first) - start) % 7 + 1
    return frozenset((start + place) % 7 for place in range(count))
