"""Dividing one data set among devices, disjointly and unevenly, as private data is."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from zo.errors import DataError

CONCENTRATION = 1.0  # of the Dirichlet distribution over devices, one draw a class: lower is more uneven
FEWEST = 4  # lines that every device gets


def divide(lines: list[dict[str, Any]], devices: int, seed: int) -> list[list[dict[str, Any]]]:
    """One list a device: each class is split by a Dirichlet draw; text without labels is split into consecutive shares."""
    if len(lines) < devices * FEWEST:
        raise DataError(f"{len(lines)} training examples are too few for {devices} devices; use fewer with --agents")
    if "label" not in lines[0]:
        bounds = np.linspace(0, len(lines), devices + 1).astype(int)
        return [lines[a:b] for a, b in itertools.pairwise(bounds)]
    if not all("label" in line for line in lines):
        raise DataError("some training examples have a label and some have none; give every line of train.jsonl one")
    generator = np.random.default_rng(seed)
    shares: list[list[dict[str, Any]]] = [[] for _ in range(devices)]
    for label in sorted({str(line["label"]) for line in lines}):
        mine = [line for line in lines if str(line["label"]) == label]
        generator.shuffle(mine)
        portions = generator.dirichlet([CONCENTRATION] * devices)
        bounds = np.r_[0, np.rint(np.cumsum(portions) * len(mine))].astype(int)
        for share, a, b in zip(shares, bounds[:-1], bounds[1:], strict=True):
            share += mine[a:b]
    for share in shares:
        while len(share) < FEWEST:
            share.append(max(shares, key=len).pop())
    return shares


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a JSONL file that are objects with a text; what an agent makes of the rest is its own affair."""
    try:
        raw = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; --data needs train.jsonl, validation.jsonl and test.jsonl") from None
    found = []
    for line in raw:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("text"), str):
            found.append(record)
    if not found:
        raise DataError(f'{path} holds no usable example; expected lines like {{"text": "...", "label": 0}}')
    return found


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
