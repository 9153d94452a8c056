"""From profiles and a manifest to what each device trains: a pure function, the same for the same input."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from coordinator.allocation import exact, greedy
from coordinator.allocation.capacity import Asked, Fit, blocks, bytes_needed, fit, runs, seconds, stages_of
from coordinator.allocation.problem import Problem, proxy
from zo.errors import ConfigError
from zo.manifest import Manifest, Precision
from zo.messages import Profile

EXACT_UP_TO = 600  # pairs of a device and a block, rounds of the window counted apart: what the search takes a fraction of a second for
NAMED = 8  # devices, in an error


class Uncovered(ConfigError):
    """Blocks that no device can hold. blocks: their numbers."""

    def __init__(self, text: str, missing: tuple[int, ...]) -> None:
        super().__init__(text)
        self.blocks = missing


@dataclass(frozen=True)
class Asking:
    """A device that wants work. precision: of the base that it computes with; one is chosen for it if that is left out."""

    profile: Profile
    precision: Precision | None = None


@dataclass(frozen=True)
class Share:
    """What one device does. blocks: that it tries, by round of the window. need: bytes of the model at the peak. seconds: of a round.

    branches: side by side in a run. examples: in a run.
    """

    precision: Precision
    blocks: tuple[tuple[int, ...], ...]
    branches: int
    examples: int
    need: int
    seconds: float

    @property
    def active(self) -> int:
        """Most blocks in a round."""
        return max(map(len, self.blocks))


@dataclass(frozen=True)
class Allocation:
    """shares: by device. too_small: devices that get none, and why. window: rounds in which every block is tried.

    proxy: of the window. exact: whether it is the best, as against what moves came to.
    """

    shares: dict[int, Share]
    too_small: dict[int, str]
    window: int
    proxy: float
    exact: bool


def allocate(devices: Mapping[int, Asking], manifest: Manifest, asked: Asked, slack: float = 0.0, most_window: int | None = None) -> Allocation:
    """The best convergence proxy within every device's memory and time, then the least memory within (1 + slack) of it.

    Where the devices cannot hold all blocks in one round they take turns, over the shortest window that will do, of at most
    `most_window` rounds (as many as there are blocks, if left out). Uncovered names the devices that are too small or too slow.
    """
    held_in, order = blocks(manifest), sorted(devices)
    fits = {device: fit(devices[device].profile, _bases(devices[device], manifest), manifest, asked) for device in order}
    able = [device for device in order if fits[device].capacity]
    too_small = {device: fits[device].why for device in order if not fits[device].capacity}
    capacities = [capacity for device in able if (capacity := fits[device].capacity)]
    sizes = tuple(sum(group.size for group in manifest.groups if group.id in ids) for ids in held_in)
    lowest = min((each.lowest for each in capacities), default=len(sizes))
    limit = len(sizes) if most_window is None else most_window
    room = sum(min(each.most, len(sizes) - each.lowest) for each in capacities)
    for window in range(max(1, math.ceil(len(sizes) / room)), limit + 1) if room and not lowest else ():
        problem = Problem(sizes, tuple(each for each in capacities for _ in range(window)), slack)
        held = greedy.solve(problem)
        if held.any(axis=0).all():
            best = _searched(problem)
            held = held if best is None else best
            shares = {
                device: _share(rows, fits[device], devices[device].profile, manifest, asked)
                for device, rows in zip(able, held.reshape(len(able), window, len(sizes)), strict=True)
            }
            return Allocation(shares, too_small, window, proxy(sizes, held), best is not None)
    missing = tuple(range(lowest)) if lowest or not room else tuple(range(len(sizes)))
    raise Uncovered(_told(missing, fits, len(sizes), room, limit), missing)


def _bases(asking: Asking, manifest: Manifest) -> tuple[Precision, ...]:
    if asking.precision:
        return (asking.precision,)
    return (manifest.precision, *(each for each in manifest.bases if each != manifest.precision))


def _searched(problem: Problem) -> np.ndarray | None:
    small = len(problem.capacities) * len(problem.sizes) <= EXACT_UP_TO
    return exact.solve(problem) if small and find_spec("scipy") else None


def _share(rows: np.ndarray, found: Fit, profile: Profile, manifest: Manifest, asked: Asked) -> Share:
    base, stages = manifest.at(found.precision), stages_of(manifest)
    turns = tuple(tuple(map(int, np.flatnonzero(row))) for row in rows)
    active = max(map(len, turns))
    branches, examples = runs(profile, base, active, asked)
    takes = max(seconds(profile, base, stages[turn[0]], asked) for turn in turns)
    needed = bytes_needed(base, active, branches * examples * base.task.max_tokens) if base.model else 0
    return Share(found.precision, turns, branches, examples, needed, takes)


def _told(missing: tuple[int, ...], fits: Mapping[int, Fit], count: int, room: int, limit: int) -> str:
    """Which blocks no device can hold, and why the devices cannot."""
    small = [f"device {device} is too small ({each.why})" for device, each in fits.items() if not each.capacity]
    slow = [
        f"device {device} is too slow for blocks below {each.capacity.lowest}"
        for device, each in fits.items()
        if each.capacity and each.capacity.lowest > min(missing)
    ]
    if room and not slow:
        return (
            f"the devices hold {room} blocks in a round, and {count} blocks must be covered within {limit} rounds;"
            " give them more memory, or let more devices join" + "".join(f"; {each}" for each in small[:NAMED])
        )
    which = f"block {missing[0]}" if len(missing) == 1 else f"blocks {missing[0]} to {missing[-1]}"
    why = "; ".join((small + slow)[:NAMED]) or "there are no devices"
    more = f"; and {len(small + slow) - NAMED} more" if len(small + slow) > NAMED else ""
    return f"{which} of {count} can be tried by no device: {why}{more}; give one more memory (or round.deadline more time), or a smaller base"
