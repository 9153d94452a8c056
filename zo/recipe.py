"""How to train, whoever leads: the settings that a fleet's run and a device alone have in common."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from zo.config import setting
from zo.plan import MOST_DIRECTIONS, Shape

Algorithm = Literal["auto", "mezo", "fedspzo"]
Aggregation = Literal["mean", "trimmed-mean", "median"]
Auto = Literal["auto"]
MOST_RATE = 1e6


@dataclass(frozen=True)
class Probe:
    """What one device does in one round."""

    directions: int | None = setting("directions a device tries a round, each a pair of probes; left out, 1, or with 'mezo' 8", None)
    examples: int = setting("examples in the batch of a probe", 8)
    log2_eps_body: int | Auto = setting("probe size of the body is 2**this; 'auto' is what the bundle's calibration found", "auto")
    log2_eps_head: int | Auto = setting("the same for the head", "auto")

    def __post_init__(self) -> None:
        if self.directions is not None and not 1 <= self.directions <= MOST_DIRECTIONS:
            raise ValueError(f"directions = {self.directions} must be between 1 and {MOST_DIRECTIONS}")
        if not 1 <= self.examples <= 4096:
            raise ValueError(f"examples = {self.examples} must be between 1 and 4096")


@dataclass(frozen=True)
class Split:
    """Which parts of the model are tried apart, on outputs of the parts below that are kept (FedSPZO, arXiv 2502.10239)."""

    cuts: tuple[int, ...] = setting("stages at which parts begin, as [2]; left out, the cheapest way to equal progress is predicted", ())
    counts: tuple[int, ...] = setting("directions of those parts on each output of the part below, as [256]", ())
    joint: bool = setting("try both parts together: half the probes of the upper one, and noisier", False)
    clean: bool = setting("try directions alone and on one side, against the unperturbed model and on what its parts put out", False)
    kept: float = setting("most bytes of outputs that a device may have to keep", 64e6)

    def __post_init__(self) -> None:
        if bool(self.cuts) != bool(self.counts):
            raise ValueError(f"cuts = {list(self.cuts)} and counts = {list(self.counts)} go together")
        if len(self.cuts) != len(self.counts):
            raise ValueError(f"counts = {list(self.counts)} must have one number for each of cuts = {list(self.cuts)}")
        if self.joint and not self.cuts:
            raise ValueError("joint needs cuts and counts")
        if self.cuts:
            Shape((1, *self.counts), self.cuts, self.joint, self.clean)
        if self.kept < 0:
            raise ValueError(f"kept = {self.kept} must not be negative")


def directions(algorithm: Algorithm, probe: Probe) -> int:
    """Of the whole model, or of its lowest part: another batch for each is better, where reports cost little."""
    return probe.directions or (8 if algorithm == "mezo" else 1)


def stated_shape(algorithm: Algorithm, probe: Probe, split: Split) -> Shape | None:
    """The shape that the settings state; None where it is to be planned."""
    count = directions(algorithm, probe)
    if algorithm == "mezo":
        return Shape((count,), clean=split.clean)
    return Shape((count, *split.counts), split.cuts, split.joint, split.clean) if split.cuts else None


@dataclass(frozen=True)
class Rate:
    """How far a round moves the parameters."""

    body: float | Auto = setting(
        "every direction moves the body by this times its probe, for a loss difference as at calibration; 'auto' follows what is measured",
        "auto",
    )
    head: float | Auto = setting("the same for the head", "auto")
    final: float = setting("share of the rate left in the last round; it falls linearly", 0.1)

    def __post_init__(self) -> None:
        for name, value in (("body", self.body), ("head", self.head)):
            if value != "auto" and not 0 <= value <= MOST_RATE:
                raise ValueError(f"{name} = {value} is no rate: it must be from 0 to {MOST_RATE:g}, or 'auto'")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final = {self.final} must be from 0 to 1")

    def paced(self, kinds: Iterable[str]) -> list[str]:
        """Those of some kinds of group whose rate follows what is measured."""
        stated = {"body": self.body, "head": self.head}
        return [kind for kind in kinds if stated[kind] == "auto"]
