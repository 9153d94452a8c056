"""The commands under `edge-coordinator bundle`, and what their flags say."""

import argparse
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Bundles
from waiting import wait_until

from coordinator import cli
from coordinator.bench import tiny_models
from coordinator.bundle_commands import precisions
from zo.bundle import open_bundle, open_whole
from zo.errors import BundleError

Command = Callable[..., int]


@pytest.fixture
def folder(bundles: Bundles) -> Path:
    """Of a bundle that tests must not change."""
    return bundles("bert", precision="int8,fp32,w4").folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["bundle", *map(str, arguments)])
    logging.root.handlers.clear()  # it writes to a stream that ends with the test
    return code, *capsys.readouterr()


def test_the_first_precision_of_a_list_is_the_default(
    folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(tiny_models.LABELS))
    task = (f"--task={tmp_path / 'labels.json'}", "--max-tokens=32", "--rank=2")
    code, out, _ = run(capsys, "build", folders("bert"), tmp_path / "out", "--precision=w4,fp32", *task)
    assert code == 0
    manifest = open_whole(tmp_path / "out").manifest
    assert (manifest.precision, list(manifest.bases)) == ("w4", ["w4", "fp32"])
    assert [line for line in out.splitlines() if line in ("w4:", "fp32:")] == ["w4:", "fp32:"]
    assert out.count("kind   eps") == 2


@pytest.mark.parametrize(("text", "found"), [("fp32", ("fp32",)), ("int8,fp32", ("int8", "fp32")), ("w4, w8", ("w4", "w8"))])
def test_a_list_of_precisions_is_read(text: str, found: tuple[str, ...]) -> None:
    assert precisions(text) == found


@pytest.mark.parametrize("text", ["", "int4", "int8,", "int8,int8", "fp32,int4", "int8 fp32"])
def test_what_is_no_list_of_precisions_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be one or several of fp32, w8, w4, int8"):
        precisions(text)


def test_all_bases_are_described(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", folder)
    assert code == 0
    for name in ("int8", "fp32", "w4"):
        assert f"base {name}: {name}.safetensors, " in out
        assert f"  {name}.stage_0.onnx: " in out
    assert out.count("probe size of the body") == 3
    code, out, _ = run(capsys, "inspect", folder, "--json")
    assert list(json.loads(out)["bases"]) == ["int8", "fp32", "w4"]


def test_all_bases_are_verified_and_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", folder)
    assert code == 0
    assert all(re.search(rf"{name} \d\.\d", out) for name in ("int8", "fp32", "w4"))
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "w4.safetensors").write_bytes(b"x")
    for arguments in (("verify", copy), ("inspect", copy), ("pack", copy, tmp_path / "a.tar"), ("calibrate", copy)):
        code, _, error = run(capsys, *arguments)
        assert code == 5
        assert "w4.safetensors does not have the digest" in error


def test_all_bases_are_calibrated_and_need_no_model_where_one_is_float32(
    folder: Path, bundles: Bundles, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "calibrate", folder)
    assert code == 0
    assert [line for line in out.splitlines() if line.endswith(":")] == ["int8:", "fp32:", "w4:"]
    code, _, error = run(capsys, "calibrate", bundles("bert", precision="int8,w4").folder)
    assert code == 3
    assert "has no base fp32, only int8, w4; give the float32 model with --model FOLDER" in error


def test_all_bases_are_packed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "pack", folder, tmp_path / "a.tar")[0] == 0
    assert run(capsys, "unpack", tmp_path / "a.tar", tmp_path / "out")[0] == 0
    assert open_whole(tmp_path / "out").manifest == open_whole(folder).manifest


