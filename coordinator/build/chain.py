"""The chain of stages: blocks cut into stages, the head one of its own; written as graphs and safetensors."""

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx

from coordinator.architectures import ARCHITECTURES
from coordinator.build import adapters, dimensions
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import DraftGroup, Layers, Training
from zo import bundle as bundle_files
from zo import quantised
from zo.errors import BundleError
from zo.group import Group, Tensor
from zo.inactive import layout
from zo.lattice import fit_log2_unit, snap
from zo.manifest import FILE, Base, Manifest, Stage, Task
from zo.memory.shapes import of_config

ADAPTER_LOG2_UNIT = -20  # what starts near zero (adapters, prototypes) still gets room to grow: +-16


def draft(checkpoint: Checkpoint, task: Task, training: Training, stages: int, embeddings_apart: bool = False) -> Layers:
    """All stages of the model, in memory. stages: how many the blocks are cut into. embeddings_apart: they are one more, below."""
    kind = checkpoint.config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise BundleError(f"architecture {kind!r} is not known; known are {', '.join(sorted(ARCHITECTURES))}")
    if training.trainable == "full" and training.precision == "int8":
        raise BundleError("trainable 'full' perturbs the weights themselves; it needs precision 'fp32', or 'w8' or 'w4' of inactive blocks")
    adapters.check(training)
    layers = Layers(checkpoint, training)
    try:
        dimensions.check(checkpoint.config)
        _check_tokenizer(checkpoint, checkpoint.config["vocab_size"])
        model = ARCHITECTURES[kind](checkpoint.config, layers, task)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{checkpoint.folder / 'config.json'} cannot be a {kind} model: {error}") from None
    except KeyError as error:
        raise BundleError(f"{checkpoint.folder / 'config.json'} lacks {error}, which a {kind} model needs") from None
    if task.max_tokens > model.positions:
        raise BundleError(
            f"max_tokens = {task.max_tokens} is more than the {model.positions} positions of the model; give --max-tokens {model.positions}"
        )
    if not 1 <= stages <= model.blocks:
        raise BundleError(f"--stages {stages}: a model of {model.blocks} blocks is cut into 1 to {model.blocks}")
    top = model.blocks if training.top_blocks is None else training.top_blocks
    if not 0 <= top <= model.blocks:
        raise BundleError(f"--top-blocks {top}: a model of {model.blocks} blocks can train 0 to {model.blocks}")
    lowest = model.blocks - top  # a stage begins there, so that all below is one unchanging prefix
    cuts = {model.blocks * number // stages for number in range(1, stages)} | {lowest} - {0, model.blocks}
    if embeddings_apart:
        cuts.add(0)
    x = model.embed()
    for number in range(model.blocks):
        if number in cuts:
            x = layers.cut(x, ["P", "batch", "tokens", model.width])
        with layers.group("body") if number >= lowest else nullcontext():
            x = model.block(number, x)
    x = layers.cut(model.select(x), ["P", "rows", model.width])
    with layers.group("head"):
        model.head(x)
    given = training.adapter
    if given and (left := sorted(given.layers.keys() - set(layers.adapted))):
        raise BundleError(f"the adapter in {given.folder} has layer {left[0]!r}, for which the bundle trains none")
    if not layers.groups:
        raise BundleError(f"nothing would be trained: the head has nothing for {training.trainable!r}; train a block, or 'norms' or 'full'")
    return layers


def _check_tokenizer(checkpoint: Checkpoint, known: int) -> None:
    """BundleError where the tokenizer gives ids that the model has no embedding for."""
    file = checkpoint.folder / bundle_files.TOKENIZER
    largest = max(checkpoint.tokenizer().get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= known:
        raise BundleError(f"{file} gives ids up to {largest}, the model knows {known}; put the model's own tokenizer there")


def write(layers: Layers, folder: Path, name: str, task: Task, inactive: Layers | None = None) -> Manifest:
    """Write every file of a bundle with one base; its manifest still lacks calibration and digests.

    inactive: the same stages with all blocks frozen, for devices that do not hold them all.
    """
    precision = layers.training.precision
    base = f"{precision}.safetensors"
    bundle_files.save_tensors(layers.frozen.tensors, folder / base)
    places = {weight: (base, *place) for weight, place in _offsets(folder / base).items()}
    groups = tuple(_group(place, draft) for place, draft in enumerate(layers.groups))
    stages = []
    for number, (graph, outputs) in enumerate(zip(layers.graphs, layers.outputs, strict=True)):
        file = f"{precision}.stage_{number}.onnx"
        onnx.save(graph.model(outputs, places), folder / file)
        trained = {tensor for draft in layers.groups if draft.stage == number for tensor in draft.tensors}
        inputs = tuple(given for given in graph.inputs if given not in trained | layers.sliced)
        held = tuple(place for place, draft in enumerate(layers.groups) if draft.stage == number)
        body = inactive is not None and [groups[place].kind for place in held] == ["body"]
        resting = f"{precision}.inactive_{number}.onnx" if body else ""
        if inactive and resting:
            packed = layout(groups[held[0]].tensors, quantised.BITS[precision])
            model = inactive.graphs[number].model(outputs, {key: (place.file, place.offset, place.size) for key, place in packed.items()})
            onnx.save(model, folder / resting)
        stages.append(Stage(file, inputs, tuple(outputs), held, resting))
    shutil.copyfile(layers.checkpoint.folder / bundle_files.TOKENIZER, folder / bundle_files.TOKENIZER)
    write_trainable(folder, groups, {name: values for draft in layers.groups for name, values in draft.tensors.items()})
    training, config = layers.training, layers.checkpoint.config
    return Manifest(
        name=name,
        architecture=config["model_type"],
        width=int(next(iter(layers.outputs[-2].values()))[-1]),
        precision=precision,
        trainable=training.trainable,
        rank=training.largest_rank,
        alpha=training.alpha,
        run_key=training.run_key,
        task=task,
        groups=groups,
        bases={precision: Base(base, (folder / base).stat().st_size, tuple(stages))},
        model=of_config(config),
        ranks=training.ranks,
    )


def write_trainable(folder: Path, groups: tuple[Group, ...], tensors: Mapping[str, np.ndarray]) -> None:
    """Snap the tensors of all groups to their lattices and write them."""
    snapped = {tensor.name: snap(tensors[tensor.name], group.log2_unit) for group in groups for tensor in group.tensors}
    bundle_files.save_tensors(snapped, folder / bundle_files.TRAINABLE)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a bundle but the manifest."""
    return {path.name: bundle_files.file_digest(path) for path in sorted(folder.iterdir()) if path.name != FILE}


def _group(place: int, draft: DraftGroup) -> Group:
    for name, values in draft.tensors.items():
        if not np.all(np.isfinite(values)):
            raise BundleError(f"tensor {name!r} of the model holds NaN or infinity")
    largest = np.array([np.abs(values).max(initial=0) for values in draft.tensors.values()])
    log2_unit = fit_log2_unit(largest)
    adapters = any(".lora_" in name or name.startswith("head.") for name in draft.tensors)
    shapes = tuple(Tensor(name, values.shape) for name, values in draft.tensors.items())
    return Group(place, draft.kind, max(log2_unit, ADAPTER_LOG2_UNIT) if adapters else log2_unit, shapes)


def _offsets(file: Path) -> dict[str, tuple[int, int]]:
    """(offset, length) in bytes of every tensor in a safetensors file."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    entries = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (8 + length + begin, end - begin) for name, (begin, end) in entries.items()}
