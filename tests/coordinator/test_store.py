"""What every store promises, as one class to inherit; and what only a file can get wrong."""

import contextlib
import dataclasses
import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_coordinator import report
from store_faults import FailingSync, PowerCut

from coordinator.memory_store import MemoryStore
from coordinator.sqlite_store import SCHEMA_VERSION, SqliteStore
from coordinator.store import Compacted, Conflict, Cost, Store
from zo import wire
from zo.checkpoint import Checkpoint, GroupValues
from zo.disk import Disk
from zo.errors import StorageError
from zo.ledger import Entry, chain
from zo.messages import Report
from zo.terms import Term

BUNDLE, DIGEST = Path("/bundles/one"), bytes(range(32))

Opened = Callable[[], Store]


def entry(number: int, round_number: int | None = None, steps: int = 2) -> Entry:
    term = Term((0, 3), 2**40 + number, np.arange(steps) * number - 5)
    return Entry(number, round_number or number, 2, (term,), bytes([number % 256]) * 32 if number % 3 == 0 else None)


def begun(store: Store, entries: int = 0) -> int:
    """A run with that many entries, one a round, with 10 signs for the first, 20 for the second ..."""
    run = store.open_run("run", BUNDLE, DIGEST).id
    for number in range(1, entries + 1):
        store.commit(run, entry(number), store.head(run)[1], 10 * number, {"round": number})
    return run


def heads(store: Store, entries: int) -> list[bytes]:
    """The identities of the run of `begun`, from the one before its first entry on."""
    found = [store.run("run").genesis]
    for number in range(1, entries + 1):
        found.append(chain(found[-1], entry(number).header))
    return found


def checkpoint(store: Store, number: int, note: bytes = b"") -> Checkpoint:
    known = heads(store, number)
    return Checkpoint(known[0], number, known[-1], bytes(32), entry(number).terms, (GroupValues(3, b"\0\1\2\3" + note),))


def bodies(reports: list[Report]) -> list[bytes]:
    return [wire.encode(each) for each in reports]


def everything(store: Store, run: int) -> tuple[object, ...]:
    """All that a store tells of a run."""
    compacted = store.compacted(run)
    return (
        store.runs(),
        store.device_count(run),
        [bodies(store.reports(run, number)) for number in range(6)],
        store.entries(run, compacted),
        store.headers(run),
        store.head(run),
        [store.cost(run, number) for number in range(6)],
        [(number, store.checkpoint(run, number)) for number in store.checkpoints(run)],
        compacted,
        store.summaries(run),
        [store.evaluations(run, split) for split in ("validation", "test")],
        store.events(run),
    )


# what every method of a store is called with on a run of three entries, with a report and checkpoints at 1 and 2
WRITES: dict[str, Callable[[Store, int], object]] = {
    "open_run": lambda store, run: store.open_run("another", BUNDLE, DIGEST),
    "set_state": lambda store, run: store.set_state(run, "finished"),
    "enrol": lambda store, run: store.enrol(run, 77),
    "add_reports": lambda store, run: store.add_reports([report(1, 4), report(2, 4)]),
    "drop_reports": lambda store, run: store.drop_reports(run, [0]),
    "commit": lambda store, run: store.commit(run, entry(4), heads(store, 3)[-1], 40, {"round": 4}),
    "add_checkpoint": lambda store, run: store.add_checkpoint(run, checkpoint(store, 3)),
    "drop_checkpoints": lambda store, run: store.drop_checkpoints(run, [1]),
    "compact": lambda store, run: store.compact(run, 2),
    "add_evaluation": lambda store, run: store.add_evaluation(run, 3, "validation", {"loss": 0.5}),
    "add_event": lambda store, run: store.add_event(run, "kind", "text"),
}
READS: dict[str, Callable[[Store, int], object]] = {
    "runs": lambda store, run: store.runs(),
    "device_count": lambda store, run: store.device_count(run),
    "reports": lambda store, run: store.reports(run, 4),
    "entries": lambda store, run: store.entries(run),
    "headers": lambda store, run: store.headers(run),
    "head": lambda store, run: store.head(run),
    "cost": lambda store, run: store.cost(run, 0),
    "checkpoint": lambda store, run: store.checkpoint(run),
    "checkpoints": lambda store, run: store.checkpoints(run),
    "compacted": lambda store, run: store.compacted(run),
    "summaries": lambda store, run: store.summaries(run),
    "evaluations": lambda store, run: store.evaluations(run, "test"),
    "events": lambda store, run: store.events(run),
}


def busy(store: Store) -> int:
    """The run that WRITES and READS are about."""
    run = begun(store, 3)
    store.enrol(run, 5)
    store.add_report(report(0, 4))
    for number in (1, 2):
        store.add_checkpoint(run, checkpoint(store, number))
    return run


def test_the_tables_above_hold_every_method_of_a_store() -> None:
    assert WRITES.keys() | READS.keys() | {"close"} == Store.__abstractmethods__
    assert not WRITES.keys() & READS.keys()


