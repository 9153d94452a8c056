"""A round closes when it should, takes in what it should, and survives its coordinator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_coordinator import report, settings

from coordinator.config import Rate, Round
from coordinator.rounds import ReportRefused, Rounds
from coordinator.store import Store
from zo.bundle import Bundle
from zo.errors import StorageError
from zo.ledger import Entry
from zo.messages import Verdict

Make = Callable[..., Rounds]


class Clock:
    """Seconds, moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class FailingStore(Store):
    """Its disk is full while `failing` names the method that is called."""

    failing = ""

    def commit(self, run: int, entry: Entry, head: bytes, summary: dict[str, Any]) -> None:
        if self.failing == "commit":
            raise StorageError("disk full")
        super().commit(run, entry, head, summary)

    def finish(self, run: int) -> None:
        if self.failing == "finish":
            raise StorageError("disk full")
        super().finish(run)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(bert_bundle: Bundle, tmp_path: Path, clock: Clock) -> Make:
    """make(devices=3, **settings): rounds over the same file at each call."""

    def rounds(devices: int = 3, **changed: Any) -> Rounds:
        store = FailingStore(tmp_path / "run.sqlite", create=True)
        run = store.open_run("run", bert_bundle.folder, bert_bundle.digest)
        made = Rounds(store, run, bert_bundle, settings(bert_bundle, **changed), clock)
        for device in range(devices):
            assert made.enrol(1000 + device) == device
        return made

    return rounds


def state(rounds: Rounds) -> tuple[int, int, bytes, bytes, int]:
    return rounds.entry, rounds.round, rounds.head, rounds.parameters.digest(), len(rounds.reports)


def kinds(rounds: Rounds) -> list[str]:
    return [kind for _, kind, _ in rounds.store.events(rounds.run.id)]


# --- plans ---


def test_no_two_devices_or_rounds_share_a_seed(make: Make) -> None:
    rounds = make()
    nodes = [rounds.node(number, device) for number in (1, 2) for device in range(3)]
    seeds = [seed for node in nodes for seed in range(node.first_seed, node.first_seed + node.count)]
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 3


def test_a_plan_asks_for_held_out_loss_and_digest_when_they_are_due(make: Make) -> None:
    rounds = make(held_out_every=2, digest_every=3, round=Round(1, 1, 5.0), rounds=6)
    due = []
    for number in range(1, 7):
        plan = rounds.plan(0)
        assert plan is not None
        due.append((plan.measure_held_out, plan.want_digest))
        assert rounds.accept(report(0, number)) is Verdict.ACCEPTED
        assert rounds.close_if_due()
    assert due == [(True, False), (True, False), (False, True), (True, False), (False, False), (True, True)]


def test_who_has_reported_has_nothing_to_do_until_the_next_round(make: Make) -> None:
    rounds = make()
    rounds.accept(report(0))
    assert rounds.plan(0) is None
    assert rounds.plan(1) is not None
    rounds.accept(report(1))
    rounds.close_if_due()
    plan = rounds.plan(0)
    assert plan is not None
    assert (plan.round, plan.entry) == (2, 1)


# --- closing ---


def test_a_round_closes_at_its_goal(make: Make) -> None:
    rounds = make()
    assert not rounds.close_if_due()
    rounds.accept(report(0))
    assert not rounds.close_if_due()
    rounds.accept(report(1))
    before = rounds.parameters.digest()
    assert rounds.close_if_due()
    assert (rounds.entry, rounds.round, rounds.reports) == (1, 2, {})
    assert rounds.parameters.digest() != before
    assert rounds.store.entries(rounds.run.id)[0].contributors == 2


def test_a_round_closes_at_its_deadline_with_its_minimum(make: Make, clock: Clock) -> None:
    rounds = make(round=Round(3, 2, 30.0))
    rounds.accept(report(0))
    rounds.accept(report(1))
    clock.now += 29.9
    assert not rounds.close_if_due()
    clock.now += 0.1
    assert rounds.close_if_due()
    assert not rounds.close_if_due()


