"""The evaluating process: the metrics of the entry that was asked for, in any order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Bundles
from test_export import trained

from coordinator.sqlite_store import SqliteStore
from coordinator.status import describe
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import DataError
from zo.evaluation import batches, evaluate


def write(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ask(folder: Path, validation: Path, lines: list[str]) -> tuple[int, list[dict[str, object]], str]:
    arguments = ["--store", str(folder / "run.sqlite"), "--run", "run", "--validation", str(validation), "--most", "10"]
    done = subprocess.run(
        [sys.executable, "-m", "coordinator.evaluation", *arguments], input="".join(lines), capture_output=True, text=True, timeout=60
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_the_process_answers_for_any_entry_in_any_order(bert_bundle: Bundle, validation: Path, tmp_path: Path) -> None:
    model = trained(bert_bundle, tmp_path)
    code, found, said = ask(
        tmp_path, validation, [f'{{"entry": {entry}, "split": "validation", "over": {over}}}\n' for entry, over in ((3, 0), (0, 3), (3, 0))]
    )
    assert (code, said) == (0, "")
    expected = evaluate(Engine(bert_bundle, model.parameters), batches(bert_bundle, validation, 10))
    assert found[0] == found[2]
    assert {name: found[0][name] for name in expected} == pytest.approx(expected)
    assert (found[1]["gain"], found[1]["gain_error"]) == (0.0, 0.0)
    assert found[0]["gain"] == pytest.approx(found[1]["balanced_loss"] - found[0]["balanced_loss"])
    assert found[1]["loss"] != found[0]["loss"]
    assert [each["over"] for each in found] == [0, 3, 0]
    assert found[1]["rise"] == pytest.approx(found[0]["gain"])
    assert (found[0]["rise"], found[0]["rise_error"]) == (pytest.approx(-found[0]["gain"]), found[0]["gain_error"])  # type: ignore[operator]


def test_the_process_measures_every_prefix(bundles: Bundles, validation: Path, tmp_path: Path) -> None:
    bundle = bundles("bert", ranks=(1, 2, 4))
    model = trained(bundle, tmp_path)
    _, (found,), _ = ask(tmp_path, validation, ['{"entry": 3, "split": "validation", "over": 0}\n'])
    for rank in (1, 2):
        expected = evaluate(Engine(bundle, model.parameters, rank=rank), batches(bundle, validation, 10))
        assert found["prefixes"][str(rank)] == pytest.approx(expected)  # type: ignore[index]
    assert set(found["prefixes"]) == {"1", "2"}  # type: ignore[call-overload]
    assert "; accuracy of rank 1 0." in describe(found)


def test_the_process_tells_what_is_wrong_with_the_file(bert_bundle: Bundle, tmp_path: Path) -> None:
    trained(bert_bundle, tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    code, found, said = ask(tmp_path, tmp_path / "empty.jsonl", ['{"entry": 0, "split": "validation", "over": 0}\n'])
    assert (code, said) == (DataError.exit_code, "")
    assert "holds no usable example" in str(found[0]["error"])
    assert SqliteStore(tmp_path / "run.sqlite").head(1)[0] == 3