class StoreContract:
    """Inherit, and override the fixture `opened`: a function that gives one more store over the same data at each call."""

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Opened:
        raise NotImplementedError

    @pytest.fixture
    def store(self, opened: Opened) -> Store:
        return opened()

    # --- runs and devices ---

    def test_a_run_is_made_once_and_found_again(self, opened: Opened) -> None:
        made = opened().open_run("run", BUNDLE, DIGEST)
        assert (made.name, made.bundle, made.bundle_digest, made.state) == ("run", BUNDLE, DIGEST, "running")
        assert opened().open_run("run", BUNDLE, DIGEST) == made == opened().run("run")

    def test_runs_are_kept_apart_and_in_order(self, store: Store) -> None:
        first, second = busy(store), store.open_run("second", BUNDLE, DIGEST)
        store.add_report(report(0, run=second.id))
        assert [run.name for run in store.runs()] == ["run", "second"]
        assert (store.head(second.id), store.entries(second.id), store.headers(second.id)) == ((0, second.genesis), [], [])
        assert (store.reports(first, 1), store.checkpoints(second.id), store.cost(second.id, 0)) == ([], [], Cost(0, 0, 0))
        store.commit(second.id, entry(1), second.genesis, 1, {"round": 1})
        assert (store.head(first)[0], store.head(second.id)[0], store.compacted(second.id)) == (3, 1, 0)

    def test_no_two_ledgers_begin_with_the_same_identity(self, store: Store) -> None:
        runs = [store.open_run(name, BUNDLE, DIGEST) for name in ("one", "two", "three")]
        assert len({run.genesis for run in runs}) == 3
        assert all(len(run.genesis) == 32 for run in runs)

    def test_a_run_of_another_bundle_is_refused(self, store: Store) -> None:
        begun(store)
        with pytest.raises(StorageError, match=r"begun with another bundle \(/bundles/one\); choose another --name or --store"):
            store.open_run("run", Path("/bundles/two"), bytes(32))
        assert store.run("run").bundle_digest == DIGEST

    def test_a_bundle_may_move_and_is_then_known_at_its_new_place(self, opened: Opened) -> None:
        store = opened()
        made, other = store.open_run("run", BUNDLE, DIGEST), store.open_run("other", BUNDLE, DIGEST)
        moved = store.open_run("run", Path("/elsewhere"), DIGEST)
        assert moved == dataclasses.replace(made, bundle=Path("/elsewhere"))
        assert opened().runs() == [moved, other]

    def test_a_refused_bundle_changes_no_path(self, store: Store) -> None:
        begun(store)
        with pytest.raises(StorageError):
            store.open_run("run", Path("/elsewhere"), bytes(32))
        assert store.run("run").bundle == BUNDLE

    def test_an_unknown_run_is_told_with_those_there_are(self, store: Store) -> None:
        with pytest.raises(StorageError, match=r"holds no run 'rum'; it holds: none"):
            store.run("rum")
        begun(store)
        with pytest.raises(StorageError, match=r"holds no run 'rum'; it holds: run"):
            store.run("rum")

    def test_a_finished_run_stays_finished_until_it_is_said_to_run_again(self, opened: Opened) -> None:
        store = opened()
        run, other = begun(store), store.open_run("other", BUNDLE, DIGEST).id
        store.set_state(run, "finished")
        assert opened().run("run").state == "finished"
        assert opened().open_run("run", BUNDLE, DIGEST).state == "finished"
        store.set_state(other, "finished")
        store.set_state(run, "running")
        assert [each.state for each in opened().runs()] == ["running", "finished"]

    def test_devices_are_numbered_from_zero_and_keep_their_number(self, opened: Opened) -> None:
        store = opened()
        run, other = begun(store), store.open_run("other", BUNDLE, DIGEST).id
        assert [store.enrol(run, name) for name in (9, 2**64 - 1, 9, 0)] == [0, 1, 0, 2]
        assert store.enrol(other, 0) == 0
        assert opened().enrol(run, 2**64 - 1) == 1
        assert (store.device_count(run), store.device_count(other)) == (3, 1)

    # --- reports ---

    def test_a_report_counts_once_under_run_round_and_device(self, opened: Opened) -> None:
        store = opened()
        run, other = begun(store), store.open_run("other", BUNDLE, DIGEST).id
        first = report(1, digest=bytes(range(32)), held_out=(-3, 7))
        assert store.add_report(first)
        for again in (opened(), store):
            assert not again.add_report(report(1, scalars=(7, 7, 7)))
        for fresh in (report(0), report(1, 2), report(1, run=other)):
            assert store.add_report(fresh)
        assert bodies(opened().reports(run, 1)) == bodies([report(0), first])

    def test_of_reports_kept_together_the_first_of_each_device_counts(self, opened: Opened) -> None:
        store = opened()
        run, other = begun(store), store.open_run("other", BUNDLE, DIGEST).id
        store.add_report(report(2))
        first, again, known = report(1, scalars=(1, 1, 1)), report(1, scalars=(2, 2, 2)), report(2, scalars=(3, 3, 3))
        group = [first, again, known, report(0), first, report(1, run=other), report(1, 2)]
        assert store.add_reports(group) == [True, False, False, True, False, True, True]
        assert bodies(opened().reports(run, 1)) == bodies([report(0), first, report(2)])
        assert opened().add_reports(group) == [False] * len(group)
        assert opened().add_reports([]) == []

    def test_reports_that_are_dropped_may_come_again(self, opened: Opened) -> None:
        store = opened()
        run, other = begun(store), store.open_run("other", BUNDLE, DIGEST).id
        for each in (report(0), report(1), report(0, run=other)):
            store.add_report(each)
        store.drop_reports(run, [0])
        assert bodies(opened().reports(run, 1)) == bodies([report(1)])
        assert bodies(opened().reports(other, 1)) == bodies([report(0, run=other)])
        assert store.add_report(report(0))

    # --- commits ---

    def test_a_commit_appends_the_entry_and_drops_the_reports_it_holds(self, opened: Opened) -> None:
        store = opened()
        run = begun(store)
        for number in (1, 2, 3):
            store.add_report(report(0, number))
        genesis = store.run("run").genesis
        head = store.commit(run, entry(1, 2), genesis, 7, {"round": 2, "note": "ä"})
        assert head == chain(genesis, entry(1, 2).header)
        again = opened()
        assert [bodies(again.reports(run, number)) for number in (1, 2, 3)] == [[], [], bodies([report(0, 3)])]
        assert (again.head(run), again.entries(run), again.summaries(run)) == ((1, head), [entry(1, 2)], [{"round": 2, "note": "ä"}])

    @pytest.mark.parametrize("number", [1, 3, 4, 6])
    def test_a_commit_that_does_not_follow_changes_nothing(self, number: int, opened: Opened) -> None:
        store = opened()
        run = busy(store)
        before = everything(store, run)
        with pytest.raises(Conflict, match=f"entry {number} was appended by somebody else"):
            store.commit(run, entry(number, 4), heads(store, 3)[2 if number == 4 else 3], 0, {"round": 4})
        assert everything(store, run) == before == everything(opened(), run)
        store.commit(run, entry(4), heads(store, 3)[-1], 40, {"round": 4})
        store.check_chain(store.run("run"))

    def test_of_two_writers_one_comes_first(self, opened: Opened) -> None:
        one, other = opened(), opened()
        run = busy(one)
        head = other.head(run)[1]
        one.commit(run, entry(4), head, 1, {"round": 4})
        before = everything(one, run)
        with pytest.raises(Conflict):
            other.commit(run, entry(4, 5), head, 2, {"round": 5})
        assert everything(other, run) == before
        other.commit(run, entry(5), other.head(run)[1], 2, {"round": 5})
        assert one.head(run) == (5, heads(one, 5)[-1])

    # --- the ledger ---

    def test_entries_come_in_order_after_a_number(self, store: Store) -> None:
        run = begun(store, 12)
        assert store.entries(run) == [entry(number) for number in range(1, 13)]
        assert store.entries(run, 9) == [entry(10), entry(11), entry(12)]
        assert store.entries(run, 3, 2) == [entry(4), entry(5)]
        assert (store.entries(run, 3, 0), store.entries(run, 12), store.entries(run, 40)) == ([], [], [])

    def test_summaries_come_in_order_all_or_the_last(self, store: Store) -> None:
        run = begun(store)
        head = store.run("run").genesis
        for number in (1, 2, 3):
            head = store.commit(run, entry(number, number), head, 0, {"round": number})
        rounds = {last: [summary["round"] for summary in store.summaries(run, last)] for last in (-1, 0, 1, 2, 3, 9)}
        assert rounds == {-1: [1, 2, 3], 0: [], 1: [3], 2: [2, 3], 3: [1, 2, 3], 9: [1, 2, 3]}

    def test_headers_are_those_of_the_entries_with_the_heads_they_lead_to(self, store: Store) -> None:
        run = begun(store, 4)
        known = heads(store, 4)
        expected = [(entry(number).header, known[number]) for number in range(1, 5)]
        assert store.headers(run) == expected
        assert store.headers(run, 2) == expected[2:]
        assert store.headers(run, 4) == []
        assert {header.digest is None for header, _ in expected} == {True, False}

    def test_the_head_is_told_at_every_entry(self, store: Store) -> None:
        run = begun(store, 4)
        known = heads(store, 4)
        assert [store.head(run, number) for number in range(5)] == list(enumerate(known))
        assert store.head(run) == (4, known[4])
        for number in (5, -1, 2**40):
            with pytest.raises(StorageError, match=f"the ledger has no entry {number}; it ends at 4"):
                store.head(run, number)

    def test_the_cost_of_entries_is_their_bytes_and_signs(self, store: Store) -> None:
        run = begun(store, 4)
        sizes = [len(wire.encode(entry(number))) for number in range(1, 5)]
        assert store.cost(run, 0) == Cost(sum(sizes), max(sizes), 100)
        assert store.cost(run, 3) == Cost(sizes[3], sizes[3], 40)
        assert store.cost(run, 4) == store.cost(run, 9) == Cost(0, 0, 0)

    def test_a_whole_chain_is_in_order(self, store: Store) -> None:
        begun(store)
        store.check_chain(store.run("run"))
        begun(store, 3)
        store.check_chain(store.run("run"))

    def test_a_chain_from_another_beginning_is_found(self, store: Store) -> None:
        begun(store, 3)
        with pytest.raises(StorageError, match="run 'run': entry 1 does not fit its hash chain; restore the store from a backup"):
            store.check_chain(dataclasses.replace(store.run("run"), genesis=bytes(32)))

    # --- checkpoints and compaction ---

    def test_the_last_checkpoint_is_given_or_the_last_before_an_entry(self, opened: Opened) -> None:
        store = opened()
        run = begun(store, 5)
        assert (store.checkpoint(run), store.checkpoints(run)) == (None, [])
        for number in (4, 2):
            store.add_checkpoint(run, checkpoint(store, number))
        again = opened()
        assert again.checkpoints(run) == [2, 4]
        assert again.checkpoint(run) == checkpoint(store, 4)
        found = [again.checkpoint(run, most) for most in range(6)]
        assert [each.entry if each else None for each in found] == [None, None, 2, 2, 4, 4]

    def test_a_checkpoint_takes_the_place_of_one_at_the_same_entry(self, store: Store) -> None:
        run = begun(store, 2)
        for note in (b"old ", b"new "):
            store.add_checkpoint(run, checkpoint(store, 2, note))
        assert store.checkpoint(run) == checkpoint(store, 2, b"new ")
        assert store.checkpoints(run) == [2]

    def test_checkpoints_are_dropped_by_entry(self, opened: Opened) -> None:
        store = opened()
        run = begun(store, 4)
        for number in (1, 2, 4):
            store.add_checkpoint(run, checkpoint(store, number))
        store.drop_checkpoints(run, [1, 4, 3])
        assert opened().checkpoints(run) == [2]
        store.drop_checkpoints(run, [])
        assert opened().checkpoints(run) == [2]

    def test_compacting_needs_a_checkpoint(self, store: Store) -> None:
        run = busy(store)
        before = everything(store, run)
        with pytest.raises(StorageError, match="there is no checkpoint at entry 3 that could stand for the entries before"):
            store.compact(run, 3)
        assert everything(store, run) == before

    def test_compacting_drops_terms_and_nothing_else(self, opened: Opened) -> None:
        store = opened()
        run = busy(store)
        headers, summaries, head, reports = store.headers(run), store.summaries(run), store.head(run), bodies(store.reports(run, 4))
        assert (store.compacted(run), store.compact(run, 2)) == (0, 2)
        again = opened()
        assert again.compacted(run) == 2
        assert (again.headers(run), again.summaries(run), again.head(run)) == (headers, summaries, head)
        assert (bodies(again.reports(run, 4)), again.checkpoints(run)) == (reports, [1, 2])
        assert [again.head(run, number) for number in range(4)] == list(enumerate(heads(store, 3)))
        again.check_chain(again.run("run"))
        assert (again.entries(run, 2), again.cost(run, 2)) == ([entry(3)], Cost(len(wire.encode(entry(3))), len(wire.encode(entry(3))), 30))
        for after in (0, 1):
            with pytest.raises(Compacted, match=f"the terms of entry {after + 1} have been compacted away; entries up to 2 have none"):
                again.entries(run, after)
        assert again.entries(run, 0, 0) == []
        again.commit(run, entry(4), head[1], 40, {"round": 4})
        assert again.entries(run, 2) == [entry(3), entry(4)]

    def test_compacting_again_or_less_changes_nothing(self, store: Store) -> None:
        run = busy(store)
        assert store.compact(run, 2) == 2
        before = everything(store, run)
        assert [store.compact(run, number) for number in (2, 1)] == [0, 0]
        assert everything(store, run) == before
        store.add_checkpoint(run, checkpoint(store, 3))
        assert (store.compact(run, 3), store.compacted(run)) == (1, 3)

    # --- what is noted ---

    def test_evaluations_are_kept_by_split_and_entry(self, opened: Opened) -> None:
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


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Opened:
        data = MemoryStore().data
        return lambda: MemoryStore(data)


