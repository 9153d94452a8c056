"""`scripts/bench step`: whole training steps over plain inference of the same base, in alternating turns of one process.

A step is what a device does: lay out the batch, perturb, take both losses, turn them into terms, apply the entry. Two plain runs are
what a forward-only method cannot do without: the same base without adapters, its weights packed, called with all inputs ready.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.bench import pytorch
from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.demo.packaged import packaged_model
from zo import aggregation
from zo.batches import Batch, Encoded, collate
from zo.bundle import Bundle, open_bundle
from zo.engine import Engine, Prefix
from zo.engine.stages import Stages, share
from zo.estimators import Grid, half_differences
from zo.ledger import Entry
from zo.manifest import Task
from zo.messages import Report
from zo.plan import Node
from zo.planning import one_level
from zo.rates import Rates
from zo.recipe import Probe, Rate
from zo.replica import Replica
from zo.timing import turns

TASK = Task(
    "classification", 128, "prototypes", ("an ordinary personal message to a friend", "a spam advertisement: win a prize, call now")
)
SHAPES = ((8, 32), (8, 64), (1, 16))  # examples x tokens
TOP = 1  # of MiniLM's six blocks, for the prefix
ROOM = 32e6  # bytes of the prefix: more than its examples take
GRID = Grid(14, 2.0)
PARTS = 512  # max_rows; of those up to here a run of 1024 rows takes longer than two of 512


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", choices=["mezo-torch"], help="compare with it; torch must be installed")
    parser.add_argument("--repeats", type=int, default=15, help="[15]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if given.peer:
        pytorch.require("--peer mezo-torch")
    return measure(build_all(folder), given.repeats, bool(given.peer))


class Device:
    """A device that trains alone on batches of one shape: plain MeZO, one direction a step."""

    def __init__(self, bundle: Bundle, prefix: Prefix | None = None) -> None:
        self.manifest, parameters = bundle.manifest, bundle.parameters()
        self.engine = Engine(bundle, parameters, max_rows=PARTS, prefix=prefix)
        self._replica = Replica(parameters, bytes(32), bundle.initial_tensors)
        self._rates = Rates.of(Probe(), Rate(body=1e-3, head=1e-3), self.manifest)

    def step(self, rows: Sequence[Encoded]) -> None:
        """One step on these examples."""
        batch, number = collate(rows, self.manifest.task), self._replica.entry + 1
        node = one_level(self.manifest, self._rates.log2_eps, number, 1)
        half = half_differences(self.engine.probe(node, batch))
        self._replica.apply(Entry(number, number, 1, self._terms(half, node, batch, number)))

    def _terms(self, half: np.ndarray, node: Node, batch: Batch, number: int) -> Any:
        report = Report(0, 0, number, GRID.integers(half), batch.examples, self.manifest.precision)
        return aggregation.aggregate([report], [node], self._rates, dict.fromkeys(self._rates.by_kind, 1.0), self.manifest, GRID)


def build_all(folder: Path) -> dict[str, Bundle]:
    """MiniLM in the ways that are compared; `plain` is the base alone with its head."""
    ways = {
        "plain": Training("lora-fa", "fp32", top_blocks=0),
        "lora": Training("lora-fa", "fp32"),
        "int8": Training("lora-fa", "int8"),
        "full": Training("full", "fp32"),
        "top": Training("lora-fa", "fp32", top_blocks=TOP),
    }
    for name, training in ways.items():
        build(packaged_model(), folder / name, TASK, training, [], 1 if name == "plain" else None)
    return {name: open_bundle(folder / name) for name in ways}


def random_rows(examples: int, tokens: int, seed: int = 0) -> list[Encoded]:
    """Examples of random words of BERT's vocabulary, numbered."""
    ids = np.random.default_rng(seed).integers(1000, 30_000, (examples, tokens)).astype(np.int32)
    return [Encoded(row, np.zeros(tokens, np.int8), place % 2, place) for place, row in enumerate(ids)]


