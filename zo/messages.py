"""What device and coordinator say to each other, as dataclasses. Units and meaning: proto/edge_zo/v1/*.proto."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np

from zo.ledger import Entry
from zo.manifest import Precision
from zo.plan import Shape, WorkPlan

PROTOCOL = 1

EnergySource = Literal["none", "rapl", "ina3221", "battery", "model"]


@dataclass(frozen=True)
class EnrolRequest:
    """A certificate is wanted for this public key on P-256: its coordinates, 32 bytes each."""

    x: bytes
    y: bytes


@dataclass(frozen=True)
class EnrolReply:
    """The certificate (DER), and when it runs out: seconds since 1970."""

    certificate: bytes
    expires: int


@dataclass(frozen=True)
class JoinRequest:
    """Enter the run, or come back to it."""

    protocol: int
    device_id: int


@dataclass(frozen=True)
class JoinReply:
    """The run, the device's number in it, and the bundle it works with."""

    run: int
    device: int
    run_name: str
    bundle_digest: bytes
    bundle_files: tuple[str, ...]
    genesis: bytes
    tiles_key: bytes = b""


@dataclass(frozen=True)
class FileRequest:
    """A piece of a bundle file, from `offset` on."""

    run: int
    file: int
    offset: int


@dataclass(frozen=True)
class FileChunk:
    """The piece, and the size of the whole."""

    content: bytes
    size: int


class Way(IntEnum):
    """How a device comes to the fleet's parameters."""

    WAY_UNSPECIFIED = 0
    ENTRIES = 1
    FOLD = 2
    SNAPSHOT = 3


@dataclass(frozen=True)
class CatchUpRequest:
    """What would it cost a device at this entry to come to the fleet's parameters? chain: `ledger.short` of its head."""

    run: int
    device: int
    entry: int
    chain: int


@dataclass(frozen=True)
class Offer:
    """One way: the entry it leads to, its bytes, the signs of directions to be made, and the digest reached."""

    way: Way
    entry: int
    size: int
    signs: int
    digest: bytes


@dataclass(frozen=True)
class CatchUpReply:
    """All ways there are; none where nothing is missing."""

    offers: tuple[Offer, ...] = ()


@dataclass(frozen=True)
class CheckpointRequest:
    """A piece of an offered checkpoint, from `offset` on; answered by a FileChunk."""

    run: int
    way: Way
    entry: int
    offset: int


@dataclass(frozen=True)
class Profile:
    """What a device can do, as it found on itself; 0 or nothing where that is not known.

    memory_mib: that the model may take, beside the process itself. stage_ns: what a branch of an example costs in each stage, as
    branches run; single_ns: what an example costs unperturbed (`zo.timing`). signs_per_second: of directions, when entries are
    replayed. bytes_per_second: of its line. parked: groups whose probes are mostly noise there, for now.
    """

    memory_mib: int = 0
    stage_ns: tuple[int, ...] = ()
    single_ns: tuple[int, ...] = ()
    signs_per_second: int = 0
    bytes_per_second: int = 0
    parked: tuple[int, ...] = ()


@dataclass(frozen=True)
class WorkRequest:
    """What is there to do for a device at this entry, with a base of this precision?

    chain: `ledger.short` of its head. rank: of the adapters that it can bear, of those that the bundle has; 0 is the largest.
    """

    run: int
    device: int
    entry: int
    chain: int
    precision: Precision
    profile: Profile = field(default_factory=Profile)
    rank: int = 0


@dataclass(frozen=True)
class WorkReply:
    """Entries to apply first; then a plan, or when to ask again and why, or that the run is over. renew: the certificate."""

    entries: tuple[Entry, ...] = ()
    plan: WorkPlan | None = None
    retry_after_ms: int = 0
    reason: str = ""
    finished: bool = False
    renew: bool = False


@dataclass(frozen=True)
class Spent:
    """What the work of a round cost the device. energy: where the millijoules come from."""

    peak_memory_mib: int = 0
    milliseconds: int = 0
    millijoules: int = 0
    energy: EnergySource = "none"


@dataclass(frozen=True, eq=False)
class Report:
    """The scalars of one round: integers on the plan's grid, one a direction (int64). precision: of the base.

    plan: id of the work plan that this answers. shape: of its tree; the run's usual one if it is left out.
    held_out: losses on the device's own examples, as `zo.stride.losses` gives them, on the grid.
    """

    run: int
    device: int
    round: int
    scalars: np.ndarray
    examples: int
    precision: Precision
    dropped: int = 0
    held_out: tuple[int, ...] = ()
    spent: Spent = field(default_factory=Spent)
    digest: bytes | None = None
    plan: int = 0
    shape: Shape | None = None


class Verdict(IntEnum):
    """What became of a report."""

    VERDICT_UNSPECIFIED = 0
    ACCEPTED = 1
    DUPLICATE = 2
    LATE = 3
    DIVERGED = 4
    UNKNOWN_ROUND = 5


@dataclass(frozen=True)
class ReportReply:
    """The coordinator's answer to a report."""

    verdict: Verdict
