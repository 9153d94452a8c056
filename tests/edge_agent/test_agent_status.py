"""The status file: whole at any moment, seldom written, readable by a person. (Not test_status.py: pytest wants one file of a name.)"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent import status
from edge_agent.status import FILE, Status
from zo.errors import StorageError


def written(folder: Path) -> dict:
    return json.loads((folder / FILE).read_text())


def test_a_change_of_state_is_written_at_once(tmp_path: Path) -> None:
    made = Status(tmp_path)
    made.write()
    assert written(tmp_path)["state"] == "joining"
    made.update(state="unreachable", reason="nobody there")
    assert (written(tmp_path)["state"], written(tmp_path)["reason"]) == ("unreachable", "nobody there")
    made.update(state="finished", reason="the run is over")
    assert written(tmp_path)["state"] == "finished"


def test_progress_is_written_at_intervals_only(tmp_path: Path) -> None:
    made = Status(tmp_path)
    made.write()
    before = (tmp_path / FILE).stat().st_mtime_ns
    for number in range(100):
        made.update(state="working", reason=f"round {number}")
        made.update(state="waiting", entry=number)
    assert (tmp_path / FILE).stat().st_mtime_ns == before
    made._written -= status.INTERVAL
    made.update(state="working", reason="round 100")
    assert written(tmp_path)["reason"] == "round 100"
    assert written(tmp_path)["entry"] == 99


def test_no_half_written_file_is_left(tmp_path: Path) -> None:
    made = Status(tmp_path)
    for _ in range(3):
        made.write()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="give a folder that can be written with --state"):
        Status(tmp_path / "gone").write()


def test_an_agent_that_is_gone_is_told_so(tmp_path: Path) -> None:
    made = Status(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    made.facts["pid"] = ended.pid
    made.update(state="unreachable", reason="nobody there")
    assert not status.read(tmp_path)["alive"]
    assert status.told(status.read(tmp_path)).startswith("unreachable (no such process any more): nobody there\n")


def test_an_agent_that_runs_is_told_so(tmp_path: Path) -> None:
    made = Status(tmp_path)
    running = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "edge-agent"], stdin=subprocess.PIPE)
    made.facts["pid"] = running.pid
    made.write()
    assert status.read(tmp_path)["alive"]
    running.communicate()


def test_all_facts_are_told(tmp_path: Path) -> None:
    made = Status(tmp_path)
    made.update(run="fleet", device=3, entry=7, reports=5, examples=20, held_out=2, skipped=1, held_out_loss=0.25, state="stopped")
    told = status.told(status.read(tmp_path))
    for part in ("run 'fleet' as device 3, entry 7, 5 reports sent", "20 examples, 2 of them held out; 1 lines skipped", "0.2500", "MiB"):
        assert part in told


@pytest.mark.parametrize("content", [None, "", "{", "[]", "3", "{}", b"\xff"])
def test_what_is_no_status_is_told_in_a_line(content: str | bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StorageError, match="holds no status of an agent"):
        status.read(tmp_path)
