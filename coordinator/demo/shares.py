"""Dividing one data set among devices, disjointly and unevenly, as private data is."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zo.errors import DataError
from zo.examples import Example

CONCENTRATION = 1.0  # of the Dirichlet distribution over devices, one draw a class, where none is stated: lower is more uneven
FEWEST = 4  # examples that every device gets


def divide(examples: Sequence[Example], devices: int, seed: int, concentration: float = CONCENTRATION) -> list[list[Example]]:
    """One list a device: each class is split by a Dirichlet draw; text without labels is split into consecutive shares."""
    if len(examples) < devices * FEWEST:
        raise DataError(f"{len(examples)} training examples are too few for {devices} devices; use more examples, or fewer devices")
    if examples[0].label is None:
        bounds = np.linspace(0, len(examples), devices + 1).astype(int)
        return [list(examples[a:b]) for a, b in itertools.pairwise(bounds)]
    generator = np.random.default_rng(seed)
    shares: list[list[Example]] = [[] for _ in range(devices)]
    for label in sorted({example.label for example in examples if example.label is not None}):
        mine = [example for example in examples if example.label == label]
        generator.shuffle(mine)
        portions = generator.dirichlet([concentration] * devices)
        bounds = np.r_[0, np.rint(np.cumsum(portions) * len(mine))].astype(int)
        for share, (a, b) in zip(shares, itertools.pairwise(bounds), strict=True):
            share += mine[a:b]
    for share in shares:
        while len(share) < FEWEST:
            share.append(max(shares, key=len).pop())
    return shares


def write(path: Path, examples: Sequence[Example]) -> None:
    """JSONL, with the fields that an example has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{name: value for name, value in vars(example).items() if value is not None} for example in examples]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
