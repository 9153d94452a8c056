"""`edge-agent calibrate`: sizes of probes as they measure here, against float32 or for noise alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Bundles

from edge_agent.cli import main
from zo.calibration import CANDIDATES
from zo.errors import ConfigError


def calibrated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["calibrate", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def texts(folder: Path) -> Path:
    rows = [{"text": "one two three four five", "label": place % 2} for place in range(40)]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_base_is_measured_against_float32_and_its_best_size_chosen(
    bundles: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundles("bert", precision="int8,fp32")
    found = calibrated(capsys, f"--bundle={bundle.folder}", f"--data={texts(tmp_path)}")
    assert found["compared_with_fp32"]
    assert found["bases"].keys() == {"int8", "fp32"}
    for name, base in found["bases"].items():
        assert base["stated"] == {each.kind: each.log2_eps for each in bundle.at(name).manifest.calibration}
        assert base["chosen"].keys() == base["stated"].keys()
        for kind, log2_eps in base["chosen"].items():
            (row,) = [row for row in base["measured"] if (row["kind"], row["log2_eps"]) == (kind, log2_eps)]
            best = max(each["correlation"] for each in base["measured"] if each["kind"] == kind)
            assert row["correlation"] ** 2 >= 0.5 * best**2
        assert base["signal_per_second"] > 0
    exact = {(row["kind"], row["log2_eps"]): row for row in found["bases"]["fp32"]["measured"]}
    assert exact["body", -10]["correlation"] == pytest.approx(1)
    assert main(["calibrate", f"--bundle={bundle.folder}", "--precision=fp32"]) == 0
    told = capsys.readouterr().out
    assert "int8" not in told
    assert told.count("*2**") == 2
    assert "the bundle states: body 2**" in told


def test_without_float32_noise_alone_is_measured_and_said(bundles: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundles("bert", precision="int8")
    found = calibrated(capsys, f"--bundle={bundle.folder}")
    assert not found["compared_with_fp32"]
    rows = found["bases"]["int8"]["measured"]
    assert {row["log2_eps"] for row in rows if row["kind"] == "body"} == set(CANDIDATES)
    assert all(0 <= row["correlation"] <= 1 for row in rows)
    assert main(["calibrate", f"--bundle={bundle.folder}"]) == 0
    assert "only noise is measured" in capsys.readouterr().out


def test_a_base_that_is_not_there_is_refused_by_name(bundles: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(bundles("bert", precision="int8,fp32").folder, tmp_path / "part"))
    (folder / "fp32.safetensors").unlink()
    assert main(["calibrate", f"--bundle={folder}", "--precision=fp32"]) == ConfigError.exit_code
    assert "holds bases int8, not fp32" in capsys.readouterr().err


def test_threads_that_cannot_be_are_refused(bundles: Bundles, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", f"--bundle={bundles('bert').folder}", "--threads=-1"]) == ConfigError.exit_code
    assert "--threads -1 must be 1 to 256" in capsys.readouterr().err
