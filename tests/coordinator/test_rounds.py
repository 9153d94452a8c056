"""A round closes when it should, takes in what it should, and survives its coordinator."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bundles, recalibrated
from local_coordinator import PROBE, answer, report, settings
from tiny_walks import batch_of

from coordinator import history
from coordinator.config import Rate, Round, Seeds
from coordinator.memory_store import MemoryStore, _Run
from coordinator.offenders import LATELY, OFTEN
from coordinator.plans import ReportRefused
from coordinator.rounds import Rounds
from coordinator.run_ledger import CHECKPOINT_EVERY
from coordinator.sqlite_store import SqliteStore
from coordinator.store import Conflict, RunRow
from zo.bundle import Bundle
from zo.checkpoint import Checkpoint
from zo.engine import Engine
from zo.errors import ConfigError, StorageError
from zo.estimators import Grid, half_differences
from zo.ledger import Entry, rollback
from zo.messages import Report, Spent, Verdict
from zo.parameters import Parameters
from zo.plan import Shape
from zo.planning import one_level
from zo.recipe import Probe, Split
from zo.seeds import MOST_DEVICES, SEEDS_PER_ROUND
from zo.terms import Term, negated

Make = Callable[..., Rounds]

CHANGED_SETTINGS: list[dict[str, Any]] = [
    {"probe": dataclasses.replace(PROBE, directions=4)},
    {"probe": dataclasses.replace(PROBE, log2_eps_body=-9)},
    {"log2_levels": 15},
    {"clip": 1.0},
]
IDS = ["directions", "probe size", "levels", "clip"]


class Clock:
    """Seconds, moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class FailingStore(SqliteStore):
    """Its disk is full while `failing` names the method that is called."""

    failing = ""

    def enrol(self, run: int, device_id: int) -> int:
        return MOST_DEVICES if self.failing == "enrol" else super().enrol(run, device_id)

    def commit(self, run: int, entry: Entry, previous: bytes, signs: int, summary: dict[str, Any]) -> bytes:
        if self.failing == "commit":
            raise StorageError("disk full")
        head = super().commit(run, entry, previous, signs, summary)
        if self.failing == "after commit":
            raise StorageError("disk ill")
        return head

    def add_checkpoint(self, run: int, checkpoint: Checkpoint) -> None:
        if self.failing == "add_checkpoint":
            raise StorageError("disk full")
        super().add_checkpoint(run, checkpoint)

    def add_reports(self, reports: Sequence[Report]) -> list[bool]:
        if self.failing == "add_reports":
            raise StorageError("disk full")
        kept = super().add_reports(reports)
        if self.failing == "after add_reports":
            raise StorageError("disk ill")
        return kept

    def set_state(self, run: int, state: str) -> None:
        if self.failing == "set_state":
            raise StorageError("disk full")
        super().set_state(run, state)


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
    return rounds.ledger.entry, rounds.round, rounds.ledger.replica.head, rounds.ledger.parameters.digest(), len(rounds.reports)


def comes_to(rounds: Rounds, reports: list[Report]) -> tuple[Term, ...]:
    return rounds.aggregator.terms(rounds.aggregator.answers(reports))


def kinds(rounds: Rounds) -> list[str]:
    return [kind for _, kind, _ in rounds.store.events(rounds.run.id)]


# --- plans ---


def test_no_two_devices_or_rounds_share_a_seed(make: Make) -> None:
    rounds = make()
    nodes = [rounds.plans.node(number, device, "fp32") for number in (1, 2) for device in range(3)]
    seeds = [seed for node in nodes for seed in range(node.first_seed, node.first_seed + node.count)]
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 3


def test_a_plan_asks_for_held_out_losses_along_the_stride_and_for_the_digest_when_they_are_due(make: Make) -> None:
    rounds = make(held_out_every=4, digest_every=3, round=Round(1, 1, 5.0), rounds=12)
    due = []
    for number in range(1, 13):
        plan = rounds.plan(0, "fp32")
        assert plan is not None
        due.append((plan.measure_held_out, plan.stride, plan.want_digest))
        assert rounds.accept(answer(rounds, 0, number, held_out=(2**14,) if plan.measure_held_out else ())) is Verdict.ACCEPTED
        assert rounds.close_if_due()
    assert [(number + 1, stride) for number, (measure, stride, _) in enumerate(due) if measure] == [(1, 0), (3, 2), (5, 2), (9, 4), (12, 0)]
    assert [number + 1 for number, (_, _, digest) in enumerate(due) if digest] == [3, 6, 9, 12]


def test_a_plan_carries_grid_and_id(make: Make) -> None:
    rounds = make(round=Round(1, 1, 5.0), log2_levels=12, clip=1.5)
    plan = rounds.plan(1, "fp32")
    assert plan is not None
    assert (plan.grid, plan.id) == (Grid(12, 1.5), rounds.plan_id(1, "fp32"))


def test_ids_of_plans_differ_by_device_and_round_and_settings_and_are_always_the_same(make: Make) -> None:
    rounds = make(round=Round(1, 1, 5.0))
    first = [rounds.plan_id(device, "fp32") for device in range(3)]
    assert first == [make(devices=0, round=Round(1, 1, 5.0)).plan_id(device, "fp32") for device in range(3)]
    others = [make(devices=0, round=Round(1, 1, 5.0), **changed).plan_id(0, "fp32") for changed in CHANGED_SETTINGS]
    rounds.accept(answer(rounds, 0))
    rounds.close_if_due()
    second = [rounds.plan_id(device, "fp32") for device in range(3)]
    assert len({*first, *others, *second}) == 3 + len(CHANGED_SETTINGS) + 3
    assert all(0 <= each < 2**32 for each in (*first, *others, *second))


def test_a_run_has_room_for_a_certain_number_of_devices(make: Make) -> None:
    rounds = make()
    rounds.store.failing = "enrol"
    with pytest.raises(ReportRefused, match=f"at most {MOST_DEVICES} devices"):
        rounds.enrol(5)
    assert rounds.devices == 3
    assert MOST_DEVICES * 4096 <= SEEDS_PER_ROUND


def test_who_has_reported_has_nothing_to_do_until_the_next_round(make: Make) -> None:
    rounds = make()
    rounds.accept(answer(rounds, 0))
    assert rounds.plan(0, "fp32") is None
    assert rounds.plan(1, "fp32") is not None
    rounds.accept(answer(rounds, 1))
    rounds.close_if_due()
    plan = rounds.plan(0, "fp32")
    assert plan is not None
    assert (plan.round, plan.entry) == (2, 1)


# --- closing ---


