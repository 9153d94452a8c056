"""Whether the parts of a manifest fit each other, as those of every manifest that was built do: an altered one may say anything."""

import math
from typing import TYPE_CHECKING

from zo.lattice import LOG2_UNIT_RANGE

if TYPE_CHECKING:
    from zo.group import Group
    from zo.manifest import Base, Calibration, Manifest, Stage, Task
    from zo.memory.shapes import ModelShape

KINDS = ("body", "head")
FIELDS = ("input_ids", "token_type_ids", "attention_mask", "positions", "labels")  # of a batch
LOSSES = ("loss", "logits")  # outputs of the last stage
MOST_TOKENS = 2**20
MOST_LABELS = 2**16
MOST_RANK = 2**20
MOST_ALPHA = 1e6  # that is built; manifests may say more
MOST_BLOCKS = 2**16
MOST_VALUES = 2**40  # of a tensor, and of any dimension of a model; in bytes of a base 64 times as many
MOST_LOG2_EPS = 64
MOST_MEASURED = 1e100  # whose square is a number


def check(manifest: "Manifest") -> None:
    """ValueError, saying where, unless groups, stages, calibration, task and dimensions fit each other, in ranges that can be."""
    _within("width", manifest.width, 1, MOST_VALUES)
    _within("rank", manifest.rank, 1, MOST_RANK)
    _within("run_key", manifest.run_key, 0, 2**32 - 1)
    if not math.isfinite(manifest.alpha):
        raise ValueError(f"alpha = {manifest.alpha} must be finite")
    _check_task(manifest.task)
    _check_groups(manifest.groups)
    if manifest.model is not None:
        _check_model(manifest.model, manifest.task.max_tokens)
    for precision, base in manifest.bases.items():
        _check_base(f"bases.{precision}", base, manifest)


def _check_task(task: "Task") -> None:
    _within("task.max_tokens", task.max_tokens, 2, MOST_TOKENS)
    if (task.kind == "classification") != (task.head != "vocabulary"):
        raise ValueError(f"task.head = {task.head!r} is none for {task.kind}")
    _within("count of task.labels", len(task.labels), *((2, MOST_LABELS) if task.kind == "classification" else (0, 0)))
    if "{text}" not in task.template:
        raise ValueError(f"task.template = {task.template!r} does not contain {{text}}")


def _check_groups(groups: tuple["Group", ...]) -> None:
    names = [tensor.name for group in groups for tensor in group.tensors]
    if len({group.id for group in groups}) != len(groups) or len(set(names)) != len(names):
        raise ValueError("groups repeat an id or the name of a tensor")
    for place, group in enumerate(groups):
        where = f"groups[{place}]"
        _within(f"{where}.id", group.id, 0, 2**32 - 1)
        _within(f"{where}.log2_unit", group.log2_unit, *LOG2_UNIT_RANGE)
        if group.kind not in KINDS:
            raise ValueError(f"{where}.kind must be one of {', '.join(KINDS)}, not {group.kind!r}")
        if not group.tensors:
            raise ValueError(f"{where}.tensors is empty")
        for tensor in group.tensors:
            if min(tensor.shape, default=1) < 1 or tensor.size > MOST_VALUES:
                raise ValueError(f"{where}: tensor {tensor.name!r} cannot have shape {list(tensor.shape)}")


def _check_model(model: "ModelShape", tokens: int) -> None:
    for name in ("width", "heads", "kv_heads", "feed_forward", "vocabulary"):
        _within(f"model.{name}", getattr(model, name), 1, MOST_VALUES)
    if model.head_width is not None:
        _within("model.head_width", model.head_width, 1, MOST_VALUES)
    _within("model.blocks", model.blocks, 1, MOST_BLOCKS)
    _within("model.positions", model.positions, tokens, MOST_VALUES)


def _check_base(where: str, base: "Base", manifest: "Manifest") -> None:
    _within(f"{where}.size", base.size, 0, 64 * MOST_VALUES)
    if [stage.groups for stage in base.stages] != [stage.groups for stage in manifest.stages]:
        raise ValueError(f"{where}.stages hold other groups than those of precision {manifest.precision!r}")
    held = sorted(group for stage in base.stages for group in stage.groups)
    if not held or held != sorted(group.id for group in manifest.groups):
        raise ValueError(f"{where}.stages hold groups {held}; every one of {sorted(group.id for group in manifest.groups)} must be once")
    known = set(FIELDS)
    for place, stage in enumerate(base.stages):
        _check_stage(f"{where}.stages[{place}]", stage, known)
        known |= set(stage.outputs)
    if base.stages[-1].outputs != LOSSES:
        raise ValueError(f"{where}.stages must end with outputs {list(LOSSES)}, not {list(base.stages[-1].outputs)}")
    for number, calibration in enumerate(base.calibration):
        _check_calibration(f"{where}.calibration[{number}]", calibration)


def _check_stage(where: str, stage: "Stage", known: set[str]) -> None:
    """known: what the stages below put out, and the fields of a batch."""
    if unknown := sorted(set(stage.inputs) - known):
        raise ValueError(f"{where}.inputs: no stage below puts out {unknown[0]!r}")
    if not stage.outputs or known.intersection(stage.outputs) or len(set(stage.outputs)) != len(stage.outputs):
        raise ValueError(f"{where}.outputs must be some, each with a name of its own, not {list(stage.outputs)}")


def _check_calibration(where: str, found: "Calibration") -> None:
    if found.kind not in KINDS:
        raise ValueError(f"{where}.kind must be one of {', '.join(KINDS)}, not {found.kind!r}")
    for name in ("log2_eps", "log2_eps_apart"):
        _within(f"{where}.{name}", getattr(found, name) or 0, -MOST_LOG2_EPS, MOST_LOG2_EPS)
    for name in ("signal", "noise", "bias", "curvature", "correlation", "curvature_apart"):
        value = getattr(found, name) or 0.0
        if abs(value) > MOST_MEASURED or (name in ("signal", "noise") and value < 0):
            raise ValueError(f"{where}.{name} = {value} cannot have been measured")


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} = {value} must be from {least} to {most}")
