"""What the formulas leave open, from a few runs on this device: bytes before any weights, and hidden states held at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zo.engine import Engine
from zo.manifest import Manifest
from zo.memory import process
from zo.memory.engine import Device, Need, need
from zo.memory.shapes import table_bytes
from zo.memory.units import FLOAT
from zo.timing import probe_pair, random_batch

SHAPES = ((1, 16), (4, 32), (8, 32), (2, 128), (8, 64))  # examples x tokens of one pair of branches: up to 384 rows alone err by 12 %
LONGEST = 0.5  # seconds of a run; on a slow device larger shapes are left out


@dataclass(frozen=True)
class Point:
    """A shape that was run with all its rows at once, and the most bytes resident then, without the tables."""

    examples: int
    tokens: int
    resident: int

    @property
    def rows(self) -> int:
        """Of the run."""
        return 2 * self.examples * self.tokens


def measure(engine: Engine, base: Path, fits: Callable[[int, int], bool], go_on: Callable[[], None] = lambda: None) -> list[Point]:
    """Run the shapes that fit (told by rows and tokens), smallest first. base: its file. What `go_on` raises ends it."""
    manifest, found, usual = engine.manifest, list[Point](), engine.max_rows
    try:
        for examples, tokens in SHAPES:
            tokens = min(tokens, manifest.task.max_tokens)
            rows = 2 * examples * tokens
            if not fits(rows, tokens):
                continue
            engine.max_rows = rows
            run = probe_pair(engine, random_batch(manifest.task, manifest.dimensions.vocabulary, examples, tokens), go_on)
            process.reset()
            began = time.perf_counter()
            run()
            taken = time.perf_counter() - began
            found.append(Point(examples, tokens, process.since_reset() - process.mapped(base)))
            if taken > LONGEST:
                break
    finally:
        engine.max_rows = usual
    return found


def fit(points: list[Point], manifest: Manifest) -> Device:
    """Least squares of what is open in `need`, which is linear in both. With one shape alone, or none, the usual values stay."""
    usual = Device()
    if not points:
        return usual
    bare = [_need(manifest, point, Device(0, 0.0)).total - _tables(manifest) for point in points]
    left = np.array([point.resident - each for point, each in zip(points, bare, strict=True)], float)
    slope = np.array([point.rows * FLOAT * manifest.dimensions.width for point in points], float)
    if len({point.rows for point in points}) > 1:
        imports, hidden = np.linalg.lstsq(np.stack([np.ones_like(slope), slope], axis=1), left, rcond=None)[0]
        if imports > 0 and hidden > 0:
            return Device(round(imports), round(float(hidden), 3))
    hidden = usual.held(manifest.precision)
    return replace(usual, imports=max(0, round(float(np.mean(left - hidden * slope)))), hidden=hidden)


def _need(manifest: Manifest, point: Point, device: Device) -> Need:
    return need(manifest, point.rows, point.tokens, device)


def _tables(manifest: Manifest) -> int:
    model = manifest.dimensions
    return table_bytes(manifest.precision, model.tables, model.width)
