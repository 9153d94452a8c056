"""`scripts/bench cost`: what a step costs against size: tokens, directions side by side, parameters, devices."""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from coordinator.bench import reports
from coordinator.bench.step import TASK, Device, random_rows
from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.demo.packaged import packaged_model
from zo.batches import collate
from zo.bundle import Bundle, open_bundle
from zo.engine import Engine
from zo.manifest import TrainableSet
from zo.planning import one_level
from zo.timing import alternating

EXAMPLES, TOKENS = 8, (16, 32, 64, 128)
DIRECTIONS = (1, 2, 4, 8)
BLOCKS = (1, 3, 6)  # MiniLM cut to these
FLEETS = (10, 100, 1000)
UNSPLIT = 1 << 20  # max_rows: all directions in one run


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=9, help="[9]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Medians in milliseconds; MiniLM, one thread."""
    bundles = {blocks: _cut(folder, blocks, "lora-fa") for blocks in BLOCKS}
    return {
        "ms_by_tokens": by_tokens(bundles[BLOCKS[-1]], given.repeats),
        "ms_per_direction": by_directions(bundles[BLOCKS[-1]], given.repeats),
        "ms_by_blocks": by_blocks(bundles, {blocks: _cut(folder, blocks, "full") for blocks in BLOCKS}, given.repeats),
        "ms_per_report": by_devices(bundles[1], folder),
    }


def by_tokens(bundle: Bundle, repeats: int) -> dict[int, float]:
    """A whole LoRA step of 8 examples."""
    device = Device(bundle)
    taken = alternating([partial(device.step, random_rows(EXAMPLES, tokens)) for tokens in TOKENS], repeats)
    return {tokens: round(each, 1) for tokens, each in zip(TOKENS, taken, strict=True)}


def by_directions(bundle: Bundle, repeats: int) -> dict[str, dict[int, float]]:
    """A pair of probes where so many run side by side: of one example of 16 tokens, and of 8 of 32."""
    engine, found = Engine(bundle, bundle.parameters(), max_rows=UNSPLIT), {}
    sizes = {each.kind: each.log2_eps for each in bundle.manifest.calibration}
    for examples, tokens in ((1, 16), (8, 32)):
        batch = collate(random_rows(examples, tokens), TASK)
        calls = [partial(engine.probe, one_level(bundle.manifest, sizes, 0, count), batch) for count in DIRECTIONS]
        taken = zip(DIRECTIONS, alternating(calls, repeats), strict=True)
        found[f"{examples}x{tokens}"] = {count: round(each / count, 2) for count, each in taken}
    return found


def by_blocks(lora: dict[int, Bundle], full: dict[int, Bundle], repeats: int) -> dict[int, dict[str, float]]:
    """Whole steps at 8 x 32 of models of so many blocks, adapters and in place; and how many values are trained."""
    rows, found = random_rows(EXAMPLES, 32), {}
    for blocks in lora:
        taken = alternating([partial(Device(bundle).step, rows) for bundle in (lora[blocks], full[blocks])], repeats)
        values = {name: sum(group.size for group in each[blocks].manifest.groups) for name, each in (("lora", lora), ("full", full))}
        found[blocks] = dict(zip(("lora", "full"), (round(each, 1) for each in taken), strict=True)) | {
            f"{name}_values": count for name, count in values.items()
        }
    return found


def by_devices(bundle: Bundle, folder: Path) -> dict[int, dict[str, float]]:
    """What the coordinator spends on a report in rounds of so many devices."""
    found = {}
    for devices in FLEETS:
        place = folder / f"fleet{devices}"
        place.mkdir()
        found[devices] = {
            key: value for key, value in reports.measure(bundle.folder, devices, 2, place).items() if key.endswith("_ms_per_report")
        }
    return found


def told(found: dict[str, Any]) -> str:
    """Tables for a person."""
    lines = ["8 examples, one direction, adapters: tokens and ms a step"]
    lines += [f"{tokens:6} {ms:8.1f}" for tokens, ms in found["ms_by_tokens"].items()]
    lines += ["", "ms a direction where so many run side by side (examples x tokens)"]
    lines.append("       " + "".join(f"{count:>8}" for count in DIRECTIONS))
    lines += [f"{shape:7}" + "".join(f"{ms:8.2f}" for ms in each.values()) for shape, each in found["ms_per_direction"].items()]
    lines += ["", "blocks   adapters: values   ms a step     in place: values   ms a step   (8 x 32)"]
    for blocks, each in found["ms_by_blocks"].items():
        lines.append(f"{blocks:6} {each['lora_values']:18,} {each['lora']:11.1f} {each['full_values']:20,} {each['full']:11.1f}")
    lines += ["", "the coordinator, ms a report: devices, taken in (own sync), taken in (16 a sync), commit"]
    for devices, each in found["ms_per_report"].items():
        three = (each[f"{name}_ms_per_report"] for name in ("coordinator", "grouped", "commit"))
        lines.append(f"{devices:7}" + "".join(f"{ms:10.3f}" for ms in three))
    return "\n".join(lines)


def _cut(folder: Path, blocks: int, trainable: TrainableSet) -> Bundle:
    """A bundle of MiniLM's lowest blocks."""
    model, out = folder / f"model{blocks}", folder / f"{trainable}{blocks}"
    if not model.exists():
        shutil.copytree(packaged_model(), model, copy_function=lambda source, target: Path(target).symlink_to(source))
        config = json.loads((model / "config.json").read_text(encoding="utf-8")) | {"num_hidden_layers": blocks}
        (model / "config.json").unlink()
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    build(model, out, TASK, Training(trainable), [])
    return open_bundle(out)
