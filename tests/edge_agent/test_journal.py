"""The local ledger: whatever happens to the disk, nothing that was synced is lost, and nothing that is read is wrong."""

import errno
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.flash import WriteBudget
from edge_agent.journal import NAME, Journal, Opening, read
from zo.disk import Disk
from zo.errors import StorageError
from zo.ledger import Entry, chain, genesis
from zo.terms import Term

BUNDLE = bytes(range(32))
OPENING = Opening(genesis(BUNDLE, b"nonce"), BUNDLE, 12, bytes(reversed(range(32))))


def entry(number: int, seed: int = 0) -> Entry:
    steps = np.random.default_rng([number, seed]).integers(-300, 300, 4)
    return Entry(number, number, 1, (Term((0, 3), 2**62 + number, steps),), bytes([number] * 32) if number % 3 == 0 else None)


ENTRIES = tuple(entry(number) for number in range(1, 10))


def plenty() -> WriteBudget:
    return WriteBudget(1e9)


def opened(folder: Path, disk: Disk | None = None, budget: WriteBudget | None = None) -> Journal:
    return Journal(folder / NAME, OPENING, budget or plenty(), disk)


def written(folder: Path, count: int = len(ENTRIES)) -> bytes:
    journal = opened(folder)
    for each in ENTRIES[:count]:
        journal.append(each)
    journal.sync()
    return (folder / NAME).read_bytes()


def test_what_was_synced_is_there_again(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert journal.entries() == ()
    for each in ENTRIES[:4]:
        journal.append(each)
    assert journal.entries() == ENTRIES[:4]
    assert journal.sync()
    journal.append(ENTRIES[4])
    assert journal.entries() == ENTRIES[:5]
    again = Journal(tmp_path / NAME, Opening(bytes(32), BUNDLE), plenty())
    assert (again.entries(), again.opening) == (ENTRIES[:4], OPENING)
    again.append(ENTRIES[4])
    again.sync()
    assert opened(tmp_path).entries() == ENTRIES[:5]
    assert again.head == journal.head


def test_the_head_is_the_hash_chain(tmp_path: Path) -> None:
    written(tmp_path)
    head = OPENING.genesis
    for each in ENTRIES:
        head = chain(head, each.header)
    assert opened(tmp_path).head == head


def test_reading_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / NAME
    assert read(path, BUNDLE) is None
    torn = written(tmp_path)[:-5]
    path.write_bytes(torn)
    found = read(path, BUNDLE)
    assert found is not None
    assert found.entries == ENTRIES[:-1]
    assert [each.name for each in tmp_path.iterdir()] == [NAME]
    assert path.read_bytes() == torn


def test_a_ledger_of_another_bundle_is_refused(tmp_path: Path) -> None:
    before = written(tmp_path)
    with pytest.raises(StorageError, match=r"another bundle.*--state"):
        Journal(tmp_path / NAME, Opening(bytes(32), bytes(32)), plenty())
    assert (tmp_path / NAME).read_bytes() == before


# --- what the disk may do ---


class FullDisk(Disk):
    """From one call on, it fails: what it was to write is written in part."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def _call(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, path: Path, content: bytes) -> None:
        super().write(path, content[: len(content) // 2])
        self._call()
        super().write(path, content)

    def append(self, path: Path, start: int, content: bytes) -> None:
        super().append(path, start, content[: len(content) // 2])
        self._call()
        super().append(path, start, content)

    def sync(self, path: Path) -> None:
        self._call()

    def rename(self, old: Path, new: Path) -> None:
        self._call()
        super().rename(old, new)

    def sync_folder(self, folder: Path) -> None:
        self._call()


CALLS = 4 + 2 * 3  # of a session: making the file, then appending and syncing three times


def session(journal: Journal) -> None:
    for start in (0, 3, 6):
        for each in ENTRIES[start : start + 3]:
            journal.append(each)
        journal.sync()


@pytest.mark.parametrize("calls", range(CALLS))
def test_a_crash_at_any_call_of_the_disk_loses_nothing_that_was_synced(calls: int, tmp_path: Path) -> None:
    with pytest.raises((OSError, StorageError)):
        session(opened(tmp_path, FullDisk(calls)))
    synced = 3 * max(0, (calls - 4) // 2)
    journal = opened(tmp_path)
    found = len(journal.entries())
    assert synced <= found <= synced + 3
    assert journal.entries() == ENTRIES[:found]
    for each in ENTRIES[found:]:
        journal.append(each)
    journal.sync()
    assert opened(tmp_path).entries() == ENTRIES


def test_a_session_makes_so_many_calls(tmp_path: Path) -> None:
    session(opened(tmp_path, FullDisk(CALLS)))
    assert opened(tmp_path).entries() == ENTRIES


@pytest.mark.parametrize("calls", range(4, CALLS))
def test_a_disk_that_was_full_for_a_while_loses_nothing(calls: int, tmp_path: Path) -> None:
    disk = FullDisk(calls)
    journal = opened(tmp_path, disk)
    for each in ENTRIES:
        journal.append(each)
        try:
            journal.sync()
        except OSError:
            assert journal.entries()[-1] == each
            disk.calls = 2
    journal.sync()
    assert journal.entries() == ENTRIES
    assert opened(tmp_path).entries() == ENTRIES
    assert not (tmp_path / f"{NAME}.corrupt").exists()


class PowerCut(Disk):
    """Keeps what has reached the flash apart from what only the page cache holds."""

    def __init__(self) -> None:
        self.flash: dict[Path, bytes] = {}
        self.renamed: dict[Path, bytes] = {}

    def sync(self, path: Path) -> None:
        self.flash[path] = path.read_bytes()

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self.renamed[new] = self.flash.pop(old, b"")

    def sync_folder(self, folder: Path) -> None:
        self.flash |= self.renamed


def test_a_power_cut_leaves_what_sync_returned_for(tmp_path: Path) -> None:
    disk, path = PowerCut(), tmp_path / NAME
    journal = opened(tmp_path, disk)
    assert disk.flash == {path: path.read_bytes()}
    for each in ENTRIES:
        journal.append(each)
        journal.sync()
        assert disk.flash == {path: path.read_bytes()}
    path.write_bytes(disk.flash[path])
    assert opened(tmp_path).entries() == ENTRIES


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Where the opening and each entry end."""
    return [len(written(tmp_path_factory.mktemp("ledger"), count)) for count in range(len(ENTRIES) + 1)]


@settings(max_examples=80, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_an_altered_byte_ends_what_is_read(share: float, mask: int, stops: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    damaged = bytearray(written(folder))
    place = int(share * len(damaged))
    damaged[place] ^= mask
    (folder / NAME).write_bytes(damaged)
    whole = sum(stop <= place for stop in stops)
    assert opened(folder).entries() == ENTRIES[: max(0, whole - 1)]
    kept = (folder / f"{NAME}.corrupt").read_bytes()
    assert damaged.endswith(kept)
    assert len(kept) == len(damaged) - (stops[whole - 1] if whole else 0)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), garbage=st.binary(max_size=80))
def test_a_torn_end_is_cut_off(share: float, garbage: bytes, stops: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    place = stops[0] + int(share * (stops[-1] - stops[0]))
    (folder / NAME).write_bytes(written(folder)[:place] + garbage)
    whole = sum(stop <= place for stop in stops) - 1
    journal = opened(folder)
    found = len(journal.entries())
    assert found >= whole
    assert journal.entries() == ENTRIES[:found]
    assert (folder / NAME).stat().st_size == stops[found]
    for each in ENTRIES[found:]:
        journal.append(each)
    journal.sync()
    assert opened(folder).entries() == ENTRIES


def test_cutting_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).write_bytes(written(tmp_path)[:-1])
    opened(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / NAME}: what follows entry 8 is torn; it is kept as {NAME}.corrupt"
    ]
    opened(tmp_path)
    assert len(caplog.records) == 1


