"""`edge-coordinator simulate`."""

import json
from pathlib import Path

import pytest

from coordinator import cli
from coordinator.bench import tiny_models
from zo.bundle import Bundle
from zo.errors import ConfigError, DataError


@pytest.fixture
def data(bert_bundle: Bundle, tmp_path: Path) -> Path:
    for place, name in enumerate(("train", "validation")):
        rows = tiny_models.examples(bert_bundle.manifest.task, 60, place)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": row.text, "label": row.label}) for row in rows))
    return tmp_path


def simulate(bundle: Bundle, data: Path, *more: str) -> int:
    return cli.main(["simulate", f"--bundle={bundle.folder}", f"--data={data}", "--devices=2", "--rounds=4", "--evaluation.every=2", *more])


def test_it_tells_where_the_fleet_is_after_every_evaluation(bert_bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(bert_bundle, data, "--json") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0].split()[1] for line in lines] == ["0", "2", "4"]
    assert "held-out loss" in lines[-1]
    rows = json.loads(last)["rounds"]
    assert [(row["round"], row["probes"]) for row in rows] == [(0, 0), (2, 8), (4, 16)]


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--devices=0"], ConfigError.exit_code),
        (["--devices=500"], DataError.exit_code),
        (["--seed=-1"], ConfigError.exit_code),
        (["--data=nowhere"], DataError.exit_code),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    more: list[str], code: int, bert_bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(bert_bundle, data, *more) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
