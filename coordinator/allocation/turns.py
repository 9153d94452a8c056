"""Blocks that go round the devices: each device has every block in turn, those where the loss slopes most more often."""

from collections.abc import Mapping, Sequence

import numpy as np

LEAST = 0.25  # of the turns that a block would have evenly: its slopes are to be looked at again
GOLDEN = (5**0.5 - 1) / 2  # multiples of it leave no gap for long: turns of rounds, and of devices, lie evenly between each other
WHOLE = 1 << 32  # a turn, in whole numbers, which add up


def by_block(blocks: Sequence[Sequence[int]], slopes: Mapping[int, float]) -> list[float]:
    """Mean squared slope of each block, from those of its groups that are known (no device may bear its last rank slices); where none
    is yet, that of the other blocks.
    """
    found = [sum(slopes[group] for group in groups if group in slopes) if slopes.keys() & set(groups) else None for groups in blocks]
    known = [each for each in found if each is not None]
    if not any(known):
        return [1.0] * len(found)
    return [sum(known) / len(known) if each is None else each for each in found]


def shares(slopes: Sequence[float], count: int) -> np.ndarray:
    """Part of its rounds in which a device that tries `count` blocks at a time tries each: float64 [blocks], at most 1, `count` in all.

    They go with the mean squared `slopes`, as coordinates are drawn in proportion to their own bound on the curvature (Nesterov,
    "Efficiency of coordinate descent methods", 2012), but for LEAST.
    """
    weights = np.maximum(slopes, LEAST * np.mean(slopes))
    found = np.zeros(len(weights))
    while not (always := found >= 1).all():
        rest = (count - always.sum()) * weights / weights[~always].sum()
        if not (more := ~always & (rest >= 1)).any():
            return np.where(always, 1.0, rest)
        found[more] = 1.0
    return found


def turn(slopes: Sequence[float], count: int, round_number: int, device: int) -> tuple[int, ...]:
    """The `count` blocks that a device tries in a round: a systematic sample, so that each has its part of any few rounds, and of the
    devices of any round.
    """
    often = shares(slopes, count)
    tried = often >= 1
    start = int((round_number + device) * GOLDEN % 1 * WHOLE)
    ends = start + np.rint(np.cumsum(often[~tried]) * WHOLE).astype(np.int64)
    ends[-1:] = start + (count - int(tried.sum())) * WHOLE
    tried[~tried] = np.diff(ends // WHOLE, prepend=0) > 0
    return tuple(map(int, np.flatnonzero(tried)))
