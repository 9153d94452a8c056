"""The state folder: whole after a crash at any call, set aside where torn, one agent's alone, and lived without where it must be."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.flash import cost
from edge_agent.state import POSITION, REPORT, STATUS, State
from zo.checkpoint import Checkpoint, GroupValues
from zo.disk import Disk, sealed
from zo.errors import StorageError
from zo.messages import Report
from zo.terms import Term

DAILY = 50e6
CALLS = 4  # of the disk, for one file: write, sync, rename, sync of the folder
SLACK = 20_000  # bytes: what comes back to the budget while a test runs (289 a second), and rounding


def position(entry: int, size: int = 40) -> Checkpoint:
    steps = np.arange(size) - 7 * entry
    return Checkpoint(bytes([1] * 32), entry, bytes([entry] * 32), bytes([3] * 32), (Term((0, 1), 5, steps),), (GroupValues(2, b"abcd"),))


def report(number: int) -> Report:
    return Report(1, 2, number, np.array([number, -5, 7]), 4, "fp32", plan=9)


class Died(BaseException):
    """The process is no more."""


class DyingDisk(Disk):
    """Dies before its n-th call; in the middle of it, where that is a write."""

    def __init__(self, after: int = 10**9, torn: float = 0.5) -> None:
        self.left, self.torn = after, torn

    def write(self, path: Path, content: bytes) -> None:
        if self._dying():
            super().write(path, content[: int(len(content) * self.torn)])
        self._live()
        super().write(path, content)

    def sync(self, path: Path) -> None:
        self._live()
        super().sync(path)

    def rename(self, old: Path, new: Path) -> None:
        self._live()
        super().rename(old, new)

    def sync_folder(self, folder: Path) -> None:
        self._live()
        super().sync_folder(folder)

    def _dying(self) -> bool:
        return self.left <= 0

    def _live(self) -> None:
        if self._dying():
            raise Died
        self.left -= 1


class PowerLoss(DyingDisk):
    """Keeps what was synced only: `cut` brings a folder to where it may be after the power is gone."""

    def __init__(self, after: int = 10**9) -> None:
        super().__init__(after)
        self.unsynced: set[Path] = set()
        self.renamed: list[tuple[Path, bytes | None]] = []  # what was there before, until the folder is synced

    def write(self, path: Path, content: bytes) -> None:
        self.unsynced.add(path)
        super().write(path, content)

    def sync(self, path: Path) -> None:
        super().sync(path)
        self.unsynced.discard(path)

    def rename(self, old: Path, new: Path) -> None:
        before = new.read_bytes() if new.exists() else None
        super().rename(old, new)
        self.renamed.append((new, before))
        self.unsynced = {new if path == old else path for path in self.unsynced}

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self.renamed.clear()

    def cut(self, folder: Path, names_kept: bool) -> None:
        for path in self.unsynced:
            (folder / path.name).write_bytes(b"")
        for path, before in [] if names_kept else reversed(self.renamed):
            if before is None:
                (folder / path.name).unlink()
            else:
                (folder / path.name).write_bytes(before)


class FailingDisk(Disk):
    """Every call from the n-th on fails with an error number, as long as there is one."""

    def __init__(self, error: int = 0, first: int = 1) -> None:
        self.error, self.first, self.calls = error, first, 0

    def write(self, path: Path, content: bytes) -> None:
        self._check(path)
        super().write(path, content)

    def sync(self, path: Path) -> None:
        self._check(path)
        super().sync(path)

    def rename(self, old: Path, new: Path) -> None:
        self._check(new)
        super().rename(old, new)

    def sync_folder(self, folder: Path) -> None:
        self._check(folder)
        super().sync_folder(folder)

    def _check(self, path: Path) -> None:
        self.calls += 1
        if self.error and self.calls >= self.first:
            raise OSError(self.error, os.strerror(self.error), str(path))


Open = Callable[..., State]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """opened(folder="state", disk=None, daily=DAILY): a state folder; let go of at the end."""
    made: list[State] = []

    def state(folder: str | Path = "state", disk: Disk | None = None, daily: float = DAILY) -> State:
        made.append(State(tmp_path / folder, daily, disk))
        return made[-1]

    yield state
    for each in made:
        each.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- saving and reading ---


def test_what_was_saved_is_read_again_by_the_next_process(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    state = opened()
    assert (state.position(), state.report()) == (None, None)
    assert state.save_position(position(3))
    assert state.save_report(report(4), 0)
    state.close()
    after = opened()
    assert after.device_id == state.device_id
    assert after.position() == position(3)
    found = after.report()
    assert found is not None
    assert (found.round, found.plan, found.scalars.tolist()) == (4, 9, [4, -5, 7])
    assert warnings(caplog) == []


def test_only_files_of_its_own_are_in_the_folder(opened: Open) -> None:
    state = opened()
    for number in range(3):
        state.save_position(position(number))
        state.save_report(report(number), 0)
        state.save_status({"number": number})
    assert {path.name for path in state.folder.iterdir()} == {"device_id", "position", "report", "status.json", "lock"}


SAVES: dict[str, tuple[Callable[[State, int], bool], Callable[[State], int | None]]] = {
    "position": (
        lambda state, n: state.save_position(position(n, 5000)),
        lambda state: found.entry if (found := state.position()) else None,
    ),
    "report": (lambda state, n: state.save_report(report(n), 0), lambda state: found.round if (found := state.report()) else None),
}


@pytest.mark.parametrize("torn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("call", range(CALLS))
@pytest.mark.parametrize("name", SAVES)
def test_a_crash_at_any_call_leaves_the_old_file_or_the_new(
    name: str, call: int, torn: float, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    save, read = SAVES[name]
    state = opened(disk=(disk := DyingDisk(torn=torn)))
    assert save(state, 1)
    disk.left = call
    with pytest.raises(Died):
        save(state, 2)
    state.close()
    after = opened()
    assert read(after) == (2 if call == CALLS - 1 else 1)
    assert warnings(caplog) == []
    assert save(after, 3)
    assert read(after) == 3


@pytest.mark.parametrize("names_kept", [False, True])
@pytest.mark.parametrize("call", range(CALLS + 1))
@pytest.mark.parametrize("name", SAVES)
def test_a_power_cut_at_any_call_leaves_the_old_file_or_the_new_and_the_new_once_it_is_promised(
    name: str, call: int, names_kept: bool, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    save, read = SAVES[name]
    state = opened(disk=(disk := PowerLoss()))
    assert save(state, 1)
    disk.left = call
    promised = False
    try:
        promised = save(state, 2)
    except Died:
        assert call < CALLS
    state.close()
    disk.cut(state.folder, names_kept)
    assert read(opened()) in ((2,) if promised else (1, 2))
    assert promised == (call == CALLS)
    assert warnings(caplog) == []


@pytest.mark.parametrize("call", range(CALLS))
def test_a_crash_while_the_devices_name_is_made_leaves_a_name_or_none(call: int, opened: Open, tmp_path: Path) -> None:
    with pytest.raises(Died):
        opened("first", DyingDisk(call))
    shutil.copytree(tmp_path / "first", tmp_path / "after")  # the lock of the one that died stays behind
    there = (tmp_path / "after/device_id").exists()
    assert there == (call == CALLS - 1)
    name = opened("after").device_id
    assert int((tmp_path / "after/device_id").read_text(), 16) == name
    if there:
        assert int((tmp_path / "first/device_id").read_text(), 16) == name


@pytest.mark.parametrize("names_kept", [False, True])
def test_a_name_that_was_told_outlives_a_power_cut(names_kept: bool, opened: Open) -> None:
    state = opened(disk=(disk := PowerLoss()))
    state.close()
    disk.cut(state.folder, names_kept)
    assert opened().device_id == state.device_id


def test_a_status_torn_by_a_power_cut_is_replaced(opened: Open) -> None:
    state = opened(disk=(disk := PowerLoss()))
    assert state.save_status({"entry": 1})
    state.close()
    disk.cut(state.folder, True)
    assert (state.folder / STATUS).read_bytes() == b""
    after = opened()
    after.budget._left = DAILY / 2  # what there is left is another test's matter
    assert after.save_status({"entry": 2})
    assert json.loads((state.folder / STATUS).read_text())["entry"] == 2


# --- files that are not what was written ---


def places(size: int) -> list[int]:
    """Some bytes of a file: the ends, and a few between."""
    return sorted({0, 1, 20, size // 3, size // 2, size - 33, size - 32, size - 1})


def damages(content: bytes) -> dict[str, bytes]:
    flipped = {
        f"byte {place} altered": content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :] for place in places(len(content))
    }
    cut = {f"cut at {place}": content[:place] for place in places(len(content))}
    return flipped | cut | {"zeros": bytes(len(content)), "longer": content + b"\0", "other bytes": b"\xff" * 100}


@pytest.mark.parametrize("name", SAVES)
def test_a_file_that_is_torn_or_altered_is_set_aside_and_made_again(name: str, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    save, read = SAVES[name]
    state = opened()
    assert save(state, 1)
    state.close()
    content = (state.folder / name).read_bytes()
    for damage, altered in damages(content).items():
        (state.folder / name).write_bytes(altered)
        caplog.clear()
        after = opened(daily=1e12)
        assert read(after) is None, damage
        assert len(warnings(caplog)) == 1, damage
        assert f"{name} is not used (it is torn or altered); it is kept as {name}.corrupt, and made again" in warnings(caplog)[0]
        assert (state.folder / f"{name}.corrupt").read_bytes() == altered
        (state.folder / f"{name}.corrupt").unlink()
        assert not (state.folder / name).exists()
        assert read(after) is None
        after.budget._left = DAILY
        assert save(after, 2)
        assert read(after) == 2
        after.close()


@pytest.mark.parametrize("content", [b"", b"\n", b"no json\n", b"{}\n\xff\xff"])
def test_other_content_under_a_good_checksum_is_set_aside(content: bytes, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    state = opened()
    (state.folder / POSITION).write_bytes(sealed(content))
    assert state.position() is None
    assert len(warnings(caplog)) == 1
    assert (state.folder / "position.corrupt").read_bytes() == sealed(content)


def test_what_was_set_aside_before_is_kept_but_no_more_than_three(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    state = opened()
    for number in range(5):
        (state.folder / POSITION).write_bytes(bytes([number]))
        assert state.position() is None
    found = {path.name: path.read_bytes()[0] for path in state.folder.glob("position.*")}
    assert found == {"position.corrupt": 0, "position.corrupt.1": 1, "position.corrupt.2": 4}
    assert "it is kept as position.corrupt.2" in warnings(caplog)[-1]


def test_a_position_that_is_forgotten_is_kept_beside(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    state = opened()
    state.forget_position("nothing is there")
    assert warnings(caplog) == []
    state.save_position(position(3))
    state.forget_position("it is of another run")
    assert state.position() is None
    assert (state.folder / "position.corrupt").exists()
    assert [text for text in warnings(caplog) if "(it is of another run)" in text] == warnings(caplog) != []


# --- the name of the device ---


def test_a_device_keeps_its_name(opened: Open) -> None:
    first, other = opened("a"), opened("b")
    first.close()
    assert opened("a").device_id == first.device_id != other.device_id
    assert 0 <= first.device_id < 2**64
    assert {path.name for path in first.folder.iterdir()} == {"device_id", "lock"}


@pytest.mark.parametrize("content", [b"", b"no name", b"-1", b"1" * 17, b"\xff\xfe", bytes(17)])
def test_a_name_that_is_none_is_refused_and_left_alone(content: bytes, opened: Open, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/device_id").write_bytes(content)
    with pytest.raises(StorageError, match="does not hold a device's name; remove it to join as a new device"):
        opened()
    assert (tmp_path / "state/device_id").read_bytes() == content


@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_folder_where_no_name_can_be_made_is_refused_by_name(error: int, opened: Open) -> None:
    with pytest.raises(StorageError, match=rf"device_id: {os.strerror(error)}; give a folder that can be written with --state"):
        opened(disk=FailingDisk(error))


def test_a_folder_below_a_file_is_refused_by_name(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="give a folder that can be written with --state"):
        opened("file/state")


# --- one agent a folder ---

REFUSAL = "another agent works in .*; stop it, or give this one a folder of its own with --state"
PROGRAM = "import sys; from pathlib import Path; from edge_agent.state import State; s = State(Path(sys.argv[1]), 50e6); "
HOLD = "print('held', flush=True); input()"


def test_a_second_agent_is_refused_until_the_first_lets_go(opened: Open) -> None:
    first = opened()
    with pytest.raises(StorageError, match=REFUSAL):
        opened()
    opened("another")
    first.close()
    first.close()
    second = opened()
    with pytest.raises(StorageError, match=REFUSAL):
        opened()
    assert second.device_id == first.device_id


def test_the_death_of_an_agent_lets_go_of_its_folder(opened: Open, tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", PROGRAM + HOLD, tmp_path / "state"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(StorageError, match=REFUSAL):
        opened()
    holder.kill()
    holder.communicate()
    assert opened().save_position(position(1))


# --- a disk that cannot be written ---


@pytest.mark.parametrize("first", range(1, CALLS + 1))
@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_disk_that_cannot_be_written_is_told_once_and_again_after_it_could(
    error: int, first: int, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    state = opened(disk=(disk := FailingDisk()))
    assert state.save_position(position(1))
    assert state.save_report(report(1), 0)
    for _ in range(2):
        disk.error, disk.calls, disk.first = error, 0, first
        caplog.clear()
        assert not state.save_position(position(2))
        disk.calls = 0
        assert not state.save_report(report(2), 0)
        disk.calls = 0
        assert state.save_status({}) == (first > 2)  # one that is not synced has two calls
        if first <= 2:
            expected = f"{state.folder}: {os.strerror(error)}; training goes on, but after a restart it begins again from the bundle"
            assert [text.startswith(expected) for text in warnings(caplog)] == [True]
        assert state.position() in (position(1), position(2))
        disk.error = 0
        assert state.save_position(position(1))
        assert state.save_report(report(1), 0)
        assert state.save_status({})
    assert state.position() == position(1)


def test_a_file_that_cannot_be_set_aside_is_still_not_used(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    state = opened(disk=(disk := FailingDisk()))
    state.save_position(position(1))
    (state.folder / POSITION).write_bytes(b"torn")
    disk.error = errno.EROFS
    assert state.position() is None
    assert (state.folder / POSITION).read_bytes() == b"torn"


# --- the write budget, over restarts ---


def test_the_budget_counts_every_file_and_says_so_in_the_status(opened: Open) -> None:
    state = opened()
    assert state.budget.left == DAILY / 2
    state.save_position(position(1))
    state.save_report(report(1), 0)
    state.save_status({"state": "working"})
    expected = DAILY / 2 - 3 * cost(100)
    assert expected <= state.budget.left < expected + SLACK
    facts = json.loads((state.folder / STATUS).read_text())
    assert facts["state"] == "working"
    assert expected <= facts["write_budget"]["left"] < expected + SLACK


def test_nothing_is_written_beyond_the_budget(opened: Open) -> None:
    state = opened(daily=2 * 2 * cost(100) + 100)
    assert state.save_position(position(1))
    before = (state.folder / POSITION).read_bytes()
    assert not state.save_report(report(1), position_size=100)  # it leaves room for the position
    assert not (state.folder / REPORT).exists()
    assert not state.save_status({}, reserve=cost(100))
    assert state.save_status({})
    assert not state.save_position(position(2))
    assert not state.save_report(report(1), 0)
    assert (state.folder / POSITION).read_bytes() == before


def test_without_a_budget_only_the_name_is_written(opened: Open) -> None:
    state = opened(daily=0)
    assert not state.save_position(position(1))
    assert not state.save_report(report(1), 0)
    assert not state.save_status({})
    assert {path.name for path in state.folder.iterdir()} == {"device_id", "lock"}


@pytest.mark.parametrize("last", ["position", "report", "status"])
def test_the_budget_goes_on_after_a_restart(last: str, opened: Open) -> None:
    state = opened()
    state.budget.take(20_000_000)
    saves: dict[str, Callable[[], bool]] = {
        "position": lambda: state.save_position(position(1)),
        "report": lambda: state.save_report(report(1), 0),
        "status": lambda: state.save_status({}),
    }
    assert saves[last]()
    left = state.budget.left
    state.close()
    assert abs(opened().budget.left - left) <= SLACK  # what comes back meanwhile, on a slow machine
    assert left < 5_000_000


def test_the_newest_of_the_files_counts(opened: Open) -> None:
    state = opened()
    state.save_status({})
    state.save_position(position(1))
    state.budget.take(20_000_000)
    state.save_report(report(1), 0)
    state.close()
    assert opened().budget.left < 5_000_000


def test_the_newest_of_the_files_counts_though_the_clock_went_back(opened: Open, tmp_path: Path) -> None:
    ahead = "import time; now = time.time(); time.time = lambda: now + 1e6; "
    save = "from zo.checkpoint import Checkpoint; d = bytes(32); assert s.save_position(Checkpoint(d, 1, d, d))"
    subprocess.run([sys.executable, "-c", ahead + PROGRAM + save, tmp_path / "state"], check=True)
    state = opened()
    assert state.budget.left > 24_000_000
    state.budget.take(24_000_000)
    assert state.save_status({})
    state.close()
    assert opened().budget.left < 1_000_000


@pytest.mark.parametrize("call", range(CALLS))
def test_a_crash_never_gives_budget_back_beyond_what_was_under_way(call: int, opened: Open) -> None:
    state = opened(disk=(disk := DyingDisk()))
    state.budget.take(20_000_000)
    assert state.save_position(position(1))
    before, disk.left = state.budget.left, call
    with pytest.raises(Died):
        state.save_position(position(2))
    state.close()
    assert opened().budget.left <= before + SLACK


def test_no_file_means_a_full_budget(opened: Open) -> None:
    opened().close()
    assert opened().budget.left == DAILY / 2


@pytest.mark.parametrize("names", [[POSITION], [REPORT], [STATUS], [POSITION, REPORT, STATUS]], ids="+".join)
def test_files_that_cannot_be_read_mean_an_empty_budget(names: list[str], opened: Open) -> None:
    opened().close()
    folder = opened("other").folder.parent / "state"
    for name in names:
        (folder / name).write_bytes(b"torn")
    assert opened().budget.left <= SLACK


@pytest.mark.parametrize(
    "record", ["{}", '{"write_budget": 3}', '{"write_budget": {"left": "many", "at": "now"}}', '{"write_budget": {"left": 5}}']
)
def test_a_record_that_is_none_means_an_empty_budget(record: str, opened: Open, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / STATUS).write_text(record)
    assert opened().budget.left <= SLACK


def test_how_bases_compared_is_kept_within_the_write_budget(tmp_path: Path) -> None:
    found = {"key": "a b 1 384", "signal": {"int8": 23.8, "fp32": 10.0}}
    state = State(tmp_path, 50e6)
    assert state.comparison() == {}
    written = state.budget.written
    assert state.save_comparison(found)
    assert state.budget.written == written + cost(300)
    state.close()
    again = State(tmp_path, 50e6)
    assert again.comparison() == found
    assert again.budget.written == state.budget.written
    (tmp_path / "comparison").write_bytes((tmp_path / "comparison").read_bytes()[:-1])
    assert again.comparison() == {}
    assert (tmp_path / "comparison.corrupt").exists()
    again.close()
    frugal = State(tmp_path / "frugal", 0.0)
    assert not frugal.save_comparison(found)
    assert frugal.comparison() == {}
    frugal.close()
