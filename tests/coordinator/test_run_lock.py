"""One coordinator a run."""

import os
from pathlib import Path

import pytest

from coordinator.run_lock import RunLock
from zo.errors import StorageError


def test_a_run_is_held_once_until_it_is_let_go(tmp_path: Path) -> None:
    store = tmp_path / "run.sqlite"
    held = RunLock(store, 1, "r1")
    other = RunLock(store, 2, "r2")
    with pytest.raises(StorageError, match=rf"run 'r1' is served by another coordinator \(process {os.getpid()}\); stop it first"):
        RunLock(store, 1, "r1")
    held.close()
    RunLock(store, 1, "r1").close()
    other.close()


def test_what_a_killed_coordinator_left_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite.run-1.lock").write_text("123456789\n")
    held = RunLock(tmp_path / "run.sqlite", 1, "r1")
    assert (tmp_path / "run.sqlite.run-1.lock").read_text() == f"{os.getpid()}\n"
    held.close()


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none/run\.sqlite\.run-1\.lock: No such file or directory; check disk space"):
        RunLock(tmp_path / "none" / "run.sqlite", 1, "r1")
