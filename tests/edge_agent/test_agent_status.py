"""The status file: whole at any moment, seldom written, readable by a person. (Not test_status.py: pytest wants one file of a name.)"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from edge_agent import status
from edge_agent.flash import cost
from edge_agent.state import STATUS, State
from edge_agent.status import Status
from zo.errors import StorageError

Make = Callable[..., Status]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """make(daily=50e6): the status of an agent whose state folder is the test's."""
    states: list[State] = []

    def made(daily: float = 50e6) -> Status:
        states.append(State(tmp_path, daily))
        return Status(states[-1])

    yield made
    for state in states:
        state.close()


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATUS).read_text())


def test_a_change_of_state_is_written_at_once(make: Make, tmp_path: Path) -> None:
    made = make()
    made.write()
    assert written(tmp_path)["state"] == "joining"
    made.update(state="unreachable", reason="nobody there")
    assert (written(tmp_path)["state"], written(tmp_path)["reason"]) == ("unreachable", "nobody there")
    made.update(state="finished", reason="the run is over")
    assert written(tmp_path)["state"] == "finished"


def test_progress_is_written_at_intervals_only(make: Make, tmp_path: Path) -> None:
    made = make()
    made.update(state="working")
    before = (tmp_path / STATUS).stat().st_mtime_ns
    for number in range(100):
        made.update(state="working", reason=f"round {number}")
        made.update(state="waiting", entry=number)
    assert (tmp_path / STATUS).stat().st_mtime_ns == before
    made._written -= status.INTERVAL
    made.update(state="working", reason="round 100")
    assert written(tmp_path)["reason"] == "round 100"
    assert written(tmp_path)["entry"] == 99


def test_no_half_written_file_is_left(make: Make, tmp_path: Path) -> None:
    made = make()
    for _ in range(3):
        made.write()
    assert {path.name for path in tmp_path.iterdir()} == {STATUS, "device_id", "lock"}


def test_progress_leaves_half_of_the_write_budget_and_a_change_of_state_does_not(make: Make, tmp_path: Path) -> None:
    made = make(daily=2 * 4 * cost(500))
    made.write()
    made._written -= status.INTERVAL
    made.update(entry=1)
    assert written(tmp_path)["entry"] == 1
    made._written -= status.INTERVAL
    made.update(entry=2)
    assert written(tmp_path)["entry"] == 1
    made.update(state="unreachable")
    assert (written(tmp_path)["entry"], written(tmp_path)["state"]) == (2, "unreachable")


def test_without_a_write_budget_there_is_no_file(make: Make, tmp_path: Path) -> None:
    made = make(daily=0)
    made.write()
    made.update(state="finished")
    assert not (tmp_path / STATUS).exists()


def test_an_agent_that_is_gone_is_told_so(make: Make, tmp_path: Path) -> None:
    made = make()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    made.facts["pid"] = ended.pid
    made.update(state="unreachable", reason="nobody there")
    assert not status.read(tmp_path)["alive"]
    assert status.told(status.read(tmp_path)).startswith("unreachable (no such process any more): nobody there\n")


def test_an_agent_that_runs_is_told_so(make: Make, tmp_path: Path) -> None:
    made = make()
    running = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "edge-agent"], stdin=subprocess.PIPE)
    made.facts["pid"] = running.pid
    made.write()
    wait_until(lambda: status.read(tmp_path)["alive"])  # its command line is there a moment after it is
    running.communicate()


def test_all_facts_are_told(make: Make, tmp_path: Path) -> None:
    made = make()
    made.update(run="fleet", device=3, entry=7, reports=5, examples=20, held_out=2, skipped=1, held_out_loss=0.25, state="stopped")
    told = status.told(status.read(tmp_path))
    for part in ("run 'fleet' as device 3, entry 7, 5 reports sent", "20 examples, 2 of them held out; 1 lines skipped", "0.2500", "MiB"):
        assert part in told


def test_the_base_is_told_and_what_it_was_compared_with(make: Make, tmp_path: Path) -> None:
    made = make()
    made.update(precision="w4", signal_per_second={}, state="stopped")
    assert "base w4\n" in status.told(status.read(tmp_path))
    made.update(precision="int8", signal_per_second={"int8": 23.8, "fp32": 10.0}, state="finished")
    assert "base int8; signal a second: int8 23.8, fp32 10.0\n" in status.told(status.read(tmp_path))


@pytest.mark.parametrize("content", [None, "", "{", "[]", "3", "{}", b"\xff"])
def test_what_is_no_status_is_told_in_a_line(content: str | bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / STATUS).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StorageError, match="holds no status of an agent"):
        status.read(tmp_path)


def test_an_agent_that_is_gone_or_silent_is_not_well(make: Make, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    made = make()
    made.facts["pid"] = ended.pid
    made.write()
    facts = status.read(tmp_path) | {"alive": True}
    assert status.ill(facts) == ""
    assert "said nothing" in status.ill(facts | {"at": facts["at"] - status.SILENCE - 1})
    assert "no agent works" in status.ill(facts | {"alive": False})
    found = subprocess.run(
        [sys.executable, "-m", "edge_agent.cli", "status", "--state", str(tmp_path), "--check"], capture_output=True, text=True
    )
    assert found.returncode == 1
    assert found.stderr == f"edge-agent: {tmp_path}: no agent works here\n"
