"""The crash benchmark counts what it is asked for, its disk leaves what a power cut would, and its audit finds every kind of damage."""

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.bench import audit, crash
from coordinator.config import RunConfig
from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from zo import config, wire
from zo.bundle import Bundle
from zo.errors import StorageError
from zo.faults import Death, Fault, FaultyDisk, cut_power, synced
from zo.ledger import Entry, short
from zo.messages import Report

ROOT = Path(crash.__file__).parents[2]
ZEROS = {"lost_commits": 0, "lost_reports": 0, "double_counted": 0, "digest_mismatches": 0}


# --- all of it ---


def test_a_few_kills_and_power_losses_lose_nothing(tmp_path: Path) -> None:
    found = crash.measure(4, tmp_path, seed=1)
    assert (found["kills"], found["power_losses"]) == (4, 4)
    assert found["kills_in_commit"] == 2
    assert {key: found[key] for key in ZEROS} == ZEROS
    assert found["commits"] >= crash.LAST_ROUNDS
    assert found["reports"] >= found["commits"]
    assert found["diverged"] == 0
    store = SqliteStore(tmp_path / "store/run.sqlite")
    assert store.head(1)[0] == found["commits"]
    store.close()
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert "Traceback" not in logs
    notes = audit.Notes([tmp_path / f"agent{number}.notes" for number in range(crash.AGENTS)])
    assert notes.accepted <= notes.sent.keys()
    assert notes.accepted  # of whom is a matter of who is up in time: rounds close after 0.3 s
    assert len(list(tmp_path.glob("agent*/status.json"))) == crash.AGENTS


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("made", [crash.coordinator_crashes, crash.agent_crashes])
def test_crashes_come_in_the_count_and_kind_that_is_asked_for(made: Callable[[int, bool], list[crash.Crash]], power: bool) -> None:
    crashes = made(100, power)
    assert (len(crashes), {each.power for each in crashes}) == (100, {power})
    deaths = [each.death for each in crashes if each.death]
    in_commit = sum(death.in_commit for death in deaths)
    assert in_commit == (60 if made is crash.coordinator_crashes else 0)
    assert 60 <= len(deaths) < 100
    assert {str(Death.parsed(str(death))) for death in deaths} == {str(death) for death in deaths}


def test_two_hundred_kills_have_fifty_in_a_commit() -> None:
    assert sum(bool(each.death and each.death.in_commit) for each in crash.coordinator_crashes(100, False)) >= 50


# --- the disk ---

REPLACES = """
import sys
from pathlib import Path
from zo.faults import Death, FaultyDisk

folder = Path(sys.argv[1])
FaultyDisk(folder).replace(folder / "file", b"old content")
FaultyDisk(folder, Death.parsed(sys.argv[2])).replace(folder / "file", b"the new one")
print("done")
"""


def child(code: str, *arguments: object) -> tuple[int, str]:
    """Code and output of a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.returncode, done.stdout


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


OLD, NEW = {"file": b"old content"}, {"file": b"the new one"}
BOTH = OLD | {"file.new": b"the new one"}


@pytest.mark.parametrize(
    ("death", "killed", "cut"),
    [
        ("before-write:1:any", OLD, OLD),
        ("half-written:1:any", OLD | {"file.new": b"the n"}, OLD),
        ("before-sync:1:any", BOTH, OLD),
        ("after-sync:1:any", BOTH, BOTH),
        ("before-rename:1:any", BOTH, BOTH),
        ("after-rename:1:any", NEW, BOTH),
        ("before-sync:2:any", NEW, BOTH),
        ("after-sync:2:any", NEW, NEW),
    ],
)
def test_a_process_that_dies_leaves_what_it_wrote_and_a_power_cut_what_was_synced(
    death: str, killed: dict[str, bytes], cut: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    code, said = child(REPLACES, folder, death)
    assert (code, said) == (-signal.SIGKILL, "")
    assert content(folder) == killed
    (folder / "lock").touch()
    cut_power(folder, keep={"lock"})
    left = content(folder)
    assert left.pop("lock") == b""
    assert left == cut


def test_a_death_that_does_not_come_by_kills_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    for death in ("before-write:2:any", "before-sync:1:commit"):
        assert child(REPLACES, folder, death) == (0, "done\n")
    cut_power(folder, keep=set())
    assert (folder / "file").read_bytes() == b"the new one"


def test_what_was_never_synced_is_gone_and_so_is_a_name_that_was_not(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    disk = FaultyDisk(folder)
    disk.write(folder / "a", b"never synced")
    disk.write(folder / "b", b"synced")
    disk.sync(folder / "b")
    disk.write(folder / "b", b"synced, and changed")
    disk.rename(folder / "b", folder / "c")
    cut_power(folder, keep=set())
    assert content(folder) == {"b": b"synced"}
    assert content(synced(folder)) == {"b": b"synced"}


def test_a_folder_of_which_nothing_was_synced_is_empty(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/a").write_text("a")
    cut_power(tmp_path / "state", keep=set())
    cut_power(tmp_path / "another", keep=set())
    assert content(tmp_path / "state") == content(tmp_path / "another") == {}


COMMITS = """
import sys
from pathlib import Path