def two_runs(bundle: Bundle, batch: Batch) -> Callable[[], object]:
    """Two plain runs of the base, with inputs that are laid out and bound before."""
    stages, parameters = Stages(bundle, 1), bundle.parameters()
    values = {name: share(array) for name, array in batch.fields.items()}
    live = {name: share(array[None]) for name, array in parameters.tensors().items()}
    return lambda: [stages.run(values, 0, len(stages), live) for _ in range(2)]


def measure(bundles: dict[str, Bundle], repeats: int, peer: bool) -> dict[str, Any]:
    """Milliseconds and ratios. peer: also against PyTorch's MeZO, which must be installed."""
    devices = {name: Device(bundle) for name, bundle in bundles.items() if name in ("lora", "int8", "full")}
    found: dict[str, dict[str, tuple[float, float, float]]] = {name: {} for name in devices}
    for examples, tokens in SHAPES:
        rows = random_rows(examples, tokens)
        plain = two_runs(bundles["plain"], collate(rows, TASK))
        shape = f"{examples}x{tokens}"
        for name, device in devices.items():  # in pairs: a third would throw the weights of both out of the caches
            if name == "full" and examples == 1:
                continue
            found[name][shape] = paired(partial(device.step, rows), plain, repeats * (1 if tokens > 16 else 10))
    figures: dict[str, Any] = {
        "milliseconds": {name: {shape: each[:2] for shape, each in shapes.items()} for name, shapes in found.items()},
        "lora_over_two_runs": {shape: each[2] for shape, each in found["lora"].items()},
        "full_over_two_runs": {shape: each[2] for shape, each in found["full"].items()},
        "int8_over_two_fp32_runs": {shape: each[2] for shape, each in found["int8"].items()},
        "prefix_speedup": prefix_speedup(bundles["top"], repeats),
    }
    return figures | (against_torch(devices, repeats) if peer else {})


def paired(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median milliseconds of both, in turns, and the median of the first over the second of the same turn."""
    taken = np.array(turns([first, second], repeats))
    ratio = float(np.median(taken[0] / taken[1]))
    return round(float(np.median(taken[0])), 2), round(float(np.median(taken[1])), 2), round(ratio, 3)


def prefix_speedup(bundle: Bundle, repeats: int) -> float:
    """Steps that train the top of the blocks, in their second epoch, without a kept prefix over with one."""
    rows = random_rows(*SHAPES[0])
    with_prefix, without = Device(bundle, Prefix(ROOM)), Device(bundle)
    with_prefix.step(rows)  # the first epoch
    return round(paired(partial(without.step, rows), partial(with_prefix.step, rows), repeats)[2], 2)


def against_torch(devices: dict[str, Device], repeats: int) -> dict[str, Any]:
    """The published MeZO step in PyTorch over ours, at the first shape."""
    from coordinator.bench.mezo_torch import MezoTorch

    rows = random_rows(*SHAPES[0])
    peer = MezoTorch(packaged_model(), collate(rows, TASK))
    torch, _, over_full = paired(peer.step, partial(devices["full"].step, rows), repeats)
    _, _, over_int8 = paired(peer.step, partial(devices["int8"].step, rows), repeats)
    return {"torch_mezo_ms": torch, "speedup_fp32_full_over_torch_mezo": over_full, "speedup_int8_over_torch_mezo": over_int8}


def told(found: dict[str, Any]) -> str:
    """A table for a person."""
    lines = ["shape   way        ms    two plain fp32 runs, ms    ratio"]
    for name, key in (("lora", "lora_over_two_runs"), ("full", "full_over_two_runs"), ("int8", "int8_over_two_fp32_runs")):
        for shape, ratio in found[key].items():
            step, plain = found["milliseconds"][name][shape]
            lines.append(f"{shape:7} {name:6} {step:8.2f} {plain:26.2f} {ratio:8.3f}")
    lines.append(f"the top block trained, a step without a kept prefix over one with it: {found['prefix_speedup']}")
    lines += [f"{key.replace('_', ' ')}: {value}" for key, value in found.items() if "torch" in key]
    return "\n".join(lines)
