"""Fleets of random devices around a model of published dimensions, without any weights: what `scripts/bench blocks` allocates."""

from collections.abc import Iterator

import numpy as np

from coordinator.allocation import Asked, Asking, Base
from zo.group import Group, Tensor
from zo.manifest import Base as ManifestBase
from zo.manifest import Manifest, Precision, Stage, Task, TrainableSet
from zo.memory import PUBLISHED
from zo.messages import Profile

RANK, TOKENS, LABELS = 8, 64, ("one", "other")
FASTEST, SLOWEST = 1e6, 1e8  # nanoseconds that a branch of an example takes in a block
ASKED = Asked(examples=8, directions=1, reports=8, seconds=5.0)


def manifest_of(shape: str, trainable: TrainableSet = "full") -> Manifest:
    """As a bundle of that model would have it, every block a stage, and the head. With "full", blocks that are not tried are in w4."""
    model = PUBLISHED[shape]
    size = model.block_weights if trainable == "full" else model.adapters(RANK) // model.blocks
    groups = [Group(place, "body", -20, (Tensor(f"block_{place}.weight", (size,)),)) for place in range(model.blocks)]
    groups.append(Group(model.blocks, "head", -20, (Tensor("head", (len(LABELS), model.width)),)))
    resting = [f"inactive_{place}.onnx" if trainable == "full" else "" for place in range(model.blocks)] + [""]
    stages = tuple(Stage(f"stage_{place}.onnx", (), (f"out_{place}",), (place,), each) for place, each in enumerate(resting))
    task = Task("classification", TOKENS, "prototypes", LABELS)
    base = ManifestBase("base.safetensors", 0, stages)
    precision: Precision = "w4" if trainable == "full" else "fp32"
    return Manifest(
        shape, "bert", model.width, precision, trainable, RANK, 2.0 * RANK, 1, task, tuple(groups), {precision: base}, model=model
    )


def fleet(generator: np.random.Generator, manifest: Manifest, devices: int) -> dict[int, Asking]:
    """Devices with memory for one block to all of them (evenly by ratio), that take FASTEST to SLOWEST a block (as well)."""
    base, count = Base(manifest, ASKED), len(manifest.stages)
    least, most = base.needed(1) >> 20, base.needed(len(base.blocks)) >> 20
    memory = np.ceil(np.exp(generator.uniform(np.log(least + 1), np.log(1.1 * most), devices)))
    taken = np.exp(generator.uniform(np.log(FASTEST), np.log(SLOWEST), devices))
    times = [tuple([round(each)] * (count - 1) + [round(each / 1000)]) for each in taken]
    return {
        place: Asking(Profile(int(room), each, each, 10**9, 10**6)) for place, (room, each) in enumerate(zip(memory, times, strict=True))
    }


def fleets(count: int, most: int, manifest: Manifest, seed: int = 0) -> Iterator[dict[int, Asking]]:
    """So many, each of 1 to `most` devices."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield fleet(generator, manifest, int(generator.integers(1, most, endpoint=True)))