import numpy as np

from coordinator.bench.crashing import DyingStore
from zo.faults import Death, Fault, FaultyDisk
from zo.ledger import Entry
from zo.messages import Report
from zo.terms import Term


class Careless(DyingStore):
    \"\"\"Says that it has written, and does not sync.\"\"\"

    def _sync(self, folder=None):
        if folder is not None:
            return super()._sync(folder)
        self._disk.pass_by(Fault.BEFORE_SYNC)
        self._disk.pass_by(Fault.AFTER_SYNC)


path, kind, death = Path(sys.argv[1]), {"careful": DyingStore, "careless": Careless}[sys.argv[2]], Death.parsed(sys.argv[3])
store = kind(path, create=True, disk=FaultyDisk(path.parent, death))
run = store.open_run("run", path.parent, bytes(32))
head, last = run.genesis, 0
for number in range(1, 7):
    store.add_report(Report(1, 0, number, np.arange(3), 4, "fp32"))
    print("report", number, flush=True)
    entry = Entry(number, number, 1, (Term((0,), number, np.arange(200)),))
    head = store.commit(1, entry, head, 1, {"round": number})
    print("entry", number, flush=True)
"""


def after_power_cut(folder: Path, kind: str, death: str) -> tuple[dict[str, int], SqliteStore]:
    """How far a store that died said it had come, by kind of write, and the store as it is found then."""
    folder.mkdir()
    code, said = child(COMMITS, folder / "run.sqlite", kind, death)
    assert code == -signal.SIGKILL
    cut_power(folder, keep=set())
    told = {"report": 0, "entry": 0} | {name: int(number) for name, number in map(str.split, said.splitlines())}
    return told, SqliteStore(folder / "run.sqlite", create=True)


@pytest.mark.parametrize(("fault", "entries"), [(Fault.BEFORE_WRITE, 2), (Fault.BEFORE_SYNC, 2), (Fault.AFTER_SYNC, 3)])
def test_a_power_cut_inside_a_commit_leaves_the_round_wholly_open_or_wholly_committed(fault: Fault, entries: int, tmp_path: Path) -> None:
    told, store = after_power_cut(tmp_path / "store", "careful", str(Death(fault, 3, in_commit=True)))
    assert told == {"report": 3, "entry": 2}
    assert [entry.number for entry in store.entries(1)] == list(range(1, entries + 1))
    assert [report.round for report in store.reports(1, 3)] == [3][entries - 2 :]
    store.check_chain(store.runs()[0])
    store.close()


def test_a_store_that_skips_its_syncs_loses_what_it_promised(tmp_path: Path) -> None:
    told, store = after_power_cut(tmp_path / "store", "careless", str(Death(Fault.AFTER_SYNC, 5, in_commit=True)))
    assert told == {"report": 5, "entry": 4}
    assert store.entries(1) == []
    store.close()


def test_without_a_power_cut_even_that_store_has_it_all(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    assert child(COMMITS, folder / "run.sqlite", "careless", str(Death(Fault.AFTER_SYNC, 5, in_commit=True)))[0] == -signal.SIGKILL
    store = SqliteStore(folder / "run.sqlite", create=True)
    assert len(store.entries(1)) == 5
    store.close()


# --- the audit ---


class Kept:
    """A run whose devices keep notes, all in this process. `damage` may be done to store and notes before the audit."""

    DEVICES = 3

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.folder, self.path, self.notes = folder, folder / "run.sqlite", folder / "agent.notes"
        self.settings = {"bundle": str(bundle.folder)} | crash.SETTINGS
        self.store = SqliteStore(self.path, create=True)
        run = self.store.open_run("run", bundle.folder, bundle.digest)
        chosen: RunConfig = config.from_texts(RunConfig, self.settings | {"rounds": "1000", "round.goal": "1000"})
        self.rounds = Rounds(self.store, run, bundle, chosen)
        for device in range(self.DEVICES):
            self.rounds.enrol(1000 + device)
        self.notes.touch()

    def report(self, device: int) -> Report:
        """One that the open round takes."""
        root = self.rounds.plans.node(self.rounds.round, device, "fp32")
        scalars = np.random.default_rng(100 * self.rounds.round + device).integers(-3000, 3000, root.scalars)
        return Report(1, device, self.rounds.round, scalars, 2, "fp32", plan=self.rounds.plan_id(device, "fp32"), shape=root.shape)

    def sent(self, report: Report, verdict: str = "ACCEPTED") -> None:
        """What a device notes of a report."""
        self.note(sent=wire.encode(report).hex())
        if verdict:
            self.note(round=report.round, device=report.device, verdict=verdict)

    def heard(self, entry: Entry) -> None:
        """What a device notes of an entry."""
        self.note(entry=entry.number, terms=short(entry.header.terms_digest))

    def note(self, **facts: Any) -> None:
        with self.notes.open("a") as file:
            file.write(json.dumps(facts) + "\n")

    def round(self, *devices: int) -> None:
        """A round as it should be."""
        for device in devices:
            report = self.report(device)
            assert self.rounds.accept(report).name == "ACCEPTED"
            self.sent(report)
        self.rounds.commit()
        self.heard(self.store.entries(1)[-1])

    def forge(self, reports: list[Report], **changed: Any) -> None:
        """An entry of these reports goes into the ledger, whatever the rules are."""
        terms = self.rounds.aggregator.terms(self.rounds.aggregator.answers(reports))
        entry = dataclasses.replace(Entry(self.rounds.ledger.entry + 1, self.rounds.round, len(reports), terms), **changed)
        self.rounds.ledger.parameters.add(entry.terms)
        self.store.commit(1, entry, self.rounds.ledger.replica.head, 1, {"round": entry.round})
        self.rounds.ledger.replica.advance(entry)
        self.rounds._open(entry.round + 1)
        self.heard(entry)

    def ended(self, name: str, digest: bytes) -> None:
        """What an agent's status says at the end."""
        (self.folder / name).mkdir()
        (self.folder / name / "status.json").write_text(json.dumps({"digest": digest.hex()}))

    def audit(self) -> dict[str, Any]:
        return audit.audit(self.path, self.settings, [self.notes], self.folder)

    def wrong(self) -> dict[str, int]:
        """What the audit complains of."""
        found = self.audit()
        assert ZEROS.keys() <= found.keys()
        return {key: found[key] for key in ZEROS if found[key]}


