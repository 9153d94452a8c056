"""Fuzzing: broken input for a parser, made by changing what is right; it must answer, or refuse in its own way, and soon.

Targets are plain functions of bytes, so that tests drive them with hypothesis as well.
"""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from zo.errors import UserError

SLOW = 5.0  # seconds; an input that takes longer is a failure


@dataclass(frozen=True)
class Target:
    """A parser. right: inputs that it takes. refusals: what it may raise."""

    name: str
    right: tuple[bytes, ...]
    parse: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...]

    def failure(self, data: bytes) -> str:
        """What went wrong with an input; empty where nothing did."""
        began = time.monotonic()
        try:
            self.parse(data)
        except self.refusals as error:
            if "\n" in str(error) and isinstance(error, UserError):
                return f"more than one line: {error}"
        except Exception as error:  # noqa: BLE001  that is what is looked for
            return f"{type(error).__name__}: {error}"
        return f"took {time.monotonic() - began:.1f} s" if time.monotonic() - began > SLOW else ""


def attack_all(targets: Iterable[Target], seed: int, seconds: float) -> dict[str, Any]:
    """Inputs tried, "by_target", with so many seconds for all; and, by target, what "failed"."""
    every, counts, failed = list(targets), {}, {}
    for target in every:
        counts[target.name], found = attack(target, random.Random(seed), seconds / len(every))
        if found:
            failed[target.name] = found
    return {"by_target": counts, "failed": failed}


def attack(target: Target, draw: random.Random, seconds: float) -> tuple[int, str]:
    """How many inputs were tried, and the first failure with its input."""
    count, until, known = 0, time.monotonic() + seconds, list(target.right)
    while time.monotonic() < until:
        data = changed(draw.choice(known), draw, known)
        count += 1
        if failure := target.failure(data):
            return count, f"{failure} on {data[:200].hex()}"
    return count, ""


def changed(data: bytes, draw: random.Random, others: Iterable[bytes]) -> bytes:
    """The data with one to four changes: bits, bytes, pieces cut, doubled, or taken from elsewhere; now and then only noise."""
    if draw.random() < 0.02:
        return draw.randbytes(draw.randint(0, 200))
    made = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randint(0, len(made))
        length = min(draw.choice([1, 1, 2, 4, 8, 64]), len(made) - place)
        kind = draw.randrange(7)
        if kind == 0 and place < len(made):
            made[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            made[place : place + length] = draw.randbytes(length)
        elif kind == 2:
            del made[place : place + length]
        elif kind == 3:
            made[place:place] = made[place : place + length] * draw.choice([1, 2, 100])
        elif kind == 4:
            made[place : place + length] = draw.choice([b"\xff", b"\x00", b"\x80"]) * length
        elif kind == 5:
            other = draw.choice(list(others))
            made[place:place] = other[draw.randint(0, len(other)) :][: draw.choice([1, 8, 64])]
        else:
            made[place:place] = draw.choice([b"-1", b"1e999", b"NaN", b"9" * 30, b'"', b"{", b"[" * 200, b"null", b"\n", b"../"])
    return bytes(made)