class Killed(BaseException):
    """The process ends here."""


class Dying(SqliteStore):
    """Is killed when it is about to commit a transaction."""

    def _write(self) -> None:
        raise Killed


class Small(SqliteStore):
    """Can be denied room, patience, and the right to write."""

    def limit(self, more: int) -> None:
        """Room for that many more pages."""
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        self._db.execute(f"PRAGMA max_page_count = {pages + more}")

    def be_impatient(self) -> None:
        """Do not wait for other writers."""
        self._db.execute("PRAGMA busy_timeout = 0")

    def let_only_read(self) -> None:
        """As on a disk that may only be read."""
        self._db.execute("PRAGMA query_only = 1")


class Interrupted(SqliteStore):
    """Somebody else tries to commit the same entry as soon as this store has looked at the head."""

    other: Store | None = None
    said: list[str]

    def head(self, run: int, entry_number: int | None = None) -> tuple[int, bytes]:
        found = super().head(run, entry_number)
        other, self.other = self.other, None
        if other is not None:
            with pytest.raises(StorageError) as caught:
                other.commit(run, entry(1, 7), found[1], 1, {"round": 7})
            self.said = [str(caught.value)]
        return found


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "run.sqlite"

    @pytest.fixture
    def opened(self, path: Path) -> Opened:
        return lambda: SqliteStore(path, create=True)

    # --- damage ---

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE entries SET head = zeroblob(32) WHERE number = 2",
            "UPDATE entries SET terms_digest = (SELECT terms_digest FROM entries WHERE number = 3) WHERE number = 2",
            "UPDATE entries SET round = 7 WHERE number = 2",
            "UPDATE entries SET contributors = 3 WHERE number = 2",
            "UPDATE entries SET digest = x'01020304' WHERE number = 2",
            "UPDATE entries SET digest = 'text' WHERE number = 2",
            "UPDATE entries SET round = -2 WHERE number = 2",
            "UPDATE entries SET contributors = 'many' WHERE number = 2",
            "DELETE FROM entries WHERE number = 2",
            "DELETE FROM entries WHERE number = 2; UPDATE entries SET number = 2 WHERE number = 3",
        ],
    )
    def test_a_change_of_the_audit_trail_is_found(self, change: str, path: Path, opened: Opened) -> None:
        store = opened()
        begun(store, 5)
        store.check_chain(store.run("run"))
        sql(path, change)
        with pytest.raises(StorageError, match=r"entry 2 does not fit its hash chain; restore the store from a backup"):
            opened().check_chain(store.run("run"))

    def test_a_changed_beginning_is_found(self, path: Path, opened: Opened) -> None:
        begun(opened(), 2)
        sql(path, "UPDATE runs SET genesis = zeroblob(32)")
        with pytest.raises(StorageError, match="entry 1 does not fit"):
            opened().check_chain(opened().run("run"))

    @pytest.mark.parametrize(
        ("change", "read"),
        [
            ("UPDATE entries SET body = x'ffffff' WHERE number = 2", "entries"),
            ("UPDATE reports SET body = x'ffffff'", "reports"),
            ("UPDATE checkpoints SET body = x'ffffff'", "checkpoint"),
            ("UPDATE entries SET summary = '{' WHERE number = 2", "summaries"),
            ("INSERT INTO evaluations VALUES (1, 0, 'test', '[')", "evaluations"),
        ],
    )
    def test_a_row_that_cannot_be_read_is_told(self, change: str, read: str, path: Path, opened: Opened) -> None:
        run = busy(opened())
        sql(path, change)
        with pytest.raises(StorageError, match=r"run\.sqlite: a row cannot be read \(.*\); restore the file from a backup"):
            READS[read](opened(), run)

    def test_text_that_is_none_is_damage(self, path: Path, opened: Opened) -> None:
        run = busy(opened())
        sql(path, "UPDATE entries SET summary = CAST(x'ff22' AS TEXT) WHERE number = 2")
        with pytest.raises(StorageError, match=r"is damaged \(Could not decode .*\); it is left as it is: restore it"):
            opened().summaries(run)

    # --- nothing is told before it is synced; a crash leaves all or nothing ---

    @pytest.mark.parametrize("name", WRITES)
    def test_what_is_written_is_synced_when_the_call_returns(self, name: str, path: Path) -> None:
        disk = PowerCut()
        store = SqliteStore(path, create=True, disk=disk)
        run = busy(store)
        before = log_of(path).read_bytes()
        WRITES[name](store, run)
        after = log_of(path).read_bytes()
        assert after != before
        assert disk.kept[log_of(path)] == after

    @pytest.mark.parametrize("name", WRITES)
    def test_what_has_been_told_outlives_a_power_cut(self, name: str, path: Path, tmp_path: Path) -> None:
        disk = PowerCut()
        store = SqliteStore(path, create=True, disk=disk)
        run = busy(store)
        WRITES[name](store, run)
        assert everything(disk.left(path, tmp_path / "left"), run) == everything(store, run)

    def test_reports_kept_together_take_one_sync(self, path: Path) -> None:
        disk = PowerCut()
        store = SqliteStore(path, create=True, disk=disk)
        begun(store)
        before = disk.syncs
        assert all(store.add_reports([report(device) for device in range(50)]))
        assert disk.syncs == before + 1

    def test_a_new_file_and_its_folder_are_synced(self, path: Path) -> None:
        disk = PowerCut()
        SqliteStore(path, create=True, disk=disk)
        assert disk.folders == [path.parent]
        assert log_of(path) in disk.kept

    @pytest.mark.parametrize("name", WRITES)
    def test_a_process_killed_before_it_commits_has_changed_nothing(self, name: str, path: Path, opened: Opened) -> None:
        store = opened()
        run = busy(store)
        before = everything(store, run)
        with pytest.raises(Killed):
            WRITES[name](Dying(path), run)
        assert everything(opened(), run) == before

    @pytest.mark.parametrize("name", WRITES)
    def test_after_a_failed_sync_nothing_is_done_any_more(self, name: str, path: Path, opened: Opened) -> None:
        disk = FailingSync()
        store = SqliteStore(path, create=True, disk=disk)
        run = busy(store)
        assert not store.unsafe
        disk.failing = True
        with pytest.raises(StorageError, match=r"run\.sqlite cannot be synced \(Input/output error\); what was written last may be lost"):
            WRITES[name](store, run)
        assert store.unsafe
        disk.failing = False
        for call in (*WRITES.values(), *READS.values()):
            with pytest.raises(StorageError, match="could not be synced; start again when the disk is well"):
                call(store, run)
        again = opened()
        again.check_chain(again.run("run"))
        assert again.head(run)[0] == 3 + (name == "commit")
        assert len(again.reports(run, 4)) == {"commit": 0, "drop_reports": 0, "add_reports": 3}.get(name, 1)

    def test_a_new_file_that_cannot_be_synced_is_told(self, path: Path) -> None:
        disk = FailingSync()
        disk.failing = True
        with pytest.raises(StorageError, match="cannot be synced"):
            SqliteStore(path, create=True, disk=disk)

    def test_a_folder_that_cannot_be_synced_is_told(self, path: Path) -> None:
        class Folderless(Disk):
            def sync_folder(self, folder: Path) -> None:
                raise OSError(5, "Input/output error")

        with pytest.raises(StorageError, match="cannot be synced"):
            SqliteStore(path, create=True, disk=Folderless())

    def test_what_a_killed_process_left_unsynced_is_synced_before_anyone_hears_of_it(self, path: Path, tmp_path: Path) -> None:
        """A killed process keeps the page cache: its successor reads what a power cut could still take."""
        failing, disk = FailingSync(), PowerCut()
        killed = SqliteStore(path, create=True, disk=failing)
        run = busy(killed)
        failing.failing = True
        with pytest.raises(StorageError):
            WRITES["commit"](killed, run)
        store = SqliteStore(path, create=True, disk=disk)
        assert store.head(run)[0] == 4
        assert everything(disk.left(path, tmp_path / "left"), run) == everything(store, run)

    # --- no room, no permission ---

    def test_a_full_disk_loses_nothing_and_is_written_again_when_there_is_room(self, path: Path, opened: Opened) -> None:
        store = Small(path, create=True)
        run = busy(store)
        store.limit(2)
        before = everything(store, run)
        with pytest.raises(StorageError, match=r"run\.sqlite: database or disk is full; check disk space and permissions"):
            store.commit(run, entry(4, steps=20_000), store.head(run)[1], 0, {"round": 4})
        assert everything(store, run) == before == everything(opened(), run)
        assert not store.unsafe
        store.limit(100)
        store.commit(run, entry(4, steps=20_000), store.head(run)[1], 0, {"round": 4})
        assert opened().entries(run, 3) == [entry(4, steps=20_000)]

    def test_of_reports_that_find_no_room_none_is_kept(self, path: Path, opened: Opened) -> None:
        store = Small(path, create=True)
        run, many = busy(store), [report(device, 4) for device in range(1, 2000)]
        store.limit(2)
        with pytest.raises(StorageError, match="database or disk is full"):
            store.add_reports(many)
        assert bodies(opened().reports(run, 4)) == bodies([report(0, 4)])
        store.limit(1000)
        assert all(store.add_reports(many))
        assert len(opened().reports(run, 4)) == 2000

    @pytest.mark.root
    def test_a_full_file_system_loses_nothing_and_is_written_again_when_there_is_room(self, mounted: Path) -> None:
        store = SqliteStore(mounted / "run.sqlite", create=True)
        run = busy(store)
        fill(mounted / "ballast")
        while (said := self.refused(store, run)) is None:  # the log may have some room left
            assert store.head(run)[0] < 100
        number = store.head(run)[0]
        assert "check disk space and permissions" in said
        assert not store.unsafe
        assert bodies(store.reports(run, 4)) == (bodies([report(0, 4)]) if number == 3 else [])
        assert SqliteStore(mounted / "run.sqlite", create=True).head(run)[0] == number
        (mounted / "ballast").unlink()
        store.commit(run, entry(number + 1), store.head(run)[1], 0, {"round": number + 1})
        store.check_chain(store.run("run"))
        store.close()

    def refused(self, store: Store, run: int) -> str | None:
        """What is said where one more entry cannot be committed."""
        number, head = store.head(run)
        try:
            store.commit(run, entry(number + 1, steps=2000), head, 0, {"round": number + 1})
        except StorageError as error:
            return str(error)
        return None

    @pytest.mark.root
    def test_a_folder_that_may_only_be_read_is_refused(self, mounted: Path) -> None:
        path = mounted / "run.sqlite"
        store = SqliteStore(path, create=True)
        busy(store)
        store.close()
        content = path.read_bytes()
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
        assert "check disk space and permissions" in refusal(path, create=True)
        assert "check disk space and permissions" in refusal(mounted / "new.sqlite", create=True)
        assert path.read_bytes() == content

    @pytest.mark.root
    @pytest.mark.parametrize("in_use", [False, True])
    def test_a_folder_that_may_only_be_read_can_be_read(self, in_use: bool, mounted: Path, tmp_path: Path) -> None:
        path = mounted / "run.sqlite"
        store = SqliteStore(path, create=True)
        run = busy(store)
        before = everything(store, run)
        if not in_use:
            store.close()
        view = tmp_path / "view"
        view.mkdir()
        subprocess.run(["mount", "--bind", mounted, view], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", view], check=True)
            reader = SqliteStore(view / path.name)
            assert everything(reader, run) == before
            with pytest.raises(StorageError, match=r"readonly database; check disk space and permissions"):
                reader.add_event(run, "any", "thing")
            reader.close()
        finally:
            subprocess.run(["umount", "--lazy", view], check=True)

    def test_a_file_that_may_not_be_written_any_more_is_told(self, path: Path) -> None:
        store = Small(path, create=True)
        run = busy(store)
        before = everything(store, run)
        store.let_only_read()
        for write in WRITES.values():
            with pytest.raises(StorageError, match=r"readonly database; check disk space and permissions"):
                write(store, run)
        assert everything(store, run) == before

    # --- several processes ---

    def test_another_process_reads_while_one_writes(self, path: Path, opened: Opened) -> None:
        store = opened()
        run = begun(store, 2)
        writer = sqlite3.connect(path, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO events VALUES (?, 0, 'half', 'written')", (run,))
        code = "import sys; from pathlib import Path; from coordinator.sqlite_store import SqliteStore; s = SqliteStore(Path(sys.argv[1]));"
        code += " r = s.run('run').id; print(s.head(r)[0], len(s.entries(r)), len(s.events(r)))"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=30)
        writer.execute("COMMIT")
        assert (done.stdout, done.stderr) == ("2 2 0\n", "")
        assert len(store.events(run)) == 1

    def test_nobody_writes_between_the_look_at_the_head_and_the_commit(self, path: Path, opened: Opened) -> None:
        run = begun(opened())
        store = Interrupted(path)
        store.other = Small(path)
        store.other.be_impatient()
        store.commit(run, entry(1), store.run("run").genesis, 1, {"round": 1})
        assert (store.said, opened().entries(run)) == (
            [f"store {path}: another process writes to it; try again, or stop that one"],
            [entry(1)],
        )

    def test_processes_that_write_at_once_make_one_chain(self, path: Path, opened: Opened) -> None:
        store = opened()
        run, each = begun(store), 40
        code = f"""
import json, sys
from pathlib import Path
from coordinator.sqlite_store import SqliteStore
from coordinator.store import Conflict
from zo.ledger import Entry
store, mine = SqliteStore(Path(sys.argv[1])), []
input()
while len(mine) < {each}:
    number, head = store.head({run})
    try:
        mine.append((number + 1, store.commit({run}, Entry(number + 1, number + 1, int(sys.argv[2]), ()), head, 0, {{}}).hex()))
    except Conflict:
        pass
print(json.dumps(mine))
"""
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code, path]
        writers = [subprocess.Popen([*command, str(name)], stdin=pipe, stdout=pipe, text=True) for name in (7, 8)]
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
        told = [json.loads(writer.communicate(timeout=60)[0]) for writer in writers]
        kept = [[header.number, head.hex()] for header, head in store.headers(run)]
        assert sorted(told[0] + told[1]) == kept
        assert len(kept) == 2 * each
        store.check_chain(store.run("run"))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    folder = tmp_path / "mounted"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path: Path) -> None:
    """A file that takes all the room there is."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def sql(path: Path, script: str) -> Any:
    """Run statements; gives the rows of the last one."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in script.split("; "):
            rows = database.execute(statement).fetchall()
        return rows


