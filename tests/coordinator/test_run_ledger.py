"""An entry is durable before anyone hears of it, appended whole or not at all, and what others append is followed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_coordinator import answer, settings
from made_rounds import FailingStore, Make, append_rollback, close, kinds, state

from coordinator import history
from coordinator.config import Round
from coordinator.rounds import Rounds
from coordinator.run_ledger import CHECKPOINT_EVERY
from coordinator.store import Conflict
from coordinator.summary import NOTHING_DONE
from zo.bundle import Bundle
from zo.errors import StorageError
from zo.ledger import Entry
from zo.messages import Verdict
from zo.terms import Term, negated


def test_a_ledger_that_was_changed_is_refused_at_the_start(make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(1, 1, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.close_if_due()
    rounds.store._db.execute("UPDATE entries SET contributors = 2")
    with pytest.raises(StorageError, match="does not fit its hash chain"):
        make_rounds()


def test_a_commit_that_fails_leaves_round_reports_and_parameters_as_they_were(make_rounds: Make) -> None:
    rounds = make_rounds()
    for device in (0, 1):
        rounds.accept(answer(rounds, device))
    before = state(rounds)
    rounds.store.failing = "commit"
    with pytest.raises(StorageError, match="disk full"):
        rounds.close_if_due()
    assert state(rounds) == before
    rounds.store.failing = ""
    assert rounds.close_if_due()
    assert state(make_rounds(devices=0)) == state(rounds)


class WatchedStore(FailingStore):
    """Notes what `rounds` says of itself at the instant that its entry becomes durable."""

    rounds: Rounds
    seen: tuple[object, ...] = ()

    def commit(self, run: int, entry: Entry, previous: bytes, signs: int, summary: dict[str, Any]) -> bytes:
        head = super().commit(run, entry, previous, signs, summary)
        ledger = self.rounds.ledger
        self.seen = (ledger.entry, self.rounds.round, ledger.replica.head, sorted(self.rounds.reports), self.head(run)[0])
        return head


def test_a_commit_is_durable_before_anyone_can_hear_of_it(bert_bundle: Bundle, tmp_path: Path) -> None:
    store = WatchedStore(tmp_path / "run.sqlite", create=True)
    rounds = Rounds(store, store.open_run("run", bert_bundle.folder, bert_bundle.digest), bert_bundle, settings(bert_bundle))
    store.rounds = rounds
    for device in (0, 1):
        rounds.enrol(device)
    genesis = rounds.ledger.replica.head
    close(rounds, 2)
    assert store.seen == (0, 1, genesis, [0, 1], 1)
    assert (rounds.ledger.entry, rounds.ledger.replica.head) == store.head(rounds.run.id)


def test_an_entry_carries_the_digest_of_the_parameters_when_it_is_due_and_at_the_end(make_rounds: Make) -> None:
    rounds = make_rounds(rounds=7, digest_every=3, round=Round(1, 1, 30.0))
    digests = []
    for _ in range(7):
        close(rounds)
        digests.append(rounds.ledger.parameters.digest())
    stated = [entry.digest for entry in rounds.store.entries(rounds.run.id)]
    assert stated == [digest if number in (3, 6, 7) else None for number, digest in enumerate(digests, 1)]
    told = [summary.get("digest") for summary in rounds.store.summaries(rounds.run.id)]
    assert told == [digest.hex() if digest else None for digest in stated]


def test_a_commit_whose_sync_fails_is_found_whole_at_the_next_start(make_rounds: Make) -> None:
    rounds = make_rounds()
    for device in (0, 1):
        rounds.accept(answer(rounds, device))
    before = state(rounds)
    rounds.store.failing = "after commit"
    with pytest.raises(StorageError, match="disk ill"):
        rounds.close_if_due()
    assert state(rounds) == before
    again = make_rounds(devices=0)
    assert (again.ledger.entry, again.round, again.reports) == (1, 2, {})
    assert again.accept(answer(again, 0, 1, plan=rounds.plan_id(0, "fp32"))) is Verdict.LATE


def test_a_restart_from_a_checkpoint_is_where_the_run_was(make_rounds: Make) -> None:
    rounds = make_rounds(rounds=200, round=Round(1, 1, 30.0))
    for _ in range(CHECKPOINT_EVERY + 6):
        close(rounds)
    assert rounds.store.checkpoints(rounds.run.id) == [CHECKPOINT_EVERY]
    rounds.accept(answer(rounds, 2))
    rounds.store._db.execute("UPDATE entries SET body = x'ffffff' WHERE number <= ?", (CHECKPOINT_EVERY,))  # they are not needed
    again = make_rounds(devices=0, rounds=200, round=Round(1, 1, 30.0))
    assert state(again) == state(rounds)
    assert again.ledger.replica.checkpoint() == rounds.ledger.replica.checkpoint()
    assert again.plan(2, "fp32") is None
    for each in (rounds, again):
        assert each.plan(1, "fp32") is not None


def test_a_checkpoint_that_cannot_be_kept_counts_no_report_twice(make_rounds: Make) -> None:
    rounds = make_rounds(rounds=200, round=Round(1, 1, 30.0))
    for _ in range(CHECKPOINT_EVERY - 1):
        close(rounds)
    rounds.accept(answer(rounds, 0))
    rounds.store.failing = "add_checkpoint"
    with pytest.raises(StorageError, match="disk full"):
        rounds.close_if_due()
    assert (rounds.ledger.entry, rounds.round, rounds.reports) == (CHECKPOINT_EVERY, CHECKPOINT_EVERY + 1, {})
    assert rounds.plan(0, "fp32") is not None
    rounds.store.failing = ""
    assert not rounds.close_if_due()
    close(rounds)
    assert state(make_rounds(devices=0, rounds=200)) == state(rounds)
    assert rounds.store.checkpoints(rounds.run.id) == [CHECKPOINT_EVERY + 1]


def test_compaction_while_running_keeps_every_digest(make_rounds: Make) -> None:
    rounds = make_rounds(rounds=400, round=Round(1, 1, 30.0), keep_entries=10, digest_every=1)
    plain = {}
    for number in range(1, 3 * CHECKPOINT_EVERY):
        close(rounds)
        plain[number] = rounds.ledger.parameters.digest()
        history.compact_when_due(rounds.store, rounds.run, 10)
    store = rounds.store
    assert store.compacted(1) == 2 * CHECKPOINT_EVERY
    assert [header.digest for header, _ in store.headers(1)] == list(plain.values())
    again = make_rounds(devices=0, rounds=400, keep_entries=10)
    assert state(again) == state(rounds)
    assert len(store.checkpoints(1)) <= 4


def test_a_rollback_by_another_process_is_followed(make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(2, 1, 30.0))
    assert not rounds.follow()
    close(rounds, 2)
    rounds.accept(answer(rounds, 0))
    old = answer(rounds, 1)
    append_rollback(rounds)
    assert rounds.follow()
    assert not rounds.follow()
    assert (rounds.ledger.entry, rounds.round, rounds.reports) == (2, 3, {})
    assert (rounds.ledger.entry, rounds.ledger.replica.head) == rounds.store.head(rounds.run.id)
    assert rounds.ledger.parameters.digest() == rounds.bundle.parameters().digest()
    assert rounds.accept(old) is Verdict.LATE
    assert kinds(rounds) == ["followed"]
    close(rounds, 2)
    assert state(make_rounds(devices=0)) == state(rounds)


def test_a_round_that_closes_when_somebody_else_has_appended_changes_nothing_and_follows(make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(2, 1, 30.0))
    close(rounds, 2)
    for device in (0, 1):
        rounds.accept(answer(rounds, device))
    append_rollback(rounds)
    before = rounds.ledger.parameters.digest()
    with pytest.raises(Conflict):
        rounds.commit()
    assert (rounds.ledger.entry, rounds.ledger.parameters.digest(), sorted(rounds.reports)) == (1, before, [0, 1])
    assert rounds.close_if_due()
    assert (rounds.ledger.entry, rounds.round, rounds.reports) == (2, 3, {})
    assert rounds.ledger.parameters.digest() == rounds.bundle.parameters().digest()
    assert rounds.store.reports(rounds.run.id, 2) == []
    close(rounds, 2)
    assert state(make_rounds(devices=0)) == state(rounds)


def test_a_report_that_comes_between_a_rollback_and_its_following_is_not_counted(make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(2, 1, 30.0))
    close(rounds, 2)
    append_rollback(rounds)
    assert rounds.accept(answer(rounds, 0)) is Verdict.ACCEPTED
    assert rounds.follow()
    assert rounds.reports == {}
    close(rounds, 2)
    assert [entry.contributors for entry in rounds.store.entries(rounds.run.id)] == [2, 0, 2]
    assert state(make_rounds(devices=0)) == state(rounds)


def test_several_entries_and_a_rollback_that_ends_the_run_are_followed(make_rounds: Make) -> None:
    rounds = make_rounds(rounds=3, round=Round(1, 1, 30.0))
    close(rounds)
    store, run = FailingStore(rounds.store.path), rounds.run.id
    head, term = rounds.ledger.replica.head, Term((0,), 5, np.array([3]))
    for number, terms in ((2, (term,)), (3, negated((term,)))):
        head = store.commit(run, Entry(number, number, 0, terms), head, 0, NOTHING_DONE | {"round": number})
    before = rounds.ledger.parameters.digest()
    assert rounds.follow()
    assert (rounds.ledger.entry, rounds.ledger.replica.head, rounds.ledger.parameters.digest()) == (3, head, before)
    assert (rounds.finished, rounds.store.run("run").state) == (True, "finished")
