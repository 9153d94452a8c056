"""Settings of a run: run.toml, flags and environment (EDGE_COORDINATOR_...)."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zo.config import MOST_THREADS, setting
from zo.estimators import Grid
from zo.recipe import Aggregation, Algorithm, Probe, Rate, Split
from zo.seeds import MOST_POOL, MOST_ROUNDS
from zo.structure import encodable
from zo.tiles import TILE


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
class Seeds:
    """Which directions the fleet tries."""

    pool: int = setting("all rounds share this many seeds, so that catching up stays short; 0 gives every round its own", 0)
    shared: bool = setting("all devices try the same directions in a round: noisier, and what 'median' needs", False)

    def __post_init__(self) -> None:
        if not 0 <= self.pool <= MOST_POOL:
            raise ValueError(f"pool = {self.pool} must be between 0 and {MOST_POOL}")


@dataclass(frozen=True)
class Ranks:
    """Which prefix of its adapters a device trains, where the bundle has several ranks (PreLort, arXiv 2606.15963; docs/ranks.md)."""

    probabilities: tuple[float, ...] = setting(
        "of each of the bundle's ranks up to the device's own, in every other round; in the others it trains all that it holds;"
        " left out, evenly; [0, 0, 0, 1] of four ranks never shortens",
        (),
    )

    def __post_init__(self) -> None:
        if not all(0 <= each < math.inf for each in self.probabilities):
            raise ValueError(f"probabilities = {list(self.probabilities)} must not be negative")


@dataclass(frozen=True)
class Evaluation:
    """Measuring the global model on the operator's own labelled files."""

    validation: str = setting("JSONL by which the best entry is chosen", "")
    test: str = setting("JSONL read once, when the run is over", "")
    every: int = setting("rounds between evaluations", 10)
    most: int = setting("validation examples used, drawn once; 0 uses all", 256)
    threads: int = setting("threads of the evaluating process", 1)

    def __post_init__(self) -> None:
        if self.every < 1 or self.most < 0:
            raise ValueError("every must be at least 1, most at least 0")
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads = {self.threads} must be 1 to {MOST_THREADS}")


@dataclass(frozen=True)
class TileSettings:
    """Committed entries as static files under a signed head."""

    folder: str = setting("folder to write them to, for any web server to hand out; none are written if it is left out", "")
    listen: str = setting("address and port to hand them out on as well, by a small server", "")
    every: float = setting("seconds between heads", 5.0)

    def __post_init__(self) -> None:
        if self.listen and not self.folder:
            raise ValueError(f"listen = {self.listen!r} needs a folder")
        if not 0 <= self.every < math.inf:
            raise ValueError(f"every = {self.every} must be a number of seconds, and not negative")


@dataclass(frozen=True)
class Limits:
    """What one device may ask of the coordinator."""

    rate: float = setting("calls a second, in the long run; 16 KiB of a request weigh as much as a call", 50.0)
    burst: float = setting("calls that may be saved up for", 500.0)
    at_once: int = setting("calls under way at once", 16)

    def __post_init__(self) -> None:
        if not (0 < self.rate < math.inf and 100 <= self.burst < math.inf and self.at_once >= 1):
            raise ValueError("rate must be positive, burst at least 100, at_once at least 1")


@dataclass(frozen=True)
class RunConfig:
    """One training job of a fleet."""

    bundle: str = setting("folder made by 'edge-coordinator bundle build'")
    store: str = setting("SQLite file with runs and ledgers; made if it does not exist", "edge-zo.sqlite")
    name: str = setting("name of the run; an existing run of that name goes on", "run")
    listen: str = setting("address and port to serve on", "127.0.0.1:7600")
    fleet: str = setting("folder made by 'edge-coordinator init': who may take part, and the certificates", "edge-zo-fleet")
    certificate_days: float = setting("days that a device's certificate is valid; it is renewed when a third is left", 365.0)
    insecure_loopback: bool = setting("serve plaintext, without certificates, on a loopback address only", False)
    rounds: int = setting("rounds until the run is over", 100)
    held_out_every: int = setting("most rounds between reports of the devices' held-out losses; 0 never asks, and leaves the rates", 16)
    least_gain: float = setting("nats a minute of a device under which the run is over; 0 goes on to the last round", 0.001)
    digest_every: int = setting("rounds between checks of the devices' digests", 10)
    keep_entries: int = setting("last entries whose terms are kept; older ones are folded into a checkpoint; 0 keeps all", 0)
    log2_levels: int = setting("reports are integers of 2**-this nats", 14)
    clip: float = setting("reports are clipped at +- this many nats", 2.0)
    limits: Limits = setting("", Limits())
    round: Round = setting("", Round())
    algorithm: Algorithm = setting(
        "'fedspzo' tries parts of the model apart where that is cheaper, and so does 'auto'; 'mezo' all of it at once", "auto"
    )
    aggregation: Aggregation = setting(
        "how reports become one: 'mean', or 'trimmed-mean' or 'median', which a few dishonest devices cannot lead astray", "mean"
    )
    blocks: Literal["auto", "all"] = setting(
        "'auto' lets each device train the blocks that its memory and the deadline allow, all where it can; 'all' asks all of everyone",
        "auto",
    )
    blocks_slack: float = setting("how much slower by the blocks' convergence proxy the fleet may be to take less memory; 0.05: 5 %", 0.0)
    probe: Probe = setting("", Probe())
    split: Split = setting("", Split())
    rate: Rate = setting("", Rate())
    ranks: Ranks = setting("", Ranks())
    seeds: Seeds = setting("", Seeds())
    evaluation: Evaluation = setting("", Evaluation())
    tiles: TileSettings = setting("", TileSettings())

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable() or not encodable(self.name):
            raise ValueError(f"name = {self.name!r} must be a text of one line that is not empty")
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise ValueError(f"rounds = {self.rounds} must be 1 to {MOST_ROUNDS}")
        if self.digest_every < 1:
            raise ValueError(f"digest_every = {self.digest_every} must be at least 1")
        if not 0 < self.certificate_days < 36525:
            raise ValueError(f"certificate_days = {self.certificate_days} must be positive, and at most a century")
        if self.aggregation != "mean" and not self.seeds.shared:
            raise ValueError(f"aggregation = {self.aggregation!r} compares devices along the same directions; it needs seeds.shared = true")
        for name in ("keep_entries", "held_out_every", "least_gain"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")
        if not 0 <= self.blocks_slack < 10:
            raise ValueError(f"blocks_slack = {self.blocks_slack} must be from 0 to below 10")
        if self.tiles.folder and 0 < self.keep_entries < 2 * TILE:
            raise ValueError(f"keep_entries = {self.keep_entries} must be 0, or at least {2 * TILE}, where tiles are written")
        if self.evaluation.validation and 0 < self.keep_entries < 2 * self.evaluation.every:
            raise ValueError(f"keep_entries = {self.keep_entries} must be 0, or at least twice evaluation.every = {self.evaluation.every}")
        Grid(self.log2_levels, self.clip)


def place(name: str) -> Path:
    """Where commands beside `serve` look for what a setting of this name holds: "store" or "fleet"."""
    return Path(os.environ.get(f"EDGE_COORDINATOR_{name.upper()}") or getattr(RunConfig, name))
