"""Which way of catching up takes the least time: pure functions of what is offered and what was measured."""

import time

import numpy as np

from zo import kernel
from zo.messages import Offer
from zo.parameters import Parameters

SAMPLE_SEEDS, SAMPLE_VALUES = 256, 1 << 14  # of the measurement of replay speed


def cheapest(offers: tuple[Offer, ...], link_speed: float, replay_speed: float) -> Offer:
    """The offer that takes the least time. link_speed: bytes a second. replay_speed: signs of directions a second."""
    return min(offers, key=lambda offer: seconds(offer, link_speed, replay_speed))


def seconds(offer: Offer, link_speed: float, replay_speed: float) -> float:
    """What an offer takes: fetching it, and replaying it."""
    return offer.size / link_speed + offer.signs / replay_speed


def replay_speed(parameters: Parameters) -> float:
    """Signs of directions that this processor adds up in a second, measured on the largest group."""
    group = max(parameters.groups.values(), key=lambda group: group.size)
    seeds, steps = np.arange(SAMPLE_SEEDS, dtype=np.uint64), np.ones((1, SAMPLE_SEEDS), np.int64)
    stop = min(group.size, SAMPLE_VALUES)
    began = time.perf_counter()
    kernel.combine(parameters.run_key, group.id, seeds, steps, 0, stop)
    return SAMPLE_SEEDS * stop / (time.perf_counter() - began)