def test_a_round_never_closes_below_its_minimum(make: Make, clock: Clock) -> None:
    rounds = make(round=Round(3, 2, 30.0))
    rounds.accept(report(0))
    clock.now += 1e9
    assert not rounds.close_if_due()
    rounds.accept(report(2))
    assert rounds.close_if_due()


def test_the_deadline_begins_again_with_every_round(make: Make, clock: Clock) -> None:
    rounds = make(round=Round(2, 1, 30.0))
    clock.now += 29
    rounds.accept(report(0))
    rounds.accept(report(1))
    assert rounds.close_if_due()
    rounds.accept(report(0, 2))
    clock.now += 29
    assert not rounds.close_if_due()


def test_an_open_round_says_why_it_waits(make: Make, clock: Clock) -> None:
    rounds = make(round=Round(3, 2, 30.0))
    rounds.accept(report(0))
    clock.now += 10
    assert rounds.why_waiting() == "round 1 has 1 of 3 reports; 2 are enough in 20 s"
    assert not rounds.overdue
    clock.now += 21
    assert rounds.why_waiting() == "round 1 has 1 reports and needs 2; its deadline has passed"
    assert rounds.overdue


def test_the_last_round_ends_the_run(make: Make) -> None:
    rounds = make(rounds=2, round=Round(1, 1, 30.0))
    for number in (1, 2):
        assert not rounds.finished
        rounds.accept(report(0, number))
        rounds.close_if_due()
    assert rounds.finished
    assert rounds.why_waiting() == "the run is over"
    assert (rounds.plan(0), rounds.overdue, rounds.close_if_due()) == (None, False, False)
    assert rounds.store.run("run").state == "finished"
    assert rounds.store.summaries(rounds.run.id)[-1]["digest"] == rounds.parameters.digest().hex()


# --- reports ---


def test_a_second_report_of_a_round_is_a_duplicate_and_changes_nothing(make: Make) -> None:
    rounds = make()
    first = report(0)
    assert rounds.accept(first) is Verdict.ACCEPTED
    assert rounds.accept(report(0, scalars=(1, 1, 1))) is Verdict.DUPLICATE
    assert rounds.reports[0] is first


@pytest.mark.parametrize("number", [0, 1, 3, 2**63])
def test_a_report_of_another_round_is_late(number: int, make: Make) -> None:
    rounds = make(round=Round(1, 1, 30.0))
    rounds.accept(report(0))
    rounds.close_if_due()
    assert rounds.accept(report(1, number)) is Verdict.LATE
    assert rounds.reports == {}


def test_a_report_after_the_end_is_late(make: Make) -> None:
    rounds = make(rounds=1, round=Round(1, 1, 30.0))
    rounds.accept(report(0))
    rounds.close_if_due()
    assert rounds.accept(report(1, 2)) is Verdict.LATE


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"device": 3}, "device 3 has not joined this run"),
        ({"scalars": np.array([1, 2])}, "a report holds 3 scalars, not 2"),
        ({"scalars": np.array([], np.int64)}, "a report holds 3 scalars, not 0"),
        ({"scalars": np.array([1, 2, 2**15 + 1])}, "a scalar is beyond the clip of 32768"),
        ({"scalars": np.array([1, 2, -(2**31)])}, "a scalar is beyond the clip of 32768"),
        ({"examples": 0}, "0 examples are not between 1 and 4"),
        ({"examples": 5}, "5 examples are not between 1 and 4"),
    ],
)
def test_what_is_no_answer_to_a_plan_is_refused(wrong: dict[str, Any], said: str, make: Make) -> None:
    rounds = make()
    before = state(rounds)
    with pytest.raises(ReportRefused, match=said):
        rounds.accept(report(**{"device": 0} | wrong))
    assert state(rounds) == before
    assert rounds.store.reports(rounds.run.id, 1) == []


