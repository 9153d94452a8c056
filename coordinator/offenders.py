"""Devices whose reports are too large again and again: one that is, now and then, is chance."""

from collections import deque
from collections.abc import Callable, Iterable

from zo.tempering import TEMPER

LATELY, OFTEN = 8, 4  # of so many of its reports, so many too large: with few directions each, a single one is in any run


class Offenders:
    """Names each once, and after a restart once more. note: for what a person should know."""

    def __init__(self, note: Callable[[str, str], None]) -> None:
        self._note, self._seen, self._named = note, dict[int, deque[bool]](), set[int]()

    def saw(self, devices: Iterable[int], too_large: Iterable[int]) -> None:
        """Take in a round: who reported, and whose reports were too large (zo.tempering)."""
        found = set(too_large)
        for device in devices:
            seen = self._seen.setdefault(device, deque(maxlen=LATELY))
            seen.append(device in found)
            if sum(seen) >= OFTEN and device not in self._named:
                self._named.add(device)
                self._note(
                    "tempered",
                    f"device {device} reports slopes of more than {TEMPER:g} times the others' again and again; they count as so much",
                )
