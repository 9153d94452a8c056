"""A manifest survives writing and reading; everything unknown, missing or of the wrong type is refused, saying where."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from zo import manifest as manifest_file
from zo.bundle import Bundle
from zo.errors import BundleError, ConfigError
from zo.group import Group, Tensor
from zo.manifest import SCHEMA_VERSION, Base, Calibration, Manifest, Stage, Task

EXAMPLE = Manifest(
    name='härd "name"',
    architecture="bert",
    width=32,
    precision="int8",
    trainable="lora-fa",
    rank=8,
    alpha=16.0,
    run_key=2**32 - 1,
    task=Task("classification", 64, "prototypes", ("über", "b\nc")),
    groups=(Group(0, "body", -20, (Tensor("a", (2, 3)), Tensor("b", ()))), Group(1, "head", -100, (Tensor("c", (4,)),))),
    bases={
        "int8": Base(
            "int8.safetensors",
            2**40,
            (
                Stage("stage_0.onnx", ("input_ids",), ("hidden",), (0,)),
                Stage("stage_1.onnx", ("hidden", "labels"), ("loss", "logits"), (1,)),
            ),
            (Calibration("body", -2, 0.125, 1e-30, -0.1, 3e20, 0.99),),
        ),
        "fp32": Base(
            "fp32.safetensors",
            7,
            (
                Stage("fp32.stage_0.onnx", ("input_ids",), ("hidden",), (0,)),
                Stage("fp32.stage_1.onnx", ("hidden",), ("loss", "logits"), (1,)),
            ),
        ),
    },
    files=dict.fromkeys(
        (
            "fp32.safetensors",
            "int8.safetensors",
            "stage_0.onnx",
            "stage_1.onnx",
            "fp32.stage_0.onnx",
            "fp32.stage_1.onnx",
            "tokenizer.json",
        ),
        "00" * 32,
    ),
)


def write(folder: Path, **changes: Any) -> None:
    EXAMPLE.write(folder)
    plain = json.loads((folder / "manifest.json").read_text(encoding="utf-8")) | changes
    (folder / "manifest.json").write_text(json.dumps(plain), encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        manifest_file.read(folder)
    return str(caught.value)


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path)
    assert manifest_file.read(tmp_path) == EXAMPLE


def test_the_manifest_of_a_built_bundle_survives_too(bert_bundle: Bundle, tmp_path: Path) -> None:
    bert_bundle.manifest.write(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == (bert_bundle.folder / "manifest.json").read_bytes()


@pytest.mark.parametrize("width", [None, 16])
def test_the_width_of_heads_is_stated_where_they_are_not_as_wide_as_the_model(
    width: int | None, bert_bundle: Bundle, tmp_path: Path
) -> None:
    model = dataclasses.replace(bert_bundle.manifest.dimensions, head_width=width)
    stated = dataclasses.replace(bert_bundle.manifest, model=model)
    stated.write(tmp_path)
    assert ("head_width" in json.loads((tmp_path / "manifest.json").read_text())["model"]) == (width is not None)
    assert manifest_file.read(tmp_path) == stated


def test_probe_sizes_are_looked_up_by_kind_of_group() -> None:
    assert EXAMPLE.log2_eps("body") == -2
    with pytest.raises(BundleError, match="no probe size for 'head' groups; run 'edge-coordinator bundle calibrate'"):
        EXAMPLE.log2_eps("head")


def test_a_bundle_is_looked_at_through_one_base_after_another(tmp_path: Path) -> None:
    exact = EXAMPLE.at("fp32")
    assert (exact.precision, exact.base, exact.stages) == ("fp32", EXAMPLE.bases["fp32"], EXAMPLE.bases["fp32"].stages)
    assert exact.at("int8") == EXAMPLE
    assert (exact.groups, exact.bases, exact.files) == (EXAMPLE.groups, EXAMPLE.bases, EXAMPLE.files)
    with pytest.raises(BundleError, match="no probe size for 'body' groups"):
        exact.log2_eps("body")
    with pytest.raises(ConfigError, match="has no base of precision 'w4'; it has int8, fp32"):
        EXAMPLE.at("w4")


def test_a_base_needs_its_own_files_and_the_shared_ones() -> None:
    assert EXAMPLE.needed == ("int8.safetensors", "stage_0.onnx", "stage_1.onnx", "tokenizer.json")
    assert EXAMPLE.at("fp32").needed == ("fp32.safetensors", "fp32.stage_0.onnx", "fp32.stage_1.onnx", "tokenizer.json")


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert "is not a bundle: it has no manifest.json" in refusal(tmp_path)
    assert "is not a bundle" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None, [1]])
def test_any_other_schema_version_is_refused(version: Any, tmp_path: Path) -> None:
    write(tmp_path, schema_version=version)
    assert f"has schema version {version!r}, this program knows {SCHEMA_VERSION}; upgrade edge-zo" in refusal(tmp_path)


@pytest.mark.parametrize("version", [True, 1.0])
def test_a_schema_version_that_only_equals_a_known_one_is_refused(version: Any, tmp_path: Path) -> None:
    write(tmp_path, schema_version=version)
    assert f"schema_version must be a whole number, not {version!r}" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"3", b"[" * 100_000])
def test_what_is_no_json_table_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    assert str(tmp_path / "manifest.json") in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trainables": "lora"}, "unknown key 'trainables'; did you mean 'trainable'?"),
        ({"precision": "int4"}, "precision must be one of 'fp32', 'w8', 'w4', 'int8', not 'int4'"),
        ({"run_key": "7"}, "run_key must be a whole number"),
        ({"groups": [{"id": 0, "kind": "body", "log2_unit": -20, "tensor": []}]}, "'groups[0].tensor'; did you mean 'tensors'?"),
        ({"precision": "w4"}, "precision is 'w4', and bases has int8, fp32"),
        ({"bases": []}, "bases must be a table"),
        ({"bases": {}}, "precision is 'int8', and bases has none"),
        ({"bases": {"int9": {}}}, "bases must be one of 'fp32', 'w8', 'w4', 'int8', not 'int9'; did you mean 'int8'?"),
        ({"bases": {"int8": {"file": "a", "size": 3, "stages": {}}}}, "bases.int8.stages must be a list"),
        ({"bases": {"int8": {"file": "a", "size": "3", "stages": []}}}, "bases.int8.size must be a whole number"),
        ({"files": {"a": 3}}, "files.a must be a text"),
        ({"task": {"kind": "classification", "max_tokens": 8}}, "key 'task.head' is missing"),
    ],
)
def test_what_is_not_known_is_named_with_its_place(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path, **changes)
    assert said in refusal(tmp_path)
    assert str(tmp_path / "manifest.json") in refusal(tmp_path)


@pytest.mark.parametrize(
    "key", [field.name for field in dataclasses.fields(Manifest) if field.default is dataclasses.MISSING and field.name != "files"]
)
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    write(tmp_path)
    plain = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    del plain[key]
    (tmp_path / "manifest.json").write_text(json.dumps(plain), encoding="utf-8")
    assert f"key {key!r} is missing" in refusal(tmp_path)
