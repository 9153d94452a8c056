"""What every store promises, as one class to inherit; and what only a file can get wrong."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_coordinator import report

from coordinator.store import SCHEMA_VERSION, Store
from zo import wire
from zo.errors import StorageError
from zo.ledger import GENESIS, Entry, chain
from zo.messages import Report
from zo.terms import Term

BUNDLE, DIGEST = Path("/bundles/one"), bytes(range(32))


def entry(number: int, round_number: int | None = None) -> Entry:
    return Entry(number, round_number or number, 2, (Term((0, 3), 2**40 + number, np.array([number, -5])),))


def begun(store: Store, entries: int = 0) -> int:
    """A run with that many entries, one a round."""
    run = store.open_run("run", BUNDLE, DIGEST).id
    head = GENESIS
    for number in range(1, entries + 1):
        head = chain(head, entry(number))
        store.commit(run, entry(number), head, {"round": number})
    return run


def bodies(reports: list[Report]) -> list[bytes]:
    return [wire.encode(each) for each in reports]


class StoreContract:
    """Inherit, and override the fixture `opened`: a function that gives one more store over the same data at each call."""

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Callable[[], Store]:
        raise NotImplementedError

    @pytest.fixture
    def store(self, opened: Callable[[], Store]) -> Store:
        return opened()

    def test_a_run_is_made_once_and_found_again(self, opened: Callable[[], Store]) -> None:
        made = opened().open_run("run", BUNDLE, DIGEST)
        assert (made.name, made.bundle, made.bundle_digest, made.state) == ("run", BUNDLE, DIGEST, "running")
        assert opened().open_run("run", BUNDLE, DIGEST) == made == opened().run("run")

    def test_runs_are_kept_apart_and_in_order(self, store: Store) -> None:
        first, second = begun(store, 2), store.open_run("second", BUNDLE, DIGEST).id
        store.add_report(report(0, run=second))
        assert [run.name for run in store.runs()] == ["run", "second"]
        assert (store.head(second), store.entries(second), store.reports(first, 1)) == ((0, GENESIS), [], [])

    def test_a_run_of_another_bundle_is_refused(self, store: Store) -> None:
        begun(store)
        with pytest.raises(StorageError, match=r"begun with another bundle \(/bundles/one\); choose another --name or --store"):
            store.open_run("run", Path("/bundles/two"), bytes(32))
        assert store.run("run").bundle_digest == DIGEST

    def test_a_bundle_may_move_and_is_then_known_at_its_new_place(self, opened: Callable[[], Store]) -> None:
        store = opened()
        made, other = store.open_run("run", BUNDLE, DIGEST), store.open_run("other", BUNDLE, DIGEST)
        moved = store.open_run("run", Path("/elsewhere"), DIGEST)
        assert (moved.id, moved.bundle) == (made.id, Path("/elsewhere"))
        assert opened().runs() == [moved, other]

    def test_a_refused_bundle_changes_no_path(self, store: Store) -> None:
        begun(store)
        with pytest.raises(StorageError):
            store.open_run("run", Path("/elsewhere"), bytes(32))
        assert store.run("run").bundle == BUNDLE

    def test_an_unknown_run_is_told_with_those_there_are(self, store: Store) -> None:
        begun(store)
        with pytest.raises(StorageError, match=r"holds no run 'rum'; it holds: run"):
            store.run("rum")

    def test_a_finished_run_stays_finished_until_it_is_said_to_run_again(self, opened: Callable[[], Store]) -> None:
        store = opened()
        run, other = begun(store), store.open_run("other", BUNDLE, DIGEST).id
        store.set_state(run, "finished")
        assert opened().run("run").state == "finished"
        assert opened().open_run("run", BUNDLE, DIGEST).state == "finished"
        store.set_state(other, "finished")
        store.set_state(run, "running")
        assert [each.state for each in opened().runs()] == ["running", "finished"]

    def test_devices_are_numbered_from_zero_and_keep_their_number(self, opened: Callable[[], Store]) -> None:
        store = opened()
        run, other = begun(store), store.open_run("other", BUNDLE, DIGEST).id
        assert [store.enrol(run, name) for name in (9, 2**64 - 1, 9, 0)] == [0, 1, 0, 2]
        assert store.enrol(other, 0) == 0
        assert opened().enrol(run, 2**64 - 1) == 1
        assert (store.device_count(run), store.device_count(other)) == (3, 1)

    def test_a_report_counts_once(self, opened: Callable[[], Store]) -> None:
        store = opened()
        run = begun(store)
        first = report(1, digest=bytes(range(32)), held_out=-3)
        assert store.add_report(first)
        assert not store.add_report(report(1, scalars=(7, 7, 7)))
        assert store.add_report(report(0))
        assert bodies(opened().reports(run, 1)) == bodies([report(0), first])

    def test_reports_that_are_dropped_may_come_again(self, opened: Callable[[], Store]) -> None:
        store = opened()
        run, other = begun(store), store.open_run("other", BUNDLE, DIGEST).id
        for each in (report(0), report(1), report(0, run=other)):
            store.add_report(each)
        store.drop_reports(run, [0])
        assert bodies(opened().reports(run, 1)) == bodies([report(1)])
        assert bodies(opened().reports(other, 1)) == bodies([report(0, run=other)])
        assert store.add_report(report(0))

    def test_a_commit_appends_the_entry_and_drops_the_reports_it_holds(self, opened: Callable[[], Store]) -> None:
        store = opened()
        run = begun(store)
        store.add_report(report(0))
        store.add_report(report(0, 2))
        head = chain(GENESIS, entry(1))
        store.commit(run, entry(1), head, {"round": 1, "note": "ä"})
        again = opened()
        assert (again.reports(run, 1), bodies(again.reports(run, 2))) == ([], bodies([report(0, 2)]))
        assert (again.head(run), again.entries(run), again.summaries(run)) == ((1, head), [entry(1)], [{"round": 1, "note": "ä"}])

    def test_a_commit_that_fails_changes_nothing(self, store: Store) -> None:
        run = begun(store, 1)
        store.add_report(report(0, 2))
        with pytest.raises(StorageError):
            store.commit(run, entry(1, 2), bytes(32), {"round": 2})  # there is an entry 1
        assert bodies(store.reports(run, 2)) == bodies([report(0, 2)])
        assert store.head(run) == (1, chain(GENESIS, entry(1)))
        store.commit(run, entry(2), chain(chain(GENESIS, entry(1)), entry(2)), {"round": 2})
        store.check_chain(run)

    def test_entries_come_in_order_after_a_number(self, store: Store) -> None:
        run = begun(store, 12)
        assert store.entries(run, 9) == [entry(10), entry(11), entry(12)]
        assert store.entries(run, 3, 2) == [entry(4), entry(5)]
        assert store.entries(run, 12) == []

    def test_a_whole_chain_is_in_order(self, store: Store) -> None:
        store.check_chain(begun(store))
        store.check_chain(begun(store, 3))

    def test_a_wrong_head_is_found(self, store: Store) -> None:
        run = begun(store, 1)
        store.commit(run, entry(2), bytes(32), {"round": 2})
        with pytest.raises(StorageError, match="entry 2 does not fit its hash chain"):
            store.check_chain(run)

    def test_evaluations_are_kept_by_split_and_entry(self, opened: Callable[[], Store]) -> None:
        store = opened()
        run = begun(store)
        for number, loss in ((10, 0.5), (0, 1.0), (10, 0.25)):
            store.add_evaluation(run, number, "validation", {"loss": loss})
        store.add_evaluation(run, 0, "test", {"loss": 2.0})
        assert list(opened().evaluations(run, "validation").items()) == [(0, {"loss": 1.0}), (10, {"loss": 0.25})]
        assert opened().evaluations(run, "test") == {0: {"loss": 2.0}}

    def test_events_are_kept_in_order(self, store: Store) -> None:
        run = begun(store)
        store.add_event(run, "diverged", "one")
        store.add_event(run, "refused", "two")
        assert [(kind, text) for _, kind, text in store.events(run)] == [("diverged", "one"), ("refused", "two")]


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Callable[[], Store]:
        return lambda: Store(tmp_path / "run.sqlite", create=True)

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE entries SET body = (SELECT body FROM entries WHERE number = 3) WHERE number = 2",
            "UPDATE entries SET head = zeroblob(32) WHERE number = 2",
            "DELETE FROM entries WHERE number = 1",
            "UPDATE entries SET body = x'ffffff' WHERE number = 2",
        ],
    )
    def test_a_change_of_the_past_is_found(self, change: str, opened: Callable[[], Store]) -> None:
        store = opened()
        run = begun(store, 3)
        store.check_chain(run)
        sql(store.path, change)
        with pytest.raises(StorageError, match="restore the file from a backup"):
            opened().check_chain(run)

    def test_another_process_reads_while_one_writes(self, store: Store) -> None:
        run = begun(store, 2)
        writer = sqlite3.connect(store.path, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO events VALUES (?, 0, 'half', 'written')", (run,))
        code = "import sys; from pathlib import Path; from coordinator.store import Store; s = Store(Path(sys.argv[1]));"
        code += " r = s.run('run').id; print(s.head(r)[0], len(s.entries(r)), len(s.events(r)))"
        done = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, timeout=30)
        writer.execute("COMMIT")
        assert (done.stdout, done.stderr) == ("2 2 0\n", "")
        assert len(store.events(run)) == 1


def sql(path: Path, statement: str) -> Any:
    with sqlite3.connect(path) as database:
        return database.execute(statement).fetchall()


def refusal(path: Path, *, create: bool = False) -> str:
    with pytest.raises(StorageError) as caught:
        Store(path, create=create)
    return str(caught.value)


def test_a_missing_file_is_no_store_to_read(tmp_path: Path) -> None:
    assert "does not exist; give the store of a coordinator with --store" in refusal(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert "folder/none" in refusal(tmp_path / "folder/none", create=True)


@pytest.mark.parametrize("create", [False, True])
def test_a_file_that_is_no_database_is_refused_and_kept(create: bool, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("shopping list " * 100)
    assert str(path) in refusal(path, create=create)
    assert path.read_text() == "shopping list " * 100


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(tmp_path, create=True)


@pytest.mark.parametrize("create", [False, True])
def test_a_store_of_another_version_is_refused(create: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    Store(path, create=True).close()
    sql(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    assert f"not a store that this version knows (version {SCHEMA_VERSION + 1})" in refusal(path, create=create)


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "photos.sqlite"
    sql(path, "CREATE TABLE photos (name TEXT)")
    assert "not a store" in refusal(path, create=True)
    assert sql(path, "SELECT name FROM sqlite_master") == [("photos",)]


def test_a_file_that_may_only_be_read_is_refused_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    Store(path, create=True).close()
    path.chmod(0o444)
    try:
        path.open("ab").close()
    except OSError:
        with pytest.raises(StorageError, match="permissions"):
            begun(Store(path, create=True))
    else:
        pytest.skip("this user may write to every file")
