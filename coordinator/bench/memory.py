"""`scripts/bench memory`: peak resident memory of an agent at work over plain inference, and of the engine by `max_rows`."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.bench.resident import ROUNDS, SHAPE, resident_mib
from coordinator.bench.step import TASK
from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.demo import shares
from coordinator.demo.fleet import Fleet
from coordinator.demo.packaged import packaged_model
from zo.bundle import Bundle, open_bundle
from zo.examples import Example
from zo.manifest import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
EXAMPLES = 200


def measure(max_rows: list[int]) -> dict[str, Any]:
    """Peaks in MiB, the agent's over plain inference's, and one row of figures for every `max_rows` (int8)."""
    peaks: dict[str, dict[str, int]] = {"agent": {}, "inference": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for precision in PRECISIONS:
            folder = Path(scratch, precision)
            build(packaged_model(), folder / "bundle", TASK, Training("lora-fa", precision), [])
            build(packaged_model(), folder / "plain", TASK, Training("lora-fa", precision, top_blocks=0), [], 1)
            peaks["agent"][precision] = _agent(open_bundle(folder / "bundle"), folder)
            peaks["inference"][precision] = child("inference", folder / "plain")["peak_mib"]
        rows = [child("engine", folder / "bundle", each) for each in max_rows]
    over = {precision: round(peaks["agent"][precision] / peaks["inference"][precision], 3) for precision in PRECISIONS}
    return {"agent_over_inference": over, "peak_mib": peaks, "by_max_rows": rows}


def told(found: dict[str, Any]) -> str:
    """Two tables for a person."""
    lines = ["peak resident, MiB: an agent in a run, and a bare onnxruntime process that infers twice its batch"]
    for precision, ratio in found["agent_over_inference"].items():
        lines.append(f"{precision:6} {found['peak_mib']['agent'][precision]:6} {found['peak_mib']['inference'][precision]:6} {ratio:8.3f}")
    lines += ["", "the engine alone, int8, lengths of 8 to 128:", "max_rows  MiB loaded  MiB peak  seconds"]
    lines += [f"{row['max_rows']:8} {row['loaded_mib']:11} {row['peak_mib']:9} {row['seconds']:8.1f}" for row in found["by_max_rows"]]
    return "\n".join(lines)


def _agent(bundle: Bundle, folder: Path) -> int:
    """Peak of a real agent over a few rounds, with every setting as it comes."""
    words = [word for word in bundle.tokenizer().get_vocab() if word.isascii() and word.isalpha() and len(word) > 3]
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, SHAPE[1] - 2)) for _ in range(EXAMPLES)]  # and the two tokens that frame them
    shares.write(folder / "data.jsonl", [Example(text, place % 2) for place, text in enumerate(texts)])
    fleet = Fleet(folder / "fleet", bundle.folder, {"rounds": str(ROUNDS), "round.goal": "1", "probe.examples": str(SHAPE[0])})
    try:
        fleet.start_coordinator()
        fleet.start_agent("agent", folder / "data.jsonl")
        peak, process = 0, fleet.agents["agent"]
        while process.poll() is None:
            peak = max(peak, resident_mib("VmHWM", process.pid))
            fleet.check()
            time.sleep(0.05)
        fleet.check()
    finally:
        fleet.stop()
    return peak


def child(what: str, bundle: Path, *numbers: int) -> dict[str, Any]:
    """Figures of a process of its own (`coordinator.bench.resident`)."""
    command = [sys.executable, "-m", "coordinator.bench.resident", what, str(bundle), *map(str, numbers)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