@pytest.fixture
def building(folders: Callable[[str], Path], tmp_path: Path) -> Command:
    """building(*flags): the exit code of a build of the tiny BERT at `out`, with two label sentences and no data."""
    task = tmp_path / "labels.json"
    task.write_text(json.dumps(tiny_models.LABELS[:2]))
    given = ["bundle", "build", str(folders("bert")), str(tmp_path / "out"), "--task", str(task), "--max-tokens", "32", "--rank", "4"]
    return lambda *flags: cli.main([*given, *flags])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--rank=0", "--rank 0 must be from 1 to 1048576"),
        ("--alpha=nan", "--alpha nan must be more than 0, and at most 1e+06"),
        ("--alpha=0", "--alpha 0 must be more than 0, and at most 1e+06"),
        ("--alpha=1e30", "--alpha 1e+30 must be more than 0, and at most 1e+06"),
        ("--ranks=2,4", "--rank 4: --ranks stands instead of it; leave one of them out"),
        ("--trainable=full", "--rank: trainable 'full' has no adapters; leave that out, or train 'lora-fa' or 'lora'"),
        ("--trainable=norms --alpha=2", "--rank, --alpha: trainable 'norms' has no adapters; leave that out, or train 'lora-fa' or 'lora'"),
        ("--trainable=lora --adapter=x", "--adapter has a rank and an alpha of its own; leave --rank and --alpha out"),
    ],
)
def test_flags_of_adapters_that_are_impossible_or_would_not_count_are_refused(
    flags: str, said: str, building: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert building(*flags.split()) == 3
    assert capsys.readouterr().err == f"edge-coordinator: {said}\n"


def test_a_model_that_calibration_does_not_need_is_looked_at_all_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = run(capsys, "calibrate", folder, f"--model={tmp_path / 'nope'}")
    assert (code, error) == (5, f"edge-coordinator: {tmp_path / 'nope'} is no Hugging Face model folder: it has no config.json\n")


def test_a_build_that_is_terminated_leaves_nothing(folders: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(tiny_models.LABELS))
    command = [sys.executable, "-m", "coordinator", "bundle", "build", folders("bert"), tmp_path / "out", "--max-tokens=32"]
    command += [f"--task={tmp_path / 'labels.json'}", "--precision=fp32,w8,w4,int8"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: bool(list(tmp_path.glob(".making-*/made/*"))))
    started.terminate()
    assert (started.communicate(timeout=30)[1], started.returncode) == ("", -signal.SIGTERM)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


@pytest.mark.parametrize("stages", ["0", "-1", "99"])
def test_stages_that_cannot_be_cut_are_refused(stages: str, building: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert building("--stages", stages) == 5
    assert capsys.readouterr().err == f"edge-coordinator: --stages {stages}: a model of 3 blocks is cut into 1 to 3\n"


@pytest.mark.parametrize(("flags", "kinds"), [((), "bbbh"), (("--top-blocks", "1"), "bh"), (("--top-blocks", "0"), "h")])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_top_blocks_are_what_the_flag_says_and_calibrate_again(
    flags: tuple[str, ...], kinds: str, precision: str, building: Command, folders: Callable[[str], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert building("--precision", precision, *flags) == 0
    bundle = open_bundle(tmp_path / "out")
    assert "".join(group.kind[0] for group in bundle.manifest.groups) == kinds
    built = capsys.readouterr().out
    assert cli.main(["bundle", "calibrate", str(bundle.folder), "--model", str(folders("bert"))]) == 0
    again = capsys.readouterr().out
    assert [line[:11] for line in again.splitlines()] == [line[:11] for line in built.splitlines()][: len(again.splitlines())]
    name, heading, *rows = again.splitlines()
    assert (name, heading.split()[0]) == (f"{precision}:", "kind")
    assert {row.split()[0] for row in rows} == {"head"} | ({"body"} if "b" in kinds else set())
    assert cli.main(["bundle", "verify", str(bundle.folder)]) == 0


@pytest.mark.parametrize("top", ["-1", "4"])
def test_top_blocks_out_of_range_are_one_line_and_nothing_is_left(
    top: str, building: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert building("--top-blocks", top) == BundleError.exit_code
    assert capsys.readouterr().err == f"edge-coordinator: --top-blocks {top}: a model of 3 blocks can train 0 to 3\n"
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def test_top_blocks_that_are_no_number_are_wrong_usage(building: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        building("--top-blocks", "some")
    assert ended.value.code == 2
    assert "--top-blocks" in capsys.readouterr().err
