"""`edge-agent plan`: terms, what fits, the largest of everything; of a bundle what its stages cost, unless it does not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Bundles

from edge_agent.cli import main
from zo.errors import ConfigError
from zo.memory.methods import METHODS


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_published_shape_is_told_term_by_term(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--memory=2GiB", "--shape=llama-1b", "--batch=1", "--tokens=64")
    assert found["memory"] == {"budget": 2**31, "allowed": round(0.85 * 2**31)}
    rows = {row["method"]: row for row in found["methods"]}
    assert rows.keys() == METHODS.keys()
    for row in rows.values():
        assert row["total"] == sum(row["terms"].values())
        assert row["fits"] == (row["total"] <= 2**31)
    assert rows["MeZO, adapters, w4 base"]["fits"]
    assert not rows["MeZO, full"]["fits"]
    assert rows["backprop, full, Adam"]["terms"]["optimiser"] > rows["MeZO, full"]["terms"]["optimiser"] == 0


def test_without_a_model_the_largest_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--memory=4GB")
    rows = {row["method"]: row for row in found["methods"]}
    assert rows["backprop, full, Adam"]["largest_model"] == "llama-135m"
    assert rows["FedSPZO, adapters, w4 base"]["largest_parameters"] > 10 * rows["backprop, full, Adam"]["largest_parameters"]
    assert main(["plan", "--memory=4GB"]) == 0
    told = capsys.readouterr().out
    assert "memory: 4.00 GB at most" in told
    assert "llama-135m" in told


def test_of_a_bundle_memory_and_stages_are_told(bundles: Bundles, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundles("bert", precision="int8,fp32")
    found = planned(capsys, f"--bundle={bundle.folder}")
    assert found["memory"]["bases"].keys() == {"int8", "fp32"}
    assert all(base["fits"] and base["least"] <= base["usual"] for base in found["memory"]["bases"].values())
    assert found["stage_ns"].keys() == {stage.file for stage in bundle.manifest.stages}
    assert "methods" not in found
    assert main(["plan", "--model", str(bundle.folder), "--memory=1GB"]) == 0
    told = capsys.readouterr().out
    assert "needs at least" in told
    assert "microseconds a branch of an example" in told
    assert "MeZO, adapters" in told


def test_of_a_bundle_for_short_texts_as_many_tokens_are_taken_as_it_has(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("bert")
    shutil.copytree(bundle.folder, tmp_path / "short")
    manifest = json.loads((tmp_path / "short/manifest.json").read_text())
    manifest["task"]["max_tokens"] = 16
    (tmp_path / "short/manifest.json").write_text(json.dumps(manifest))
    assert main(["plan", f"--bundle={tmp_path / 'short'}"]) == 0
    assert main(["plan", f"--bundle={tmp_path / 'short'}", "--tokens=17"]) == ConfigError.exit_code


def test_a_bundle_that_does_not_fit_is_not_loaded(bundles: Bundles, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, f"--bundle={bundles('bert').folder}", "--memory=20MB")
    assert not found["memory"]["bases"]["fp32"]["fits"]
    assert "stage_ns" not in found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shape=llama-2b"], "--shape 'llama-2b' is not known; did you mean 'llama-"),
        (["--memory=lots"], "--memory: 'lots' is no amount of memory"),
        (["--shape=bert-base", "--threads=0"], "--threads 0 must be 1 to 256"),
        (["--shape=bert-base", "--threads=100000"], "--threads 100000 must be 1 to 256"),
        (["--shape=bert-base", "--bundle=x"], "--bundle and --shape name two models"),
        (["--shape=bert-base", "--batch=0"], "--examples and --tokens at least 1"),
        (["--shape=bert-base", "--directions=9999"], "--directions must be 1 to 4096"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == ConfigError.exit_code
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1


def test_tokens_beyond_the_bundle_are_refused(bundles: Bundles, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", f"--bundle={bundles('bert').folder}", "--tokens=33"]) == ConfigError.exit_code
    assert "--tokens must be 1 to the bundle's 32" in capsys.readouterr().err


def test_a_base_that_the_bundle_has_not_is_refused_by_name(bundles: Bundles, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"--bundle={bundles('bert').folder}", "--precision=int8"]) == ConfigError.exit_code
    assert "has no base of precision 'int8'; it has fp32" in capsys.readouterr().err