@pytest.fixture
def kept(bert_bundle: Bundle, tmp_path: Path) -> Iterator[Kept]:
    made = Kept(bert_bundle, tmp_path)
    yield made
    made.store.close()


def test_a_run_that_was_kept_as_promised_has_nothing_wrong(kept: Kept) -> None:
    for devices in ((0, 1, 2), (1,), (0, 2), (2, 1)):
        kept.round(*devices)
    late = dataclasses.replace(kept.report(0), round=2)
    kept.sent(late, "LATE")
    kept.sent(kept.report(1), "")
    kept.ended("agent0", kept.rounds.ledger.digest())
    assert kept.audit() == ZEROS | {"commits": 4, "reports": 8, "diverged": 0}


def test_a_report_whose_acceptance_was_heard_twice_or_never_is_no_damage(kept: Kept) -> None:
    first, second = kept.report(0), kept.report(1)
    for report in (first, second):
        kept.rounds.accept(report)
    kept.sent(first)
    kept.sent(first, "DUPLICATE")
    kept.sent(second, "")
    kept.rounds.commit()
    assert kept.wrong() == {}


def test_an_entry_that_was_heard_of_and_is_gone_is_found(kept: Kept) -> None:
    kept.round(0, 1)
    kept.note(entry=2, terms=12345)
    assert kept.wrong() == {"lost_commits": 1}