def test_a_second_damage_leaves_what_the_first_one_took_away(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(written(tmp_path) + b"first")
    path.write_bytes(opened(tmp_path).path.read_bytes() + b"second")
    opened(tmp_path)
    path.write_bytes(b"third")
    opened(tmp_path)
    kept = [path.with_name(f"{NAME}.corrupt{number}").read_bytes() for number in ("", ".1", ".2")]
    assert kept == [b"first", b"second", b"third"]


def test_an_entry_that_does_not_follow_ends_what_is_read(tmp_path: Path) -> None:
    for gap in (ENTRIES[4], entry(3, seed=1)):
        folder = tmp_path / str(gap.number)
        folder.mkdir()
        journal = opened(folder)
        for each in (*ENTRIES[:2], gap):
            journal.append(each)
        journal.sync()
        assert opened(folder).entries() == (*ENTRIES[:2], *([gap] if gap.number == 3 else []))


def test_an_entry_of_another_ledger_ends_what_is_read(tmp_path: Path, stops: list[int]) -> None:
    mine = written(tmp_path, 2)
    other = Journal(tmp_path / "other", Opening(genesis(BUNDLE, b"another"), BUNDLE), plenty())
    for each in ENTRIES[:3]:
        other.append(each)
    other.sync()
    (tmp_path / NAME).write_bytes(mine + (tmp_path / "other").read_bytes()[stops[2] :])
    assert opened(tmp_path).entries() == ENTRIES[:2]


@pytest.mark.parametrize("content", [b"", b"milk and bread", bytes(300)])
def test_a_file_without_an_opening_is_set_aside(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"torn|no local ledger"):
        read(tmp_path / NAME, BUNDLE)
    assert opened(tmp_path).entries() == ()
    assert (tmp_path / f"{NAME}.corrupt").read_bytes() == content
    assert "a new one begun" in caplog.text
    assert opened(tmp_path).opening == OPENING


# --- the write budget ---


def test_without_a_budget_entries_wait_in_memory(tmp_path: Path) -> None:
    journal = opened(tmp_path, budget=WriteBudget(0.0))
    size = (tmp_path / NAME).stat().st_size
    for each in ENTRIES:
        journal.append(each)
        assert not journal.sync()
    assert (tmp_path / NAME).stat().st_size == size
    assert journal.entries() == ENTRIES
    budget_before = journal._budget.written
    assert journal.sync(always=True)
    assert journal._budget.written > budget_before  # counted, though there was nothing left
    assert opened(tmp_path).entries() == ENTRIES


def test_writes_stay_within_the_budget(tmp_path: Path) -> None:
    budget = WriteBudget(100_000.0, clock=lambda: 0.0)
    journal = opened(tmp_path, budget=budget)
    synced = []
    for each in ENTRIES:
        journal.append(each)
        synced.append(journal.sync())
    assert synced == [True] * 5 + [False] * 4
    assert budget.left >= 0


def test_with_nothing_to_write_nothing_is_taken_from_the_budget(tmp_path: Path) -> None:
    budget = WriteBudget(100_000.0, clock=lambda: 0.0)
    journal = opened(tmp_path, budget=budget)
    left = budget.left
    assert journal.sync()
    assert budget.left == left
