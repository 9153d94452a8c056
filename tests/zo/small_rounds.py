"""A bundle of two small groups, and reports on it whose terms can be computed by hand."""

import dataclasses

import numpy as np

from zo.bundle import Bundle
from zo.estimators import Grid
from zo.group import Group, Tensor
from zo.manifest import Base, Calibration, Manifest, Stage
from zo.messages import Report
from zo.plan import Node
from zo.planning import one_level
from zo.rates import Rates

GRID = Grid(14, 2.0)
SIZE = 24
GIVEN = Rates(
    signal={"body": 0.3, "head": 0.4},
    by_kind={"body": 0.25, "head": 0.5},
    log2_eps={"body": -4, "head": -6},
    log2_eps_apart={"body": -4, "head": -6},
)


def two_groups(bundle: Bundle) -> Manifest:
    """Two small groups, of unit 2**-20 and 2**-18."""
    groups = (Group(0, "body", -20, (Tensor("w", (SIZE,)),)), Group(1, "head", -18, (Tensor("v", (SIZE,)),)))
    calibration = tuple(Calibration(kind, -4, 0.3, 0.0, 0.0, 0.0, 1.0) for kind in ("body", "head"))
    stages = (Stage("stage_0.onnx", ("x",), ("loss",), (0, 1)),)
    return dataclasses.replace(bundle.manifest, groups=groups, bases={"fp32": Base("weights", 0, stages, calibration)})


def report(device: int, number: int = 1, scalars: tuple[int, ...] = (), examples: int = 4) -> Report:
    return Report(1, device, number, np.array(scalars), examples, "fp32")


def nodes(manifest: Manifest, counts: list[int]) -> list[Node]:
    return [one_level(manifest, GIVEN.log2_eps, 1000 * place, count) for place, count in enumerate(counts)]