def test_a_round_closes_at_its_goal(make: Make) -> None:
    rounds = make()
    assert not rounds.close_if_due()
    rounds.accept(answer(rounds, 0))
    assert not rounds.close_if_due()
    rounds.accept(answer(rounds, 1))
    before = rounds.ledger.parameters.digest()
    assert rounds.close_if_due()
    assert (rounds.ledger.entry, rounds.round, rounds.reports) == (1, 2, {})
    assert rounds.ledger.parameters.digest() != before
    assert rounds.store.entries(rounds.run.id)[0].contributors == 2


def test_a_round_closes_at_its_deadline_with_its_minimum(make: Make, clock: Clock) -> None:
    rounds = make(round=Round(3, 2, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.accept(answer(rounds, 1))
    clock.now += 29.9
    assert not rounds.close_if_due()
    clock.now += 0.1
    assert rounds.close_if_due()
    assert not rounds.close_if_due()


def test_a_round_never_closes_below_its_minimum(make: Make, clock: Clock) -> None:
    rounds = make(round=Round(3, 2, 30.0))
    rounds.accept(answer(rounds, 0))
    clock.now += 1e9
    assert not rounds.close_if_due()
    rounds.accept(answer(rounds, 2))
    assert rounds.close_if_due()


def test_the_deadline_begins_again_with_every_round(make: Make, clock: Clock) -> None:
    rounds = make(round=Round(2, 1, 30.0))
    clock.now += 29
    rounds.accept(answer(rounds, 0))
    rounds.accept(answer(rounds, 1))
    assert rounds.close_if_due()
    rounds.accept(answer(rounds, 0, 2))
    clock.now += 29
    assert not rounds.close_if_due()


def test_an_open_round_says_why_it_waits(make: Make, clock: Clock) -> None:
    rounds = make(round=Round(3, 2, 30.0))
    rounds.accept(answer(rounds, 0))
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
        rounds.accept(answer(rounds, 0, number))
        rounds.close_if_due()
    assert rounds.finished
    assert rounds.why_waiting() == "the run is over"
    assert (rounds.plan(0, "fp32"), rounds.overdue, rounds.close_if_due()) == (None, False, False)
    assert rounds.store.run("run").state == "finished"
    assert rounds.store.summaries(rounds.run.id)[-1]["digest"] == rounds.ledger.parameters.digest().hex()


# --- reports ---


def test_a_second_report_of_a_round_is_a_duplicate_and_changes_nothing(make: Make) -> None:
    rounds = make()
    first = answer(rounds, 0)
    assert rounds.accept(first) is Verdict.ACCEPTED
    assert rounds.accept(answer(rounds, 0, scalars=(1, 1, 1))) is Verdict.DUPLICATE
    assert rounds.reports[0] is first


def test_reports_taken_in_together_are_answered_each_for_itself(make: Make) -> None:
    rounds = make(devices=6, round=Round(9, 9, 30.0))
    rounds.accept(answer(rounds, 5))
    first, again = answer(rounds, 0), answer(rounds, 0, scalars=(1, 1, 1))
    wrong, late, diverged = answer(rounds, 1, examples=99), answer(rounds, 2, 2), answer(rounds, 3, digest=bytes(32))
    unknown = answer(rounds, 6)
    group = [first, wrong, again, late, answer(rounds, 5), diverged, unknown, answer(rounds, 4)]
    answers = rounds.accept_all(group)
    accepted, duplicate = Verdict.ACCEPTED, Verdict.DUPLICATE
    assert [str(each) if isinstance(each, ReportRefused) else each for each in answers] == [
        accepted,
        "99 examples are not between 1 and 4",
        duplicate,
        Verdict.UNKNOWN_ROUND,
        duplicate,
        Verdict.DIVERGED,
        "device 6 has not joined this run",
        accepted,
    ]
    assert sorted(rounds.reports) == [0, 4, 5] == [each.device for each in rounds.store.reports(rounds.run.id, 1)]
    assert rounds.reports[0] is first
    assert rounds.accept_all([]) == []


@pytest.mark.parametrize("failing", ["add_reports", "after add_reports"])
def test_of_reports_that_cannot_be_kept_none_is_counted(failing: str, make: Make) -> None:
    rounds = make()
    rounds.store.failing = failing
    with pytest.raises(StorageError):
        rounds.accept_all([answer(rounds, device) for device in (0, 1)])
    assert rounds.reports == {}
    rounds.store.failing = ""
    kept = failing == "after add_reports"  # and are found at the next start
    assert sorted(make(devices=0).reports) == ([0, 1] if kept else [])
    expected = Verdict.DUPLICATE if kept else Verdict.ACCEPTED
    assert rounds.accept_all([answer(rounds, device) for device in (0, 1)]) == [expected] * 2


@pytest.mark.parametrize("number", [0, 1, 3, 2**63])
def test_a_report_of_another_round_is_late_or_of_a_round_that_nobody_knows(number: int, make: Make) -> None:
    rounds = make(round=Round(1, 1, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.close_if_due()
    assert rounds.accept(answer(rounds, 1, number)) is (Verdict.LATE if number < 2 else Verdict.UNKNOWN_ROUND)
    assert rounds.reports == {}


@pytest.mark.parametrize("wrong", [{}, {"scalars": (1, 2)}, {"scalars": (2**31 - 1,) * 3}, {"examples": 99}, {"digest": bytes(32)}])
def test_a_report_that_answers_another_plan_is_late_whatever_it_holds(wrong: dict[str, Any], make: Make) -> None:
    rounds = make()
    for plan in (0, rounds.plan_id(1, "fp32"), rounds.plan_id(0, "fp32") ^ 1):
        assert rounds.accept(answer(rounds, 0, plan=plan, **wrong)) is Verdict.LATE
    assert (rounds.reports, rounds.store.reports(rounds.run.id, 1), kinds(rounds)) == ({}, [], [])


def test_a_report_of_another_round_is_that_whatever_it_holds(make: Make) -> None:
    assert (rounds := make()).accept(answer(rounds, 0, 2, scalars=(1,), examples=0)) is Verdict.UNKNOWN_ROUND


def test_a_report_after_the_end_is_late(make: Make) -> None:
    rounds = make(rounds=1, round=Round(1, 1, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.close_if_due()
    assert rounds.accept(answer(rounds, 1, 2)) is Verdict.LATE


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"device": 3}, "device 3 has not joined this run"),
        ({"scalars": np.array([1, 2])}, "a report of this plan holds 3 scalars, not 2"),
        ({"scalars": np.array([], np.int64)}, "a report of this plan holds 3 scalars, not 0"),
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
        rounds.accept(answer(rounds, **{"device": 0} | wrong))
    assert state(rounds) == before
    assert rounds.store.reports(rounds.run.id, 1) == []


def test_scalars_at_the_clip_are_taken(make: Make) -> None:
    rounds = make()
    assert rounds.accept(answer(rounds, 0, scalars=(2**15, -(2**15), 0))) is Verdict.ACCEPTED


def test_other_parameters_are_found_by_their_digest(make: Make) -> None:
    rounds = make()
    assert rounds.accept(answer(rounds, 0, digest=bytes(32))) is Verdict.DIVERGED
    assert rounds.reports == {}
    assert kinds(rounds) == ["diverged"]
    assert rounds.accept(answer(rounds, 0, digest=rounds.ledger.parameters.digest())) is Verdict.ACCEPTED


# --- going on after a stop ---


def test_a_new_coordinator_goes_on_in_mid_round_with_the_reports_accepted(make: Make) -> None:
    rounds = make()
    for device in (0, 1):
        rounds.accept(answer(rounds, device))
    rounds.close_if_due()
    rounds.accept(answer(rounds, 2, 2))
    again = make(devices=0)
    assert state(again) == state(rounds)
    assert again.devices == 3
    assert again.accept(answer(again, 2, 2)) is Verdict.DUPLICATE
    again.accept(answer(again, 0, 2))
    assert again.close_if_due()


@pytest.mark.parametrize("changed", CHANGED_SETTINGS, ids=IDS)
def test_reports_that_answer_other_settings_are_asked_for_again(changed: dict[str, Any], make: Make) -> None:
    rounds = make(round=Round(3, 3, 30.0))
    old = [answer(rounds, device) for device in (0, 1)]
    for each in old:
        assert rounds.accept(each) is Verdict.ACCEPTED
    again = make(devices=0, round=Round(3, 3, 30.0), **changed)
    assert (again.round, again.reports, again.store.reports(again.run.id, 1)) == (1, {}, [])
    assert [(kind, text) for _, kind, text in again.store.events(again.run.id)] == [
        ("settings changed", "round 1: 2 reports answer other settings; asked again")
    ]
    assert [again.accept(each) for each in old] == [Verdict.LATE, Verdict.LATE]
    scalars = (300, -200, 100, 50)[: again.config.probe.directions]
    for device in range(3):
        plan = again.plan(device, "fp32")
        assert plan is not None
        assert plan.id != rounds.plan_id(device, "fp32")
        assert again.accept(answer(again, device, scalars=scalars)) is Verdict.ACCEPTED
    assert again.close_if_due()
    assert again.store.entries(again.run.id)[0].contributors == 3
    assert again.store.summaries(again.run.id)[0]["probes"] == 3 * 2 * len(scalars)


def test_of_the_reports_kept_only_those_of_other_settings_are_dropped(make: Make) -> None:
    rounds = make(round=Round(3, 3, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.store.add_report(answer(rounds, 1, plan=rounds.plan_id(1, "fp32") ^ 1))
    for _ in range(2):
        again = make(devices=0, round=Round(3, 3, 30.0))
        assert list(again.reports) == [0]
        assert [report.device for report in again.store.reports(again.run.id, 1)] == [0]
        assert kinds(again) == ["settings changed"]
    assert again.accept(answer(again, 0)) is Verdict.DUPLICATE
    assert again.accept(answer(again, 1)) is Verdict.ACCEPTED


def test_settings_that_do_not_touch_the_scalars_keep_the_reports(make: Make) -> None:
    rounds = make()
    rounds.accept(answer(rounds, 0))
    again = make(devices=0, rounds=9, rate=Rate(0.5, 0.5), round=Round(3, 1, 5.0))
    assert state(again) == state(rounds)
    assert kinds(again) == []


def test_a_finished_run_that_is_prolonged_runs_again(make: Make) -> None:
    rounds = make(rounds=1, round=Round(1, 1, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.close_if_due()
    assert make(devices=0, rounds=1, round=Round(1, 1, 30.0)).store.run("run").state == "finished"
    again = make(devices=0, rounds=2, round=Round(1, 1, 30.0))
    assert (again.finished, again.store.run("run").state) == (False, "running")
    assert again.accept(answer(again, 0, 2)) is Verdict.ACCEPTED
    assert again.close_if_due()
    assert (again.finished, again.store.run("run").state) == (True, "finished")


def test_a_stop_changes_no_bit_of_what_comes_after(make: Make) -> None:
    rounds = make()
    rounds.accept(answer(rounds, 0))
    again = make(devices=0)
    for each in (rounds, again):
        each.reports[1] = report(1)
    terms = comes_to(rounds, [report(0), report(1)])
    assert terms == comes_to(again, [report(0), report(1)])
    assert terms


def test_a_ledger_that_was_changed_is_refused_at_the_start(make: Make) -> None:
    rounds = make(round=Round(1, 1, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.close_if_due()
    rounds.store._db.execute("UPDATE entries SET contributors = 2")
    with pytest.raises(StorageError, match="does not fit its hash chain"):
        make()


def test_a_commit_that_fails_leaves_round_reports_and_parameters_as_they_were(make: Make) -> None:
    rounds = make()
    for device in (0, 1):
        rounds.accept(answer(rounds, device))
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
    rounds.accept(answer(rounds, 0))
    rounds.store.failing = "set_state"
    with pytest.raises(StorageError):
        rounds.close_if_due()
    again = make(devices=0, rounds=1)
    assert again.finished
    assert again.store.run("run").state == "finished"


@pytest.mark.parametrize("rate", [1e6, 1e300])
def test_a_round_beyond_the_lattice_changes_nothing_but_goes_on(rate: float, make: Make) -> None:
    rounds = make(rate=Rate(rate, rate), round=Round(1, 1, 30.0))
    before = rounds.ledger.parameters.digest()
    rounds.accept(answer(rounds, 0))
    assert rounds.close_if_due()
    assert rounds.ledger.parameters.digest() == before
    assert (rounds.ledger.entry, rounds.round) == (1, 2)
    assert rounds.store.entries(rounds.run.id)[0].terms == ()
    assert kinds(rounds) == ["refused"]
    assert state(make(devices=0)) == state(rounds)


def test_the_summary_tells_what_the_reports_held(make: Make) -> None:
    rounds = make()
    rounds.accept(answer(rounds, 0, dropped=1, held_out=(2**14,)))
    rounds.accept(answer(rounds, 1, held_out=(3 * 2**14,)))
    rounds.close_if_due()
    summary = rounds.store.summaries(rounds.run.id)[0]
    assert (summary["reports"], summary["probes"], summary["dropped"], summary["held_out"]) == (2, 12, 1, 2.0)
    assert summary["half_difference"] == pytest.approx(np.sqrt((300**2 + 200**2 + 100**2) / 3) / 2**14)


# --- seeds of a pool ---


def seeds(rounds: Rounds, number: int, device: int) -> range:
    node = rounds.plans.node(number, device, "fp32")
    return range(node.first_seed, node.first_seed + node.count)


def test_with_a_pool_all_seeds_are_of_it_and_dealt_anew_every_round(make: Make) -> None:
    rounds = make(seeds=Seeds(32))
    dealt = [[seeds(rounds, number, device) for device in range(10)] for number in range(1, 30)]
    for each in dealt:
        assert len({seed for one in each for seed in one}) == 10 * 3  # ten slots of three directions fit 32 seeds
        assert all(0 <= seed < 32 for one in each for seed in one)
    assert len({tuple(one.start for one in each) for each in dealt}) == len(dealt)


def test_devices_beyond_the_slots_of_a_pool_share_them(make: Make) -> None:
    rounds = make(seeds=Seeds(6))
    for number in range(1, 5):
        starts = [seeds(rounds, number, device).start for device in range(6)]
        assert [set(starts[place : place + 2]) for place in (0, 2, 4)] == [{0, 3}] * 3


def test_a_pool_goes_on_as_it_was_after_a_stop_and_bounds_the_fold(make: Make) -> None:
    rounds = make(seeds=Seeds(12), round=Round(2, 1, 30.0), rounds=40)
    for _ in range(20):
        close(rounds, 2)
    again = make(devices=0, seeds=Seeds(12), rounds=40)
    assert state(again) == state(rounds)
    assert [seeds(again, 21, device) for device in range(3)] == [seeds(rounds, 21, device) for device in range(3)]
    folded = again.ledger.replica.checkpoint().terms
    for group in again.ledger.replica.sizes.keys() - again.ledger.replica.folding.without:
        assert sum(term.steps.size for term in folded if group in term.groups) <= 12
    assert make(devices=0, rounds=40).plan_id(0, "fp32") != rounds.plan_id(0, "fp32")


# --- durable first, and one round once ---


def close(rounds: Rounds, devices: int = 1) -> None:
    """One round of that many reports, other ones every round."""
    for device in range(devices):
        scalars = (300 + 7 * rounds.round, -200, 100 * device)
        assert rounds.accept(answer(rounds, device, scalars=scalars)) is Verdict.ACCEPTED
    assert rounds.close_if_due()


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


def test_an_entry_carries_the_digest_of_the_parameters_when_it_is_due_and_at_the_end(make: Make) -> None:
    rounds = make(rounds=7, digest_every=3, round=Round(1, 1, 30.0))
    digests = []
    for _ in range(7):
        close(rounds)
        digests.append(rounds.ledger.parameters.digest())
    stated = [entry.digest for entry in rounds.store.entries(rounds.run.id)]
    assert stated == [digest if number in (3, 6, 7) else None for number, digest in enumerate(digests, 1)]
    told = [summary.get("digest") for summary in rounds.store.summaries(rounds.run.id)]
    assert told == [digest.hex() if digest else None for digest in stated]


def test_a_commit_whose_sync_fails_is_found_whole_at_the_next_start(make: Make) -> None:
    rounds = make()
    for device in (0, 1):
        rounds.accept(answer(rounds, device))
    before = state(rounds)
    rounds.store.failing = "after commit"
    with pytest.raises(StorageError, match="disk ill"):
        rounds.close_if_due()
    assert state(rounds) == before
    again = make(devices=0)
    assert (again.ledger.entry, again.round, again.reports) == (1, 2, {})
    assert again.accept(answer(again, 0, 1, plan=rounds.plan_id(0, "fp32"))) is Verdict.LATE


def test_reports_accepted_before_a_crash_count_once_and_are_not_asked_for_again(make: Make) -> None:
    rounds = make(round=Round(3, 3, 30.0))
    for device in (0, 1):
        rounds.accept(answer(rounds, device))
    again = make(devices=0, round=Round(3, 3, 30.0))
    assert [again.plan(device, "fp32") is None for device in range(3)] == [True, True, False]
    assert again.accept(answer(again, 1, scalars=(9, 9, 9))) is Verdict.DUPLICATE
    assert again.accept(answer(again, 2)) is Verdict.ACCEPTED
    assert again.close_if_due()
    rounds.store.failing = "commit"  # the other process is gone
    assert (again.store.head(again.run.id)[0], again.store.entries(again.run.id)[0].contributors) == (1, 3)
    assert again.store.reports(again.run.id, 1) == []
    for device in range(3):
        assert again.accept(answer(again, device, 1, plan=rounds.plan_id(device, "fp32"))) is Verdict.LATE
    assert make(devices=0, round=Round(3, 3, 30.0)).reports == {}


def test_a_restart_from_a_checkpoint_is_where_the_run_was(make: Make) -> None:
    rounds = make(rounds=200, round=Round(1, 1, 30.0))
    for _ in range(CHECKPOINT_EVERY + 6):
        close(rounds)
    assert rounds.store.checkpoints(rounds.run.id) == [CHECKPOINT_EVERY]
    rounds.accept(answer(rounds, 2))
    rounds.store._db.execute("UPDATE entries SET body = x'ffffff' WHERE number <= ?", (CHECKPOINT_EVERY,))  # they are not needed
    again = make(devices=0, rounds=200, round=Round(1, 1, 30.0))
    assert state(again) == state(rounds)
    assert again.ledger.replica.checkpoint() == rounds.ledger.replica.checkpoint()
    assert again.plan(2, "fp32") is None
    for each in (rounds, again):
        assert each.plan(1, "fp32") is not None


def test_a_checkpoint_that_cannot_be_kept_counts_no_report_twice(make: Make) -> None:
    rounds = make(rounds=200, round=Round(1, 1, 30.0))
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
    assert state(make(devices=0, rounds=200)) == state(rounds)
    assert rounds.store.checkpoints(rounds.run.id) == [CHECKPOINT_EVERY + 1]


def test_compaction_while_running_keeps_every_digest(make: Make) -> None:
    rounds = make(rounds=400, round=Round(1, 1, 30.0), keep_entries=10, digest_every=1)
    plain = {}
    for number in range(1, 3 * CHECKPOINT_EVERY):
        close(rounds)
        plain[number] = rounds.ledger.parameters.digest()
        history.compact_when_due(rounds.store, rounds.run, 10)
    store = rounds.store
    assert store.compacted(1) == 2 * CHECKPOINT_EVERY
    assert [header.digest for header, _ in store.headers(1)] == list(plain.values())
    again = make(devices=0, rounds=400, keep_entries=10)
    assert state(again) == state(rounds)
    assert len(store.checkpoints(1)) <= 4


# --- somebody else appends to the ledger ---


def append_rollback(rounds: Rounds) -> Entry:
    """As `edge-coordinator rollback --to 0` does in another process."""
    store, run = FailingStore(rounds.store.path), rounds.run.id
    terms = rollback(store.entries(run))
    entry = Entry(rounds.ledger.entry + 1, rounds.round, 0, terms, rounds.bundle.parameters().digest())
    store.commit(run, entry, rounds.ledger.replica.head, 0, history.NOTHING_DONE | {"round": entry.round})
    return entry


def test_a_rollback_by_another_process_is_followed(make: Make) -> None:
    rounds = make(round=Round(2, 1, 30.0))
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
    assert state(make(devices=0)) == state(rounds)


def test_a_round_that_closes_when_somebody_else_has_appended_changes_nothing_and_follows(make: Make) -> None:
    rounds = make(round=Round(2, 1, 30.0))
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
    assert state(make(devices=0)) == state(rounds)


def test_a_report_that_comes_between_a_rollback_and_its_following_is_not_counted(make: Make) -> None:
    rounds = make(round=Round(2, 1, 30.0))
    close(rounds, 2)
    append_rollback(rounds)
    assert rounds.accept(answer(rounds, 0)) is Verdict.ACCEPTED
    assert rounds.follow()
    assert rounds.reports == {}
    close(rounds, 2)
    assert [entry.contributors for entry in rounds.store.entries(rounds.run.id)] == [2, 0, 2]
    assert state(make(devices=0)) == state(rounds)


def test_several_entries_and_a_rollback_that_ends_the_run_are_followed(make: Make) -> None:
    rounds = make(rounds=3, round=Round(1, 1, 30.0))
    close(rounds)
    store, run = FailingStore(rounds.store.path), rounds.run.id
    head, term = rounds.ledger.replica.head, Term((0,), 5, np.array([3]))
    for number, terms in ((2, (term,)), (3, negated((term,)))):
        head = store.commit(run, Entry(number, number, 0, terms), head, 0, history.NOTHING_DONE | {"round": number})
    before = rounds.ledger.parameters.digest()
    assert rounds.follow()
    assert (rounds.ledger.entry, rounds.ledger.replica.head, rounds.ledger.parameters.digest()) == (3, head, before)
    assert (rounds.finished, rounds.store.run("run").state) == (True, "finished")


# --- several bases ---


@pytest.fixture
def several(bundles: Bundles, tmp_path: Path) -> Bundle:
    """With the bases fp32, int8, which needs larger probes, and w4."""
    return recalibrated(bundles("bert", precision="fp32,int8,w4"), tmp_path / "several", "int8", log2_eps=-2)


@pytest.fixture
def make_several(several: Bundle, tmp_path: Path, clock: Clock) -> Make:
    """make_several(**settings): rounds of a bundle with several bases, over the same file at each call, with three devices."""

    def rounds(**changed: Any) -> Rounds:
        store = SqliteStore(tmp_path / "several.sqlite", create=True)
        made = Rounds(store, store.open_run("run", several.folder, several.digest), several, settings(several, **changed), clock)
        for device in range(3):
            made.enrol(1000 + device)
        return made

    return rounds


def test_a_plan_has_the_probe_sizes_of_the_devices_base(several: Bundle, make_several: Make) -> None:
    rounds = make_several()
    sizes = {precision: several.at(precision).manifest.log2_eps("body") for precision in several.manifest.bases}
    assert sizes["int8"] != sizes["fp32"]
    for precision in several.manifest.bases:
        plan = rounds.plan(0, precision)
        assert plan is not None
        assert plan.root == one_level(
            several.manifest, {kind: several.at(precision).manifest.log2_eps(kind) for kind in ("body", "head")}, plan.root.first_seed, 3
        )
        assert plan.id == rounds.plan_id(0, precision)
    assert rounds.plan_id(0, "int8") != rounds.plan_id(0, "fp32")


def test_probe_sizes_that_the_settings_state_hold_for_every_base(several: Bundle, make_several: Make) -> None:
    rounds = make_several(probe=dataclasses.replace(PROBE, log2_eps_body=-5, log2_eps_head=-5))
    assert len({rounds.plans.node(1, 0, precision) for precision in several.manifest.bases}) == 1


def test_a_base_that_the_bundle_has_not_is_refused_by_name(make_several: Make) -> None:
    rounds = make_several()
    said = "has no base of precision 'w8'; it has fp32, int8, w4"
    with pytest.raises(ReportRefused, match=said):
        rounds.plan(0, "w8")
    with pytest.raises(ReportRefused, match=said):
        rounds.accept(answer(rounds, 0, plan=1, precision="w8"))


def test_a_report_with_a_plan_of_another_base_is_late(make_several: Make) -> None:
    rounds = make_several()
    assert rounds.accept(answer(rounds, 0, precision="int8", plan=rounds.plan_id(0, "fp32"))) is Verdict.LATE
    assert rounds.accept(answer(rounds, 0, precision="int8")) is Verdict.ACCEPTED


def test_reports_of_several_bases_make_one_entry_and_a_restart_makes_the_same(make_several: Make, tmp_path: Path) -> None:
    wanted = {"round": Round(3, 1, 30.0)}
    rounds = make_several(**wanted)
    for device, precision in enumerate(("fp32", "int8")):
        assert rounds.accept(answer(rounds, device, precision=precision)) is Verdict.ACCEPTED
    again = make_several(**wanted)
    assert {device: report.precision for device, report in again.reports.items()} == {0: "fp32", 1: "int8"}
    reports = [answer(again, device, precision=precision) for device, precision in enumerate(("fp32", "int8", "w4"))]
    assert comes_to(again, reports) == comes_to(rounds, reports)
    assert again.accept(reports[2]) is Verdict.ACCEPTED
    assert again.close_if_due()
    assert again.store.entries(1)[0].terms == comes_to(rounds, reports)
    assert again.store.entries(1)[0].contributors == 3


def test_the_slope_counts_whichever_base_found_it(several: Bundle, make_several: Make) -> None:
    rounds = make_several(seeds=Seeds(3))  # all devices try the same directions
    times = 2 ** (several.at("int8").manifest.log2_eps("body") - several.manifest.log2_eps("body"))
    exact = answer(rounds, 0, scalars=(640, -320, 64))
    coarse = answer(rounds, 0, precision="int8", scalars=tuple(int(each * times) for each in (640, -320, 64)))
    body = [group.id for group in several.manifest.groups if group.kind == "body"]
    found = [[term for term in comes_to(rounds, [each]) if set(body) & set(term.groups)] for each in (exact, coarse)]
    assert found[0] == found[1] != []


# --- parts tried apart (FedSPZO) ---

PLANNED: dict[str, Any] = {"algorithm": "fedspzo"}
CUT: dict[str, Any] = {"algorithm": "fedspzo", "split": Split((2,), (4,))}
CHEAP_HEAD, DEAR_HEAD = (500_000, 500_000, 100), (100, 100, 500_000)
SHAPES = (Shape((3,)), Shape((3, 4), (2,)), Shape((3, 2), (1,)), Shape((3, 1, 5), (1, 2)))


def shaped(rounds: Rounds, device: int, shape: Shape | None = None, **changed: Any) -> Report:
    """As `answer`, of a tree of that shape, or of what the device is asked for."""
    if shape is None:
        plan = rounds.plan(device, "fp32")
        assert plan is not None
        shape = plan.root.shape
    draw = np.random.default_rng([rounds.round, device])
    scalars = tuple(draw.integers(-900, 900, shape.scalars).tolist())
    return answer(rounds, device, **{"scalars": scalars, "shape": shape, "plan": rounds.plan_id(device, "fp32", shape)} | changed)


def test_a_plan_is_the_tree_that_is_stated_with_seeds_of_the_devices_own(make: Make) -> None:
    rounds = make(**CUT)
    found = [rounds.plan(device, "fp32", CHEAP_HEAD) for device in range(3)]
    assert [plan.root.shape for plan in found if plan] == [Shape((3, 4), (2,))] * 3
    for level, total in enumerate((3, 12)):
        starts = [list(plan.root.levels())[level][0].first_seed for plan in found if plan]
        assert starts == [SEEDS_PER_ROUND + device * total for device in range(3)]
    assert len({plan.id for plan in found if plan}) == 3
    assert [plan.id for plan in found if plan] == [rounds.plan_id(device, "fp32", Shape((3, 4), (2,))) for device in range(3)]


def test_devices_get_trees_by_what_their_stages_cost(make: Make) -> None:
    rounds = make(**PLANNED)
    cheap, dear = rounds.plan(0, "fp32", CHEAP_HEAD), rounds.plan(1, "fp32", DEAR_HEAD)
    assert cheap is not None
    assert dear is not None
    assert cheap.root.shape == rounds.course.planner.shape("fp32", CHEAP_HEAD) != dear.root.shape
    for plan, device in ((cheap, 0), (dear, 1)):
        assert rounds.accept(shaped(rounds, device, plan.root.shape, plan=plan.id)) is Verdict.ACCEPTED


def test_devices_that_try_other_groups_each_move_their_own_and_a_restart_makes_the_same(make: Make) -> None:
    wanted = {"round": Round(2, 1, 30.0), **CUT}
    rounds = make(devices=2, **wanted)
    *body, head = (group.id for group in rounds.bundle.manifest.groups)
    for device, among in enumerate([(body[0], head), (body[-1],)]):
        plan = rounds.plan(device, "fp32", CHEAP_HEAD, among)
        assert plan is not None
        assert plan.groups == plan.shape.groups == among
        digest = rounds.ledger.parameters.digest(among)
        assert digest != rounds.ledger.digest() == rounds.ledger.digest(())
        wrong = shaped(rounds, device, plan.shape, plan=plan.id, digest=rounds.ledger.digest())
        assert rounds.accept(wrong) is Verdict.DIVERGED
        if device == 1:
            again = make(devices=0, **wanted)
            assert kinds(again) == ["diverged"] * 2
            assert again.reports.keys() == {0}
            rounds = again
        assert rounds.accept(shaped(rounds, device, plan.shape, plan=plan.id, digest=digest)) is Verdict.ACCEPTED
    assert rounds.close_if_due()
    (entry,) = rounds.store.entries(1)
    assert {group for term in entry.terms for group in term.groups} == {body[0], body[-1], head}


def test_reports_of_several_shapes_make_one_entry_and_a_restart_keeps_them_and_makes_the_same(make: Make) -> None:
    wanted = {"round": Round(4, 1, 30.0), **PLANNED}
    rounds = make(devices=4, **wanted)
    for device, shape in enumerate(SHAPES[:3]):
        assert rounds.accept(shaped(rounds, device, shape)) is Verdict.ACCEPTED
    again = make(devices=0, **wanted)
    assert kinds(again) == []
    assert {device: report.shape for device, report in again.reports.items()} == dict(enumerate(SHAPES[:3]))
    assert [again.plan(device, "fp32") is None for device in range(4)] == [True, True, True, False]
    assert again.accept(shaped(again, 1, SHAPES[0])) is Verdict.DUPLICATE
    last = shaped(again, 3, SHAPES[3])
    reports = [*rounds.reports.values(), last]
    assert comes_to(again, reports) == comes_to(rounds, reports) != ()
    assert again.accept(last) is Verdict.ACCEPTED
    assert again.close_if_due()
    (entry,) = again.store.entries(1)
    assert (entry.terms, entry.contributors) == (comes_to(rounds, reports), 4)
    summary = again.store.summaries(1)[0]
    assert (summary["probes"], summary["scalars"]) == (2 * 3 * 4, sum(shape.scalars for shape in SHAPES))
    assert set(summary["slopes"]) == {"0", "1", "2", "3"}


def test_a_run_of_trees_is_where_it_was_after_every_restart(make: Make) -> None:
    """Rates and plans go by the slopes of the entries before; a coordinator that was restarted knows the same ones."""
    rounds = make(rounds=60, round=Round(2, 1, 30.0), **PLANNED)
    for number in range(40):
        again = make(devices=0, rounds=60, round=Round(2, 1, 30.0), **PLANNED)
        for device in range(2):
            report = shaped(rounds, device, SHAPES[(number + device) % len(SHAPES)])
            assert rounds.accept(report) is Verdict.ACCEPTED
        reports = [rounds.reports[device] for device in range(2)]
        assert comes_to(again, reports) == comes_to(rounds, reports)
        assert rounds.close_if_due()
    again = make(devices=0, rounds=60, **PLANNED)
    assert state(again) == state(rounds)
    assert again.course.planner.table("fp32", CHEAP_HEAD) == rounds.course.planner.table("fp32", CHEAP_HEAD)


def test_what_others_append_is_learnt_as_a_restart_would(make: Make) -> None:
    rounds = make(rounds=60, round=Round(1, 1, 30.0), **CUT)
    for _ in range(20):
        rounds.accept(shaped(rounds, 0))
        assert rounds.close_if_due()
    append_rollback(rounds)
    assert rounds.follow()
    again = make(devices=0, rounds=60, round=Round(1, 1, 30.0), **CUT)
    assert again.course.rates == rounds.course.rates != rounds.course.stated
    report = shaped(rounds, 0)
    assert comes_to(again, [report]) == comes_to(rounds, [report])


@pytest.mark.parametrize(
    "changed",
    [
        CUT | {"split": Split((2,), (5,))},
        CUT | {"split": Split((1,), (4,))},
        CUT | {"split": Split((2,), (4,), joint=True)},
        CUT | {"split": Split((2,), (4,), clean=True)},
        CUT | {"probe": dataclasses.replace(PROBE, directions=4)},
        {"algorithm": "mezo"},
        PLANNED | {"probe": dataclasses.replace(PROBE, directions=4)},
        PLANNED | {"split": Split(kept=0)},
        PLANNED | {"seeds": Seeds(11)},
    ],
)
def test_trees_of_other_settings_are_asked_for_again_and_their_reports_are_late(changed: dict[str, Any], make: Make) -> None:
    """Nobody is refused: an agent that is working while the coordinator is restarted with other settings goes on."""
    rounds = make(round=Round(3, 3, 30.0), **CUT)
    old = [shaped(rounds, device) for device in range(3)]
    for each in old[:2]:
        assert rounds.accept(each) is Verdict.ACCEPTED
    again = make(devices=0, **{"round": Round(3, 3, 30.0)} | changed)
    assert (again.reports, again.store.reports(again.run.id, 1)) == ({}, [])
    assert kinds(again) == ["settings changed"]
    assert [again.accept(each) for each in old] == [Verdict.LATE] * 3
    assert [again.accept(shaped(again, device)) for device in range(3)] == [Verdict.ACCEPTED] * 3
    assert again.close_if_due()


@pytest.mark.parametrize("changed", [PLANNED, PLANNED | {"split": Split(kept=1e9)}])
def test_a_tree_that_would_also_be_asked_for_now_counts_after_settings_changed(changed: dict[str, Any], make: Make) -> None:
    rounds = make(round=Round(3, 3, 30.0), **CUT)
    rounds.accept(shaped(rounds, 0))
    again = make(devices=0, **{"round": Round(3, 3, 30.0)} | changed)
    assert list(again.reports) == [0]
    assert kinds(again) == []


@pytest.mark.parametrize(
    "wrong", [{"scalars": (1, 2, 3)}, {"scalars": (1,) * 12}, {"scalars": (1,) * 16}, {"scalars": (2**15 + 1,) * 15}, {"examples": 5}]
)
def test_what_is_no_answer_to_a_tree_is_refused(wrong: dict[str, Any], make: Make) -> None:
    rounds = make(**CUT)
    with pytest.raises(ReportRefused):
        rounds.accept(shaped(rounds, 0, **wrong))
    assert rounds.accept(shaped(rounds, 0)) is Verdict.ACCEPTED


def test_a_report_whose_plan_and_shape_do_not_go_together_is_late(make: Make) -> None:
    rounds = make(**PLANNED)
    for said, meant in ((SHAPES[1], SHAPES[2]), (SHAPES[0], SHAPES[3])):
        assert rounds.accept(shaped(rounds, 0, said, plan=rounds.plan_id(0, "fp32", meant))) is Verdict.LATE
    assert rounds.reports == {}


def test_a_base_that_the_bundle_has_not_gets_no_plan_where_trees_are_planned(make: Make) -> None:
    with pytest.raises(ReportRefused, match="no base of precision 'w8'"):
        make(**PLANNED).plan(0, "w8", CHEAP_HEAD)


def test_a_run_that_cannot_be_does_not_begin(make: Make) -> None:
    with pytest.raises(ConfigError, match="can be cut before stages 1 to 2"):
        make(**CUT | {"split": Split((3,), (4,))})


def probed(bundle: Bundle, rounds: Rounds, device: int) -> Report:
    """What a device reports that stands at the fleet's parameters, with a batch of its own."""
    plan = rounds.plan(device, "fp32")
    assert plan is not None
    batch = batch_of(bundle, 4, seed=100 * rounds.round + device)
    here = Parameters(bundle.manifest.run_key, bundle.manifest.groups, rounds.ledger.parameters.tensors())
    half = half_differences(Engine(bundle, here).probe(plan.root, batch))
    return answer(rounds, device, scalars=tuple(plan.grid.integers(half).tolist()), plan=plan.id, shape=plan.root.shape)


@pytest.mark.parametrize(("model", "cut"), [("bert", 1), ("bert", 2), ("llama-tied", 1)])
@pytest.mark.parametrize("pool", [0, 16])
def test_joint_parts_of_one_direction_each_are_plain_mezo_to_the_last_bit(
    model: str, cut: int, pool: int, bundles: Bundles, tmp_path: Path, clock: Clock
) -> None:
    """From plan to probes, scalars, terms and parameters, round after round."""
    bundle, digests = bundles(model), []
    ways: dict[str, dict[str, Any]] = {"mezo": {"algorithm": "mezo"}, "joint": PLANNED | {"split": Split((cut,), (1,), joint=True)}}
    for name, way in ways.items():
        store = SqliteStore(tmp_path / f"{name}.sqlite", create=True)
        chosen = settings(bundle, probe=Probe(1, 4), rounds=8, round=Round(3, 3), seeds=Seeds(pool), rate=Rate(5.0, 5.0), **way)
        rounds = Rounds(store, store.open_run("run", bundle.folder, bundle.digest), bundle, chosen, clock)
        found = [rounds.ledger.parameters.digest()]
        for device in range(3):
            rounds.enrol(device)
        while not rounds.finished:
            for device in range(3):
                assert rounds.accept(probed(bundle, rounds, device)) is Verdict.ACCEPTED
            assert rounds.close_if_due()
            found.append(rounds.ledger.parameters.digest())
        digests.append((found, [entry.terms for entry in store.entries(1)]))
    assert digests[0] == digests[1]
    assert len(set(digests[0][0])) == 9


# --- the autopilot ---


def work_until(rounds: Rounds, losses: Sequence[float], last: int) -> None:
    """Both devices report every round; where they are asked, the loss for that round."""
    while rounds.round <= last and not (rounds.finished or rounds.paused):
        number = rounds.round
        for device in range(2):
            plan = rounds.plan(device, "fp32")
            assert plan is not None
            held_out = (int(losses[number - 1] * 2**14),) if plan.measure_held_out else ()
            rounds.accept(answer(rounds, device, number, plan=plan.id, held_out=held_out))
        rounds.close_if_due()


def test_losses_that_rise_take_the_fleet_back_exactly_to_the_best_entry(make: Make) -> None:
    rounds = make(2, rounds=30, held_out_every=16)
    work_until(rounds, [1.0] * 2, 2)
    best = rounds.ledger.digest()
    work_until(rounds, [1.0, 1.0, 0.5, 0.5, 1.5, 1.5, 1.5], 7)
    assert kinds(rounds) == ["autopilot: go back", "rolled back"]
    assert rounds.ledger.digest() == best  # of entry 2, where the loss was lowest
    assert rounds.ledger.entry == 8
    assert rounds.course.factors(rounds.round)["body"] < 0.5
    again = make(2, rounds=30, held_out_every=16)
    assert state(again)[:4] == state(rounds)[:4]
    assert again.course.autopilot.pace.factors == rounds.course.autopilot.pace.factors


def test_after_three_ways_back_the_run_pauses_until_it_is_started_again(make: Make) -> None:
    rounds = make(2, rounds=90, held_out_every=16)
    start = rounds.ledger.digest()
    work_until(rounds, [1.0] + [2.0] * 90, 90)
    assert rounds.paused
    assert rounds.ledger.digest() == start
    assert [kind for kind in kinds(rounds) if kind.startswith("autopilot")] == ["autopilot: go back"] * 2 + ["autopilot: pause"]
    assert rounds.plan(0, "fp32") is None
    assert "paused" in rounds.why_waiting()
    assert rounds.store.run("run").state == "paused"
    again = make(2, rounds=90, held_out_every=16)
    assert not again.paused
    assert again.plan(0, "fp32") is not None
    assert again.store.run("run").state == "running"


def test_a_run_that_gains_nothing_stops_and_stays_stopped(make: Make) -> None:
    rounds = make(2, rounds=200, least_gain=0.001, held_out_every=16)
    for number in range(1, 200):
        if rounds.finished:
            break
        for device in range(2):
            plan = rounds.plan(device, "fp32")
            assert plan is not None
            held_out, spent = ((2**14,) if plan.measure_held_out else ()), Spent(milliseconds=9000)
            rounds.accept(answer(rounds, device, number, plan=plan.id, held_out=held_out, spent=spent))
        rounds.close_if_due()
    assert rounds.round < 100
    assert rounds.finished
    assert kinds(rounds) == ["autopilot: stop"]
    assert make(2, rounds=200, least_gain=0.001, held_out_every=16).finished


def test_rates_that_are_stated_are_left_as_they_are(make: Make) -> None:
    rounds = make(1, rate=Rate(body=0.1, head=0.1, final=1.0), round=Round(1, 1, 5.0), rounds=20, held_out_every=16)
    for number in range(1, 10):
        plan = rounds.plan(0, "fp32")
        assert plan is not None
        held_out = (2**14, *[2**13, 2**15] * 2)[: 5 if plan.stride else 1] if plan.measure_held_out else ()
        rounds.accept(answer(rounds, 0, number, plan=plan.id, held_out=held_out))
        rounds.close_if_due()
    assert rounds.course.factors(rounds.round) == {"body": 1.0, "head": 1.0}


def test_a_way_back_to_what_has_been_compacted_is_not_gone_and_the_run_goes_on(make: Make) -> None:
    rounds = make(2, rounds=30, held_out_every=16)
    work_until(rounds, [0.5, 0.5, 1.5, 1.5, 1.5], 4)
    history.compact_all_but(rounds.store, rounds.run, rounds.bundle, 1)
    work_until(rounds, [1.5] * 8, 8)
    assert kinds(rounds) == ["autopilot: go back", "autopilot"]
    assert (rounds.ledger.entry, rounds.round, rounds.paused) == (8, 9, False)
    assert rounds.course.factors(rounds.round)["body"] < 0.5


def test_a_device_that_reports_far_too_much_hardly_counts_and_is_named_once_where_it_goes_on(make: Make) -> None:
    rounds = make(3, round=Round(3, 3, 5.0), rounds=20)
    for number in range(1, LATELY + 1):
        for device, size in enumerate((1, 1, 100)):
            rounds.accept(answer(rounds, device, number, scalars=(300 * size, -200 * size, 100 * size)))
        rounds.close_if_due()
        assert kinds(rounds) == (["tempered"] if number >= OFTEN else [])
    assert [told["tempered"] for told in rounds.store.summaries(rounds.run.id)] == [[2]] * LATELY
    steps = [abs(int(term.steps.sum())) for term in rounds.store.entries(rounds.run.id)[0].terms]
    assert max(steps) <= 5 * min(step for step in steps if step)


# --- robust aggregation ---


def test_what_compares_devices_needs_shared_seeds_and_is_refused_else(bert_bundle: Bundle) -> None:
    for how in ("median", "trimmed-mean"):
        with pytest.raises(ValueError, match=r"needs seeds.shared = true"):
            settings(bert_bundle, aggregation=how)
        assert settings(bert_bundle, aggregation=how, seeds=Seeds(shared=True)).aggregation == how


@pytest.mark.parametrize("pool", [0, 64])
def test_shared_seeds_are_the_same_for_all_devices_and_other_every_round(make: Make, pool: int) -> None:
    rounds = make(seeds=Seeds(shared=True, pool=pool))
    first = [rounds.plans.node(1, device, "fp32").first_seed for device in range(5)]
    assert len(set(first)) == 1
    assert len({rounds.plans.node(number, 0, "fp32").first_seed for number in range(1, 9)}) > 1


def test_a_liar_among_three_changes_nothing_by_the_median(bert_bundle: Bundle) -> None:
    def digest(last: tuple[int, ...], how: str) -> bytes:
        store = MemoryStore()
        run = RunRow(1, "run", bert_bundle.folder, bert_bundle.digest, bytes(32), 0.0, "running")  # always the same seeds
        store.data[1] = _Run(run)
        changed = settings(bert_bundle, aggregation=how, seeds=Seeds(shared=True), round=Round(3, 3, 30.0))
        rounds = Rounds(store, run, bert_bundle, changed)
        for device, scalars in enumerate([(300, -200, 100), (300, -200, 100), last]):
            rounds.enrol(device)
            assert rounds.accept(answer(rounds, device, scalars=scalars)) is Verdict.ACCEPTED
        rounds.close_if_due()
        assert rounds.ledger.entry == 1
        return rounds.ledger.digest()

    limit = Grid(14, 2.0).limit
    assert digest((limit, limit, -limit), "median") == digest((300, -200, 100), "median")
    assert digest((limit, limit, -limit), "mean") != digest((300, -200, 100), "mean")


def test_devices_that_are_compared_walk_one_tree(make: Make) -> None:
    rounds = make(algorithm="fedspzo", aggregation="median", seeds=Seeds(shared=True), probe=Probe(examples=4))
    usual = rounds.course.planner.usual
    stages = len(rounds.bundle.manifest.stages)
    for stage_ns in ((), (1,) * stages, (10**9, *(1,) * (stages - 1))):
        plan = rounds.plan(0, "fp32", stage_ns)
        assert plan is not None
        assert plan.root.shape == usual
    other = Shape((1,)) if usual != Shape((1,)) else Shape((1, 3), (stages - 1,))
    assert rounds.accept(report(0, plan=plan.id, shape=other, scalars=(1,) * other.scalars)) is Verdict.LATE
