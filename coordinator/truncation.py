"""Which prefix of its adapters a device trains in a step (PreLort, arXiv 2606.15963): so that every prefix becomes a model of its own."""

from collections.abc import Sequence

import numpy as np

from zo import ranks
from zo.errors import ConfigError
from zo.manifest import Manifest

STREAM = 0x7A  # keeps these draws apart from others of the run key


def drawn(manifest: Manifest, probabilities: Sequence[float], round_number: int, device: int, rank: int) -> int:
    """The rank of a step of a device whose own rank this is (0: the largest); 0 where the bundle has no ranks.

    In every other round (of each device) it is the device's own; else drawn among the bundle's ranks up to that, with these
    probabilities (one a rank; evenly where there are none), the device's own where all of those are 0. The same round and device
    draw the same. ConfigError where the bundle has no such rank.
    """
    ranks.refuse(manifest, rank)
    among = [each for each in manifest.ranks if not rank or each <= rank]
    if not among or (round_number + device) % 2 == 0:
        return among[-1] if among else 0
    weights = np.array(probabilities[: len(among)] or [1.0] * len(among))
    if not weights.any():
        return among[-1]
    generator = np.random.default_rng([manifest.run_key, STREAM, round_number, device])
    return int(generator.choice(among, p=weights / weights.sum()))


def check(manifest: Manifest, probabilities: Sequence[float]) -> None:
    """ConfigError unless there is one for each of the bundle's ranks, or none."""
    if probabilities and len(probabilities) != len(manifest.ranks):
        raise ConfigError(
            f"ranks.probabilities = {list(probabilities)} must be one for each of the bundle's ranks {list(manifest.ranks)}, or none"
        )
