"""`scripts/bench memory`: peak resident memory of an agent at work over plain inference, and of the engine by `max_rows`."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.bench.child_process import figures
from coordinator.bench.resident import ROUNDS, SHAPE, high_water
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


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-rows", type=int, nargs="+", default=[128, 256, 384, 768, 1536], help="[128 256 384 768 1536]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peaks in MiB, the agent's over plain inference's, and one row of figures for every `max_rows` (int8)."""
    peaks: dict[str, dict[str, int]] = {"agent": {}, "inference": {}}
    for precision in PRECISIONS:
        place = folder / precision
        build(packaged_model(), place / "bundle", TASK, Training("lora-fa", precision), [])
        build(packaged_model(), place / "plain", TASK, Training("lora-fa", precision, top_blocks=0), [], 1)
        peaks["agent"][precision] = _agent(open_bundle(place / "bundle"), place)
        peaks["inference"][precision] = child("inference", place / "plain")["peak_mib"]
    rows = [child("engine", place / "bundle", each) for each in given.max_rows]
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
    write_random_texts(folder / "data.jsonl", bundle, EXAMPLES, SHAPE[1])
    fleet = Fleet(folder / "fleet", bundle.folder, {"rounds": str(ROUNDS), "round.goal": "1", "probe.examples": str(SHAPE[0])})
    try:
        fleet.start_coordinator()
        fleet.start_agent("agent", folder / "data.jsonl")
        peak, process = 0, fleet.agents["agent"]
        while process.poll() is None:
            peak = max(peak, high_water(process.pid))
            fleet.check()
            time.sleep(0.05)
        fleet.check()
    finally:
        fleet.stop()
    return peak >> 20


def write_random_texts(path: Path, bundle: Bundle, count: int, tokens: int) -> None:
    """Examples of two classes, of so many tokens each."""
    words = [word for word in bundle.tokenizer().get_vocab() if word.isascii() and word.isalpha() and len(word) > 3]
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, tokens - 2)) for _ in range(count)]  # and the two tokens that frame them
    shares.write(path, [Example(text, place % 2) for place, text in enumerate(texts)])


def child(what: str, bundle: Path, *numbers: int) -> dict[str, Any]:
    """Figures of a process of its own (`coordinator.bench.resident`)."""
    return figures("coordinator.bench.resident", what, bundle, *numbers)
