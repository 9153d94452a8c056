"""From profiles and a manifest to what each device trains: a pure function, the same for the same input."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np

from coordinator.allocation import exact, greedy
from coordinator.allocation.capacity import Asked, Base, Fit, fit
from coordinator.allocation.problem import Capacity, Problem, proxy
from zo.errors import DoesNotFit
from zo.manifest import Manifest, Precision
from zo.messages import Profile

EXACT_UP_TO = 600  # pairs of a device and a block, each round of the window apart: the search takes a fraction of a second for them
NAMED = 8  # devices, in an error


class Uncovered(DoesNotFit):
    """Blocks that no device can hold."""


@dataclass(frozen=True)
class Asking:
    """A device that wants work. precision: of the base that it computes with; one is chosen for it where that is left out."""

    profile: Profile
    precision: Precision | None = None


@dataclass(frozen=True)
class Share:
    """What one device trains: these blocks, by round of the window, with that base. capacity: what it could take."""

    precision: Precision
    blocks: tuple[tuple[int, ...], ...]
    capacity: Capacity

    @property
    def active(self) -> int:
        """Most blocks in a round."""
        return max(map(len, self.blocks))


@dataclass(frozen=True)
class Allocation:
    """shares: by device. too_small: devices that cannot take a block, and why. window: rounds in which every block has its turn.

    uncovered: blocks that no device can take; they are left out. proxy: of the others, over the window. exact: whether it is proven
    the best. moves: whether blocks go round the devices instead, by `turns`, each device with as many at a time: where not all try all,
    changing costs a device nothing, and none is too slow for some.
    """

    shares: dict[int, Share]
    too_small: dict[int, str]
    window: int = 1
    uncovered: tuple[int, ...] = ()
    proxy: float = math.inf
    exact: bool = True
    moves: bool = False

    def check(self) -> None:
        """Uncovered, naming the devices that are too small or too slow, where a block is left out."""
        if not self.uncovered:
            return
        small = [f"device {device} is too small ({why})" for device, why in self.too_small.items()]
        slow = [
            f"device {device} is too slow for blocks below {share.capacity.lowest}"
            for device, share in self.shares.items()
            if share.capacity.lowest > self.uncovered[0]
        ]
        first, last = self.uncovered[0], self.uncovered[-1]
        why = "; ".join((small + slow)[:NAMED]) or "there are no devices"
        more = f"; and {len(small + slow) - NAMED} more" if len(small + slow) > NAMED else ""
        raise Uncovered(
            f"{f'block {first}' if first == last else f'blocks {first} to {last}'} can be trained by no device: {why}{more};"
            " give one more memory or a smaller base, or rounds more time (round.deadline)"
        )


def allocate(devices: Mapping[int, Asking], manifest: Manifest, asked: Asked, slack: float = 0.0) -> Allocation:
    """The best convergence proxy within every device's memory and time, then the least memory within (1 + slack) of it.

    Where the devices cannot hold all blocks in one round they take turns, over the shortest window of rounds that will do. A device
    that is too slow for all stages but the topmost takes blocks of that: reports that are late do not count, and that is all.
    ConfigError where one computes with a base that the bundle has not.
    """
    wanted = dict.fromkeys((manifest.precision, *manifest.bases, *(each.precision for each in devices.values() if each.precision)))
    bases = {precision: Base(manifest.at(precision), asked) for precision in wanted}
    fits = {device: _fit(devices[device], bases) for device in sorted(devices)}
    able = {device: found.capacity for device, found in fits.items() if found.capacity}
    too_small = {device: found.why for device, found in fits.items() if not found.capacity}
    sizes = [sum(group.size for group in manifest.groups if group.id in ids) for ids in bases[manifest.precision].blocks]
    if not able:
        return Allocation({}, too_small, uncovered=tuple(range(len(sizes))))
    bottom = min(each.lowest for each in able.values())
    problem, held = in_turns(tuple(sizes[bottom:]), [replace(each, lowest=each.lowest - bottom) for each in able.values()], slack)
    best, window = _searched(problem), len(problem.capacities) // len(able)
    held = held if best is None else best
    shares = {
        device: Share(fits[device].precision, tuple(tuple(map(int, bottom + np.flatnonzero(row))) for row in rows), able[device])
        for device, rows in zip(able, held.reshape(len(able), window, -1), strict=True)
    }
    moves = manifest.trainable != "full" and not any(each.lowest for each in able.values()) and not held.all()
    uncovered, is_exact = tuple(range(bottom)), best is not None or not slack
    return Allocation(shares, too_small, window, uncovered, proxy(sizes[bottom:], held), is_exact, moves)


def _fit(asking: Asking, bases: Mapping[Precision, Base]) -> Fit:
    return fit(asking.profile, [bases[asking.precision]] if asking.precision else list(bases.values()))


def in_turns(sizes: tuple[int, ...], capacities: Sequence[Capacity], slack: float = 0.0) -> tuple[Problem, np.ndarray]:
    """The problem with every device once for each round of the shortest window that will do, a device's beside each other; and who holds
    what by `greedy`: bool [devices * window, blocks]. A device may hold block 0.
    """
    window = -(-len(sizes) // sum(each.room(len(sizes)) for each in capacities))
    while True:
        problem = Problem(sizes, tuple(each for each in capacities for _ in range(window)), slack)
        held = greedy.solve(problem)
        if held.any(axis=0).all():
            return problem, held
        window += 1


def _searched(problem: Problem) -> np.ndarray | None:
    """The best answer where `greedy` does not prove its own: where memory is to be saved, and devices are few."""
    if not problem.slack or len(problem.capacities) * len(problem.sizes) > EXACT_UP_TO or not find_spec("scipy"):
        return None
    return exact.solve(problem)