def refusal(path: Path, *, create: bool = False) -> str:
    with pytest.raises(StorageError) as caught:
        SqliteStore(path, create=create)
    return str(caught.value)


def test_a_missing_file_is_no_store_to_read(tmp_path: Path) -> None:
    assert "does not exist; give the store of a coordinator with --store" in refusal(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    said = f"the folder of store {tmp_path / 'folder/none'} does not exist; make it, or give another store with --store"
    assert refusal(tmp_path / "folder/none", create=True) == said


@pytest.mark.parametrize("create", [False, True])
def test_a_file_that_is_no_database_is_refused_and_kept(create: bool, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("shopping list " * 100)
    assert refusal(path, create=create) == f"{path} is no store of edge-coordinator; give another with --store"
    assert path.read_text() == "shopping list " * 100


@pytest.mark.parametrize("create", [False, True])
def test_a_folder_is_no_store(create: bool, tmp_path: Path) -> None:
    assert refusal(tmp_path, create=create) == f"{tmp_path} is a folder; give the file of a store with --store"


@pytest.mark.parametrize("name", ["sp ace ü.sqlite", "what?mode=ro#1%20.sqlite"])
def test_a_store_may_have_any_name(name: str, tmp_path: Path) -> None:
    begun(SqliteStore(tmp_path / name, create=True), 2)
    assert SqliteStore(tmp_path / name).head(1)[0] == 2
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()} == {name}


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("version", [1, SCHEMA_VERSION + 1])
def test_a_store_of_another_version_is_refused(version: int, create: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    SqliteStore(path, create=True).close()
    sql(path, f"PRAGMA user_version = {version}")
    content = path.read_bytes()
    assert f"not a store that this version knows (version {version})" in refusal(path, create=create)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "photos.sqlite"
    sql(path, "CREATE TABLE photos (name TEXT)")
    content = path.read_bytes()
    assert "not a store" in refusal(path, create=True)
    assert path.read_bytes() == content


def test_a_file_that_may_only_be_read_is_refused_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    SqliteStore(path, create=True).close()
    path.chmod(0o444)
    try:
        path.open("ab").close()
    except OSError:
        with pytest.raises(StorageError, match="permissions"):
            begun(SqliteStore(path, create=True))
    else:
        pytest.skip("this user may write to every file")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of fifty entries, closed; tests must not change it."""
    path = tmp_path_factory.mktemp("full") / "run.sqlite"
    store = SqliteStore(path, create=True)
    run = begun(store, 50)
    for number in range(30):
        store.add_report(report(number, 51))
    store.add_checkpoint(run, checkpoint(store, 20))
    store.close()
    assert not log_of(path).exists()
    return path


def told_of(store: Store) -> tuple[object, ...]:
    """What a store tells of its ledger; StorageError where it is not to be trusted."""
    run = store.run("run")
    store.check_chain(run)
    entries = store.entries(run.id)
    if [entry.header for entry in entries] != [header for header, _ in store.headers(run.id)]:
        raise StorageError("a replay finds that terms do not fit the chain")
    return run.genesis, entries, store.headers(run.id), store.summaries(run.id)


def test_a_truncated_file_is_refused_at_any_length_and_left_as_it_is(full: Path, tmp_path: Path) -> None:
    content, before = full.read_bytes(), told_of(SqliteStore(full))
    lengths = {0, 1, 15, 16, 99, 100, 511, 512, 4095, *range(4096, len(content), 4096), *range(700, len(content), 1531), len(content) - 1}
    for length in sorted(lengths):
        path = tmp_path / f"{length}.sqlite"
        path.write_bytes(content[:length])
        said = refusal(path, create=True)
        assert str(path) in said
        assert "restore it from a backup" in said, (length, said)
        with contextlib.suppress(StorageError):  # a command that only reads does not look through all of it first
            assert told_of(SqliteStore(path)) == before
        assert path.read_bytes() == content[:length]


def test_garbage_in_a_file_is_told_or_harmless_and_left_as_it_is(full: Path, tmp_path: Path) -> None:
    content, draw = full.read_bytes(), random.Random(3)
    before = told_of(SqliteStore(full))
    refused = 0
    for number in range(120):
        place, length = draw.randrange(len(content)), draw.choice([1, 16, 400])
        damaged = content[:place] + draw.randbytes(length) + content[place + length :]
        path = tmp_path / f"{number}.sqlite"
        path.write_bytes(damaged)
        try:
            assert told_of(SqliteStore(path, create=True)) == before
        except StorageError:
            refused += 1
        assert path.read_bytes() == damaged
    assert refused > 15


@pytest.mark.parametrize("create", [True, False])
def test_a_schema_that_is_no_text_is_damage_and_told_in_a_line(create: bool, full: Path, tmp_path: Path) -> None:
    content = full.read_bytes()
    for old in (b"TABLE runs", b"PRIMARY KEY", b"NOT NULL"):
        assert old in content
        path = tmp_path / "run.sqlite"
        path.write_bytes(content.replace(old, b"\xcc" + old[1:]))
        assert len(said := refusal(path, create=create)) < 400 + len(str(path))
        assert "is damaged" in said


@pytest.mark.parametrize("table", ["reports", "checkpoints", "devices", "events"])
def test_a_damaged_page_is_found_before_a_run_goes_on(table: str, full: Path, tmp_path: Path) -> None:
    content = full.read_bytes()
    size, page = sql(full, "PRAGMA page_size")[0][0], sql(full, f"SELECT rootpage FROM sqlite_master WHERE name = '{table}'")[0][0]
    assert full.read_bytes() == content
    path = tmp_path / "run.sqlite"
    damaged = content[: size * (page - 1)] + b"\xff" * size + content[size * page :]
    path.write_bytes(damaged)
    assert "is damaged" in (said := refusal(path, create=True))
    assert "it is left as it is: restore it from a backup" in said
    assert path.read_bytes() == damaged
