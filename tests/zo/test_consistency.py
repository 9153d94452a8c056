"""What no manifest that was built says is refused, with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from zo import manifest as manifest_file
from zo.bundle import Bundle
from zo.errors import BundleError

STAGES = ("bases", "fp32", "stages")
CALIBRATION = ("bases", "fp32", "calibration", 0)


def altered(bundle: Bundle, folder: Path, place: tuple[str | int, ...], value: Any) -> str:
    """What is said of the manifest with another value there."""
    plain: Any = json.loads((bundle.folder / "manifest.json").read_text(encoding="utf-8"))
    inner = plain
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(BundleError) as caught:
        manifest_file.read(folder)
    assert "\n" not in str(caught.value)
    assert str(folder / "manifest.json") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("width",), 0, "width = 0 must be from 1"),
        (("rank",), 10**30, "rank = "),
        (("run_key",), -1, "run_key = -1 must be from 0 to 4294967295"),
        (("alpha",), float("inf"), "alpha = inf must be finite"),
        (("alpha",), float("nan"), "alpha must be a number"),
        (("task", "max_tokens"), 1, "task.max_tokens = 1 must be from 2"),
        (("task", "max_tokens"), 49, "model.positions = 48 must be from 49"),
        (("task", "head"), "vocabulary", "task.head = 'vocabulary' is none for classification"),
        (("task", "labels"), [], "count of task.labels = 0 must be from 2"),
        (("task", "template"), "x", "task.template = 'x' does not contain {text}"),
        (("groups",), [], "every one of [] must be once"),
        (("groups", 0, "id"), 1, "groups repeat an id"),
        (("groups", 0, "id"), 2**32, "groups[0].id = 4294967296 must be from 0"),
        (("groups", 0, "id"), 7, "hold groups [0, 1, 2, 3]; every one of [1, 2, 3, 7] must be once"),
        (("groups", 0, "kind"), "x", "groups[0].kind must be one of body, head, not 'x'"),
        (("groups", 0, "log2_unit"), 10**6, "groups[0].log2_unit = 1000000 must be from -100 to 60"),
        (("groups", 0, "tensors"), [], "groups[0].tensors is empty"),
        (("groups", 0, "tensors", 0, "shape"), [0, 3], "cannot have shape [0, 3]"),
        (("groups", 0, "tensors", 0, "name"), "head.bias", "groups repeat an id or the name of a tensor"),
        (("model", "blocks"), 0, "model.blocks = 0 must be from 1"),
        (("model", "head_width"), 0, "model.head_width = 0 must be from 1"),
        (("model", "heads"), -1, "model.heads = -1 must be from 1"),
        (("bases", "fp32", "size"), -1, "bases.fp32.size = -1 must be from 0"),
        (STAGES, [], "bases.fp32.stages hold groups []"),
        ((*STAGES, 0, "groups"), [], "bases.fp32.stages hold groups [1, 2, 3]"),
        ((*STAGES, 0, "groups", 0), 9, "bases.fp32.stages hold groups"),
        ((*STAGES, 0, "groups", 0), 1, "bases.fp32.stages hold groups"),
        ((*STAGES, 0, "inputs", 0), "x", "bases.fp32.stages[0].inputs: no stage below puts out 'x'"),
        ((*STAGES, 1, "outputs"), [], "bases.fp32.stages[1].outputs must be some"),
        ((*STAGES, 1, "outputs"), ["labels"], "bases.fp32.stages[1].outputs must be some"),
        ((*STAGES, 2, "outputs"), ["loss"], "bases.fp32.stages must end with outputs ['loss', 'logits'], not ['loss']"),
        ((*CALIBRATION, "kind"), "x", "bases.fp32.calibration[0].kind must be one of"),
        ((*CALIBRATION, "log2_eps"), 10**6, "calibration[0].log2_eps = 1000000 must be from -64 to 64"),
        ((*CALIBRATION, "log2_eps_apart"), -65, "calibration[0].log2_eps_apart = -65 must be from"),
        ((*CALIBRATION, "signal"), -1, "calibration[0].signal = -1.0 cannot have been measured"),
        ((*CALIBRATION, "curvature"), float("inf"), "calibration[0].curvature = inf cannot have been measured"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(
    place: tuple[str | int, ...], value: Any, said: str, bert_bundle: Bundle, tmp_path: Path
) -> None:
    assert said in altered(bert_bundle, tmp_path, place, value)


def test_bases_hold_the_same_groups_in_the_same_stages(bundles: Any, tmp_path: Path) -> None:
    bundle = bundles("bert", precision="int8,fp32,w4")
    stages = json.loads((bundle.folder / "manifest.json").read_text(encoding="utf-8"))["bases"]["w4"]["stages"]
    said = altered(bundle, tmp_path, ("bases", "w4", "stages"), [stages[0] | {"groups": [0, 1, 2]}, stages[1] | {"groups": []}, stages[2]])
    assert "bases.w4.stages hold other groups than those of precision 'int8'" in said
