"""Settings of a run: run.toml, flags and environment (EDGE_COORDINATOR_...)."""

import math
from dataclasses import dataclass

from zo.config import setting
from zo.estimators import Grid


@dataclass(frozen=True)
class Round:
    """When a round closes: at `goal` reports, or at the deadline with at least `minimum`."""

    goal: int = setting("reports that close a round at once", 1)
    minimum: int = setting("reports without which a round stays open past its deadline", 1)
    deadline: float = setting("seconds after which `minimum` reports are enough", 60.0)

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.goal:
            raise ValueError(f"minimum = {self.minimum} must be between 1 and goal = {self.goal}")
        if not 0 < self.deadline < math.inf:
            raise ValueError("deadline must be a positive number of seconds")


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


@dataclass(frozen=True)
class Evaluation:
    """Measuring the global model on the operator's own labelled files."""

    validation: str = setting("JSONL by which the best entry is chosen", "")
    test: str = setting("JSONL read once, when the run is over", "")
    every: int = setting("rounds between evaluations", 10)
    most: int = setting("validation examples used, drawn once; 0 uses all", 256)
    threads: int = setting("threads of the evaluating process", 1)

    def __post_init__(self) -> None:
        if self.every < 1 or self.threads < 1 or self.most < 0:
            raise ValueError("every and threads must be at least 1, most at least 0")


@dataclass(frozen=True)
class RunConfig:
    """One training job of a fleet."""

    bundle: str = setting("folder made by 'edge-coordinator bundle build'")
    store: str = setting("SQLite file with runs and ledgers; made if it does not exist", "edge-zo.sqlite")
    name: str = setting("name of the run; an existing run of that name goes on", "run")
    listen: str = setting("address and port to serve on", "127.0.0.1:7600")
    insecure_loopback: bool = setting("serve plaintext, on a loopback address only; nothing else is supported yet", False)
    rounds: int = setting("rounds until the run is over", 100)
    held_out_every: int = setting("rounds between reports of the devices' held-out losses", 5)
    digest_every: int = setting("rounds between checks of the devices' digests", 10)
    log2_levels: int = setting("reports are integers of 2**-this nats", 14)
    clip: float = setting("reports are clipped at +- this many nats", 2.0)
    round: Round = setting("", Round())
    probe: Probe = setting("", Probe())
    rate: Rate = setting("", Rate())
    evaluation: Evaluation = setting("", Evaluation())

    def __post_init__(self) -> None:
        for name in ("rounds", "held_out_every", "digest_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        Grid(self.log2_levels, self.clip)