def test_scalars_at_the_clip_are_taken(make: Make) -> None:
    assert make().accept(report(0, scalars=(2**15, -(2**15), 0))) is Verdict.ACCEPTED


def test_other_parameters_are_found_by_their_digest(make: Make) -> None:
    rounds = make()
    assert rounds.accept(report(0, digest=bytes(32))) is Verdict.DIVERGED
    assert rounds.reports == {}
    assert kinds(rounds) == ["diverged"]
    assert rounds.accept(report(0, digest=rounds.parameters.digest())) is Verdict.ACCEPTED


# --- going on after a stop ---


def test_a_new_coordinator_goes_on_in_mid_round_with_the_reports_accepted(make: Make) -> None:
    rounds = make()
    for device in (0, 1):
        rounds.accept(report(device))
    rounds.close_if_due()
    rounds.accept(report(2, 2))
    again = make(devices=0)
    assert state(again) == state(rounds)
    assert again.devices == 3
    assert again.accept(report(2, 2)) is Verdict.DUPLICATE
    again.accept(report(0, 2))
    assert again.close_if_due()


def test_a_stop_changes_no_bit_of_what_comes_after(make: Make) -> None:
    rounds = make()
    rounds.accept(report(0))
    again = make(devices=0)
    for each in (rounds, again):
        each.reports[1] = report(1)
    terms = rounds._terms([report(0), report(1)])
    assert terms == again._terms([report(0), report(1)])
    assert terms


def test_a_ledger_that_was_changed_is_refused_at_the_start(make: Make) -> None:
    rounds = make(round=Round(1, 1, 30.0))
    rounds.accept(report(0))
    rounds.close_if_due()
    rounds.store.commit(rounds.run.id, Entry(2, 2, 1, ()), bytes(32), {"round": 2})
    with pytest.raises(StorageError, match="does not fit its hash chain"):
        make()


def test_a_commit_that_fails_leaves_round_reports_and_parameters_as_they_were(make: Make) -> None:
    rounds = make()
    for device in (0, 1):
        rounds.accept(report(device))
    before = state(rounds)
    rounds.store.failing = "commit"
    with pytest.raises(StorageError, match="disk full"):
        rounds.close_if_due()
    assert state(rounds) == before
    rounds.store.failing = ""
    assert rounds.close_if_due()
    assert state(make(devices=0)) == state(rounds)


def test_a_run_whose_end_could_not_be_noted_is_finished_at_the_next_start(make: Make) -> None:
    rounds = make(rounds=1, round=Round(1, 1, 30.0))
    rounds.accept(report(0))
    rounds.store.failing = "finish"
    with pytest.raises(StorageError):
        rounds.close_if_due()
    again = make(devices=0, rounds=1)
    assert again.finished
    assert again.store.run("run").state == "finished"


@pytest.mark.parametrize("rate", [1e6, 1e300])
def test_a_round_beyond_the_lattice_changes_nothing_but_goes_on(rate: float, make: Make) -> None:
    rounds = make(rate=Rate(rate, rate), round=Round(1, 1, 30.0))
    before = rounds.parameters.digest()
    rounds.accept(report(0))
    assert rounds.close_if_due()
    assert rounds.parameters.digest() == before
    assert (rounds.entry, rounds.round) == (1, 2)
    assert rounds.store.entries(rounds.run.id)[0].terms == ()
    assert kinds(rounds) == ["refused"]
    assert state(make(devices=0)) == state(rounds)


def test_the_summary_tells_what_the_reports_held(make: Make) -> None:
    rounds = make()
    rounds.accept(report(0, dropped=1, held_out=2**14))
    rounds.accept(report(1, held_out=3 * 2**14))
    rounds.close_if_due()
    summary = rounds.store.summaries(rounds.run.id)[0]
    assert (summary["reports"], summary["probes"], summary["dropped"], summary["held_out"]) == (2, 12, 1, 2.0)
    assert summary["half_difference"] == pytest.approx(np.sqrt((300**2 + 200**2 + 100**2) / 3) / 2**14)
