"""The manifest: what a bundle holds, as dataclasses and as manifest.json (DESIGN section 4)."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from zo import consistency, ranks
from zo.errors import BundleError, ConfigError
from zo.group import Group
from zo.memory.shapes import ModelShape
from zo.structure import from_plain

SCHEMA_VERSION = 1
FILE = "manifest.json"
LARGEST = 2**24  # bytes

Precision = Literal["fp32", "w8", "w4", "int8"]
TrainableSet = Literal["lora", "lora-fa", "norms", "full"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
TRAINABLE_SETS: tuple[TrainableSet, ...] = get_args(TrainableSet)


@dataclass(frozen=True)
class Task:
    """What the model is trained to do.

    kind: "classification" or "language-modelling". labels: one describing sentence a label, by index. template: the
    prompt, with {text} (and {text_pair}). max_tokens: longer texts are cut (or, for language modelling, split).
    head: "prototypes" (scaled cosine to trained label vectors), "linear", "label-words" (which of the labels, each one
    token, a causal model says next; long prompts are cut on the left), or "vocabulary".
    """

    kind: Literal["classification", "language-modelling"]
    max_tokens: int
    head: Literal["prototypes", "linear", "label-words", "vocabulary"]
    labels: tuple[str, ...] = ()
    template: str = "{text}"


@dataclass(frozen=True)
class Stage:
    """One ONNX graph of the chain. inputs: batch fields and outputs of earlier stages, without the trainable tensors.

    groups: ids of the groups whose tensors it takes. inactive: the graph of a device that holds none of them, with weights in few bits
    that it makes itself (zo.inactive); empty where there is none.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    groups: tuple[int, ...]
    inactive: str = ""


@dataclass(frozen=True)
class Calibration:
    """What probes of one kind of group at one eps measure, against the float32 small-step derivative (docs/calibration.md).

    log2_eps: probes move values by 2**log2_eps. signal: rms of the half difference (nats) of probes of this kind
    alone. noise: rms of its error. bias: relative bias against the small-step derivative. curvature: mean second
    difference (L+ - 2 L0 + L-, nats), which is eps**2 times the curvature trace. correlation: with the float32 small-step derivative.
    log2_eps_apart: of probes that move no other kind, and so drown none; None where it is the same. curvature_apart: with these.
    """

    kind: str
    log2_eps: int
    signal: float
    noise: float
    bias: float
    curvature: float
    correlation: float
    log2_eps_apart: int | None = None
    curvature_apart: float | None = None


@dataclass(frozen=True)
class Base:
    """What is frozen, in one precision: a safetensors file of `size` bytes, the stages over it, and how its probes measure."""

    file: str
    size: int
    stages: tuple[Stage, ...]
    calibration: tuple[Calibration, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Those of no other base."""
        return (self.file, *(name for stage in self.stages for name in (stage.file, stage.inactive) if name))


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle but its weights, looked at through one of its bases: `precision`; in manifest.json, the default one.

    width: of the hidden states. rank, alpha: of adapters. ranks: of their prefixes, the last one `rank`, where they are in slices
    (zo.ranks). bases: of the same model; groups, and so a run's ledger, are common
    to them. files: SHA-256 by name, of every file but this. model: its dimensions; bundles of earlier versions do not state them.
    """

    name: str
    architecture: str
    width: int
    precision: Precision
    trainable: TrainableSet
    rank: int
    alpha: float
    run_key: int
    task: Task
    groups: tuple[Group, ...]
    bases: dict[Precision, Base]
    files: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    model: ModelShape | None = None
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ranks.check(self.ranks)
        if self.ranks and self.ranks[-1] != self.rank:
            raise ValueError(f"ranks = {list(self.ranks)} must end with rank = {self.rank}")
        ranks.check_slices(self.ranks, self.groups)
        if self.precision not in self.bases:
            raise ValueError(f"precision is {self.precision!r}, and bases has {', '.join(self.bases) or 'none'}")

    def at(self, precision: str) -> "Manifest":
        """The same bundle, looked at through another base. ConfigError where it has none of that name."""
        if precision not in self.bases:
            raise ConfigError(f"bundle {self.name!r} has no base of precision {precision!r}; it has {', '.join(self.bases)}")
        return dataclasses.replace(self, precision=precision)

    @property
    def base(self) -> Base:
        """The base that it is looked at through."""
        return self.bases[self.precision]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Of that base."""
        return self.base.stages

    @property
    def calibration(self) -> tuple[Calibration, ...]:
        """Of that base."""
        return self.base.calibration

    @property
    def prefix(self) -> int:
        """Stages below every group, where they are more than the embeddings alone; else 0."""
        first = next(number for number, stage in enumerate(self.stages) if stage.groups)
        return 0 if first == 1 and self.model is not None and len(self.stages) == self.model.blocks + 2 else first

    @property
    def optional(self) -> frozenset[int]:
        """Groups that a device need not hold: their stages have graphs for when they are inactive."""
        return frozenset(group for stage in self.stages if stage.inactive for group in stage.groups)

    @property
    def dimensions(self) -> ModelShape:
        """Of the model. BundleError where the manifest does not state them."""
        if self.model is None:
            raise BundleError(f"bundle {self.name!r} does not state the model's dimensions, from which memory is predicted; build it again")
        return self.model

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of that base's files, and of those that all bases share."""
        others = {name for precision, base in self.bases.items() if precision != self.precision for name in base.files}
        return tuple(name for name in self.files if name not in others - set(self.base.files))

    def write(self, folder: Path) -> None:
        """Write manifest.json."""
        plain = dataclasses.asdict(self)  # without what bundles of earlier versions do not state, which stay the same bit for bit
        if not self.ranks:
            del plain["ranks"]
        if self.model and self.model.head_width is None:
            del plain["model"]["head_width"]
        text = json.dumps(plain, indent=1, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    def log2_eps(self, kind: str, apart: bool = False) -> int:
        """The calibrated probe size of a kind of group, in this base. apart: where the probes move no other kind."""
        found = self.calibrated(kind)
        return found.log2_eps if not apart or found.log2_eps_apart is None else found.log2_eps_apart

    def calibrated(self, kind: str) -> Calibration:
        """How probes of a kind of group measure in this base; BundleError where it was never calibrated."""
        for calibration in self.calibration:
            if calibration.kind == kind:
                return calibration
        raise BundleError(f"bundle {self.name!r} has no probe size for {kind!r} groups; run 'edge-coordinator bundle calibrate'")


def read(folder: Path) -> Manifest:
    """The manifest of a bundle folder. BundleError on anything missing, unknown, of the wrong type, or that does not fit the rest."""
    path = folder / FILE
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder} is not a bundle: it has no {FILE}; make one with 'edge-coordinator bundle build MODEL OUT'") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({error}); download or build the bundle again") from None
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version!r}, this program knows {SCHEMA_VERSION}; upgrade edge-zo, or build the bundle again"
        )
    try:
        found: Manifest = from_plain(Manifest, plain)
        consistency.check(found)
        return found
    except ValueError as error:
        raise BundleError(f"{path}: {error}; build the bundle again, or upgrade edge-zo") from None
