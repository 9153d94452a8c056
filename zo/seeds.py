"""Which seeds a device tries in a round: its own, or slots of a pool that the whole run shares (arXiv 2312.06353, FedKSeed)."""

from functools import lru_cache

import numpy as np
from numpy.random import Philox

SEEDS_PER_ROUND = 2**32
MOST_DEVICES = 2**20  # times 4096 directions: the seeds of a round
MOST_ROUNDS = 2**29  # so that all their seeds are below ALONE
ALONE = 2**62  # where the seeds of a device begin that trains without a fleet
DEALING = 2  # the highest word of the counter; see also zo.estimators.ROUNDING
MOST_POOL = 2**20


def first_seed(run_key: int, round_number: int, device: int, count: int, pool: int = 0) -> int:
    """Where the `count` consecutive seeds of a device in a round begin.

    pool: 0 gives seeds that no other device or round has; else they are one of pool // count slots, dealt anew every
    round, so that a fold never has more than `pool` steps a group.
    """
    if not pool:
        return round_number * SEEDS_PER_ROUND + device * count
    slots = pool // count
    return int(_dealt(run_key, round_number, slots, device // slots)[device % slots]) * count


@lru_cache(maxsize=8)
def _dealt(run_key: int, round_number: int, slots: int, turn: int) -> np.ndarray:
    """The slots in the order in which devices get them. turn: how often all were dealt before in this round."""
    words = Philox(key=np.array([run_key << 32, round_number], np.uint64), counter=np.array([0, 0, turn, DEALING], np.uint64))
    return np.argsort(words.random_raw(slots), kind="stable")
