"""How to train, whoever leads: the settings that a fleet's run and a device alone have in common."""

import math
from dataclasses import dataclass

from zo.config import setting


@dataclass(frozen=True)
class Probe:
    """What one device does in one round."""

    directions: int = setting("directions a device tries a round, each a pair of probes", 8)
    examples: int = setting("examples in the batch of a probe", 8)
    log2_eps_body: int | None = setting("probe size of the body is 2**this; the bundle's calibration decides if it is left out", None)
    log2_eps_head: int | None = setting("the same for the head", None)

    def __post_init__(self) -> None:
        if not 1 <= self.directions <= 4096:
            raise ValueError(f"directions = {self.directions} must be between 1 and 4096")
        if not 1 <= self.examples <= 4096:
            raise ValueError(f"examples = {self.examples} must be between 1 and 4096")


@dataclass(frozen=True)
class Rate:
    """How far a round moves the parameters."""

    body: float | None = setting("every direction moves the body by this times its probe, for a loss difference as at calibration", None)
    head: float | None = setting("the same for the head; left out, both are 0.2 / sqrt(classes), or 0.3 for language modelling", None)
    final: float = setting("share of the rate left in the last round; it falls linearly", 0.1)

    def __post_init__(self) -> None:
        for value in (self.body, self.head, self.final):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"a rate of {value} is not a positive number")
