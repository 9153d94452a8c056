"""The data and flags that the demo is given."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.bench import tiny_models
from coordinator.demo.__main__ import _prepare_data, _settings, main
from zo import examples
from zo.errors import BundleError, ConfigError, DataError, StorageError
from zo.examples import Example


def given(data: Path | None, agents: int = 2) -> argparse.Namespace:
    return argparse.Namespace(data=data, agents=agents, seed=0, max_tokens=None)


def folder_of(folder: Path, lines: list[dict[str, Any]], labels: bool) -> Path:
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if labels:
        (folder / "labels.json").write_text(json.dumps(tiny_models.LABELS))
    return folder


LABELLED = [{"text": each.text, "label": each.label} for each in tiny_models.examples(tiny_models.CLASSIFICATION, 20)]


def test_household_commands_are_examples_with_a_task(tmp_path: Path) -> None:
    task, homes = _prepare_data(given(None, 3), tmp_path)
    assert len(homes) == 3
    for split in ("validation", "test"):
        found = examples.read(tmp_path / f"{split}.jsonl", task)
        assert found.examples
        assert found.skipped == 0
    assert {example.label for home in homes for example in home} <= set(range(len(task.labels)))


def test_the_devices_share_the_usable_training_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of(tmp_path / "data", [*LABELLED, {"text": "no label"}, {"text": "x", "label": 99}], labels=True)
    task, homes = _prepare_data(given(data), tmp_path / "out")
    assert task.labels == tiny_models.LABELS
    expected = [Example(line["text"], line["label"]) for line in LABELLED]
    shared = [example for home in homes for example in home]
    assert sorted(shared, key=lambda each: each.text) == sorted(expected, key=lambda each: each.text)
    assert examples.read(tmp_path / "out/test.jsonl", task).examples == expected
    assert "train: 20 examples; skipped 2 lines: train.jsonl:21: unknown label None" in capsys.readouterr().out


def test_text_without_labels_is_for_language_modelling(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", [{"text": text} for text in tiny_models.sentences(20)], labels=False)
    task, homes = _prepare_data(given(data), tmp_path / "out")
    assert task.kind == "language-modelling"
    assert [example.text for home in homes for example in home] == tiny_models.sentences(20)


def test_labels_without_a_list_of_them_are_refused(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", LABELLED, labels=False)
    with pytest.raises(DataError, match=r"has labels but no labels\.json"):
        _prepare_data(given(data), tmp_path / "out")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_missing_or_useless_file_is_named(split: str, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", LABELLED, labels=True)
    (data / f"{split}.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=rf"{split}\.jsonl holds no usable example"):
        _prepare_data(given(data), tmp_path / "out")
    (data / f"{split}.jsonl").unlink()
    with pytest.raises(DataError, match=rf"{split}\.jsonl does not exist"):
        _prepare_data(given(data), tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--seed", "-1"], ConfigError.exit_code, "--seed -1 must be from 0"),
        (["--seed", str(2**32)], ConfigError.exit_code, f"--seed {2**32} must be from 0"),
        (["--agents", "0"], ConfigError.exit_code, "must be 1 to 256"),
        (["--agents", "257"], ConfigError.exit_code, "must be 1 to 256"),
        (["--rounds", "-1"], ConfigError.exit_code, "--rounds at least 1"),
        (["--rounds", "0"], ConfigError.exit_code, "--rounds at least 1"),
        (["--json", "no/such/figures.json"], StorageError.exit_code, "no/such/figures.json does not exist"),
        (["--max-tokens", "0"], ConfigError.exit_code, "--max-tokens: max_tokens = 0 must be from 2 to"),
        (["--set", "rounds"], ConfigError.exit_code, "--set 'rounds' must be KEY=VALUE"),
        (["--set", "rate.bdy=1"], ConfigError.exit_code, "there is no setting 'rate.bdy'; did you mean"),
        (["--set", "round.goal=0"], ConfigError.exit_code, "goal = 0"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_made(
    flags: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.demo.__main__._prepare_data", lambda *_: pytest.fail("it went on"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main([*flags, "--out", str(tmp_path / "out")]) == code
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_somebody_keeps_is_not_written_over(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of(tmp_path / "data", LABELLED, labels=True)
    before = {path: path.read_bytes() for path in data.iterdir()}
    out = tmp_path if kind == "folder" else data / "train.jsonl"
    assert main(["--data", str(data), "--out", str(out)]) == BundleError.exit_code
    assert (
        capsys.readouterr().err == f"scripts/demo: --out {out} exists already, and holds something; choose another folder, or remove it\n"
    )
    assert {path: path.read_bytes() for path in data.iterdir()} == before
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize("key", ["probe.log2_eps_body", "probe.log2-eps-body"])
def test_a_setting_may_be_written_as_in_a_file_or_as_a_flag(key: str) -> None:
    settings = _settings(argparse.Namespace(agents=3, set=[f"{key}=-4"]), 5, Path("data"))
    assert settings["probe.log2_eps_body"] == "-4"
    assert settings["round.minimum"] == "2"
