"""Peak resident memory of the engine over a mix of lengths, each setting in a process of its own."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from zo.batches import Encoded, collate
from zo.bundle import open_bundle
from zo.calibration import one_level
from zo.engine import Engine

EXAMPLES, DIRECTIONS, BATCHES = 8, 4, 12


def measure(bundle: Path, max_rows: list[int]) -> list[dict[str, Any]]:
    """One row of figures for every `max_rows`."""
    command = [sys.executable, "-m", "coordinator.bench.memory", str(bundle)]
    return [json.loads(subprocess.run([*command, str(rows)], check=True, capture_output=True, text=True).stdout) for rows in max_rows]


def _here(bundle: Path, max_rows: int) -> dict[str, Any]:
    """Probes on random tokens of 8 to max_tokens, the longest last; in this process."""
    opened = open_bundle(bundle)
    engine = Engine(opened, opened.parameters(), max_rows=max_rows)
    loaded, began = _resident_mib("VmRSS"), time.perf_counter()
    task, vocabulary = opened.manifest.task, opened.tokenizer().get_vocab_size()
    sizes = {each.kind: each.log2_eps for each in opened.manifest.calibration}
    generator = np.random.default_rng(0)
    lengths = [*generator.integers(8, task.max_tokens + 1, BATCHES).tolist(), task.max_tokens]
    for place, length in enumerate(lengths):
        ids = generator.integers(0, vocabulary, (EXAMPLES, length + 1)).astype(np.int32)
        rows = [
            Encoded(row[:length] if task.labels else row, np.zeros(length + 1, np.int8)[: length + (not task.labels)], 0) for row in ids
        ]
        engine.probe(one_level(opened.manifest, sizes, place * DIRECTIONS, DIRECTIONS), collate(rows, task))
    seconds = time.perf_counter() - began
    return {"max_rows": max_rows, "loaded_mib": loaded, "peak_mib": _resident_mib("VmHWM"), "seconds": round(seconds, 2)}


def _resident_mib(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) >> 10


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("max_rows", type=int)
    given = parser.parse_args()
    print(json.dumps(_here(given.bundle, given.max_rows)))