def test_an_entry_that_was_heard_of_with_other_terms_is_found(kept: Kept) -> None:
    kept.round(0, 1)
    kept.note(entry=1, terms=12345)
    kept.note(entry=1, terms=12345)
    assert kept.wrong() == {"lost_commits": 1}


@pytest.mark.parametrize("verdict", ["ACCEPTED", "DUPLICATE"])
def test_a_report_that_was_accepted_and_does_not_count_is_found(verdict: str, kept: Kept) -> None:
    kept.round(0, 1)
    kept.sent(kept.report(2), verdict)
    kept.round(0, 1)
    kept.round(0, 1, 2)
    assert kept.wrong() == {"lost_reports": 1}


def test_a_report_that_counts_twice_is_found(kept: Kept) -> None:
    kept.round(0, 1)
    report = kept.report(0)
    kept.sent(report)
    kept.forge([report, report])
    assert kept.wrong() == {"double_counted": 1}


def test_a_report_that_counts_twice_in_the_place_of_another_is_found(kept: Kept) -> None:
    reports = [kept.report(device) for device in range(3)]
    for report in reports:
        kept.sent(report)
    kept.forge([reports[0], reports[0], reports[1]])
    kept.round(0, 1)
    assert kept.wrong()["double_counted"] == 1


def test_a_report_that_counts_again_in_the_next_round_is_found(kept: Kept) -> None:
    before = kept.report(0)
    kept.round(0)
    report = kept.report(1)
    kept.sent(report)
    kept.forge([before, report])
    assert kept.wrong() == {"double_counted": 1}


def test_a_report_that_counts_otherwise_than_it_was_sent_is_found(kept: Kept) -> None:
    report = kept.report(0)
    kept.sent(report)
    kept.forge([dataclasses.replace(report, scalars=report.scalars + 500)])
    assert kept.wrong() == {"double_counted": 1}


def test_either_of_two_answers_that_a_device_sent_may_count(kept: Kept) -> None:
    first = kept.report(0)
    second = dataclasses.replace(first, scalars=first.scalars + 500)
    kept.sent(first, "")
    kept.sent(second)
    kept.forge([second])
    assert kept.wrong() == {}


def test_a_digest_of_the_ledger_that_is_wrong_is_found(kept: Kept) -> None:
    report = kept.report(0)
    kept.sent(report)
    kept.forge([report], digest=bytes(32))
    kept.round(0, 1)
    with pytest.raises(StorageError, match="do not have the digest stated"):
        kept.audit()
    kept.rounds.ledger.checkpoint(kept.rounds.config.keep_entries)  # what comes before one is not replayed when a store is opened
    assert kept.wrong() == {"digest_mismatches": 1}


def test_an_agent_that_ended_with_other_parameters_is_found(kept: Kept) -> None:
    kept.round(0, 1)
    kept.ended("agent0", kept.rounds.ledger.digest())
    kept.ended("agent1", bytes(32))
    kept.ended("agent2", kept.rounds.bundle.parameters().digest())
    assert kept.wrong() == {"digest_mismatches": 2}


def test_divergence_is_told_apart(kept: Kept) -> None:
    kept.round(0, 1)
    kept.store.add_event(1, "diverged", "device 0 holds other parameters")
    assert kept.audit()["diverged"] == 1
    assert kept.wrong() == {}
