"""`scripts/bench` as a command: every benchmark can be asked for, and what it finds becomes text, JSON and an exit code."""

import json
import math
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from coordinator.bench import __main__ as bench
from coordinator.bench.__main__ import BENCHMARKS, main
from zo.errors import StorageError

LOOK = "import atexit, sys; from coordinator.bench.__main__ import main; atexit.register(lambda: print(*sys.modules)); main(sys.argv[1:])"
HEAVY = {"numpy", "onnx", "onnxruntime", "grpc", "matplotlib", "torch"}


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    listed = helped(capsys)
    assert all(re.search(f"^    {name}\\s", listed, re.MULTILINE) for name in BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, name)
    assert text.startswith(f"usage: scripts/bench {name} [-h]")
    assert "print one JSON object as the last line" in text


@pytest.mark.parametrize(
    ("arguments", "imported", "heavy"),
    [(["--help"], {"scratch"}, set()), (["replay", "--help"], {"scratch", "replay", "perturb"}, {"numpy", "onnxruntime"})],
)
def test_only_the_benchmark_that_is_asked_for_is_imported(arguments: list[str], imported: set[str], heavy: set[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LOOK, *arguments], check=True, capture_output=True, text=True)
    found = set(done.stdout.splitlines()[-1].split())
    assert {name.removeprefix("coordinator.bench.") for name in found if name.startswith("coordinator.bench.")} == imported | {"__main__"}
    assert HEAVY & found == heavy


def test_the_figures_are_the_last_line_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--elements", "1000", "--repeats", "1", "--json"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "32 terms over 1,000 values, ns a value and term:"
    assert json.loads(last)["elements"] == 1000


class Kept(ModuleType):
    """A benchmark that notes where it works, and has neither a text nor a bar."""

    def run(self, given: Namespace, folder: Path) -> dict[str, Any]:
        (folder / "store").touch()
        return {"lost_commits": given.lost, "seconds": 1.5}


class Barred(Kept):
    """The same with a bar."""

    def failed(self, found: dict[str, Any]) -> bool:
        return bool(found["lost_commits"])


def test_figures_without_a_text_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench._run(Kept("kept"), Namespace(lost=3, json=False)) == 0
    assert capsys.readouterr().out == "lost commits  3\nseconds       1.5\n"


def test_what_is_no_number_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench._run(Kept("kept"), Namespace(lost=({"se": math.nan}, [1.5, math.inf]), json=True)) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["lost_commits"] == [{"se": None}, [1.5, None]]


@pytest.mark.parametrize("lost", [0, 3])
def test_a_bar_that_is_not_met_is_an_exit_code_of_1(lost: int) -> None:
    assert bench._run(Barred("barred"), Namespace(lost=lost, json=False)) == (lost > 0)


def test_the_folder_is_kept_where_it_is_asked_for_and_must_be_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a" / "b"
    bench._run(Kept("kept"), Namespace(lost=0, json=False, keep=folder))
    assert [each.name for each in folder.iterdir()] == ["store"]
    capsys.readouterr()
    assert main(["soak", "--keep", str(folder)]) == StorageError.exit_code
    assert f"{folder}: File exists" in capsys.readouterr().err


def test_the_folder_lies_on_the_disk_that_is_named_and_is_removed(tmp_path: Path) -> None:
    with bench.scratch.folder(Namespace(disk=tmp_path)) as folder:
        assert folder.parent == tmp_path
    assert not folder.exists()
