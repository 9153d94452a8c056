"""A round closes when it should, takes in what it should, and survives its coordinator."""

import dataclasses
from typing import Any

import pytest
from local_coordinator import PROBE, answer
from made_rounds import CHANGED_SETTINGS, CUT, PLANNED, Clock, Make, kinds, shaped, state

from coordinator.config import Rate, Round, Seeds
from zo.errors import StorageError
from zo.messages import Spent, Verdict
from zo.recipe import Split

IDS = ["directions", "probe size", "levels", "clip"]


# --- devices ---


def test_who_has_reported_has_nothing_to_do_until_the_next_round(make_rounds: Make) -> None:
    rounds = make_rounds()
    rounds.accept(answer(rounds, 0))
    assert rounds.plan(0, "fp32") is None
    assert rounds.plan(1, "fp32") is not None
    rounds.accept(answer(rounds, 1))
    rounds.close_if_due()
    plan = rounds.plan(0, "fp32")
    assert plan is not None
    assert (plan.round, plan.entry) == (2, 1)


# --- closing ---


def test_a_round_closes_at_its_goal(make_rounds: Make) -> None:
    rounds = make_rounds()
    assert not rounds.close_if_due()
    rounds.accept(answer(rounds, 0))
    assert not rounds.close_if_due()
    rounds.accept(answer(rounds, 1))
    before = rounds.ledger.parameters.digest()
    assert rounds.close_if_due()
    assert (rounds.ledger.entry, rounds.round, rounds.reports) == (1, 2, {})
    assert rounds.ledger.parameters.digest() != before
    assert rounds.store.entries(rounds.run.id)[0].contributors == 2


def test_the_deadline_begins_again_with_every_round(make_rounds: Make, clock: Clock) -> None:
    rounds = make_rounds(round=Round(2, 1, 30.0))
    clock.now += 29
    rounds.accept(answer(rounds, 0))
    rounds.accept(answer(rounds, 1))
    assert rounds.close_if_due()
    rounds.accept(answer(rounds, 0, 2))
    clock.now += 29
    assert not rounds.close_if_due()


def test_the_last_round_ends_the_run(make_rounds: Make) -> None:
    rounds = make_rounds(rounds=2, round=Round(1, 1, 30.0))
    for number in (1, 2):
        assert not rounds.finished
        rounds.accept(answer(rounds, 0, number))
        rounds.close_if_due()
    assert rounds.finished
    assert rounds.why_waiting() == "the run is over"
    assert (rounds.plan(0, "fp32"), rounds.overdue, rounds.close_if_due()) == (None, False, False)
    assert rounds.store.run("run").state == "finished"
    assert rounds.store.summaries(rounds.run.id)[-1]["digest"] == rounds.ledger.parameters.digest().hex()


# --- what is learnt of it ---


def test_what_a_device_says_unasked_or_cannot_have_spent_does_not_count(make_rounds: Make, clock: Clock) -> None:
    rounds = make_rounds(rounds=9, held_out_every=16)
    for looked in (True, False):
        plan = rounds.plan(0, "fp32")
        assert plan is not None
        assert plan.measure_held_out == looked
        clock.now += 5
        for device, spent in enumerate((Spent(milliseconds=2**32 - 1), Spent(milliseconds=3000))):
            rounds.accept(answer(rounds, device, held_out=(2**14,), spent=spent))
        rounds.close_if_due()
        told = rounds.store.summaries(rounds.run.id)[-1]
        assert told["device_seconds"] == 8.0
        assert list(told["looks"]) == (["0", "1"] if looked else [])


def test_where_events_cannot_be_stored_a_round_counts_once_all_the_same(make_rounds: Make, caplog: pytest.LogCaptureFixture) -> None:
    rounds = make_rounds(round=Round(3, 3, 30.0), rounds=9)
    rounds.store.failing = "add_event"
    assert rounds.accept(answer(rounds, 0, digest=bytes(32))) is Verdict.DIVERGED
    for number in range(1, 9):
        for device, most in enumerate((100, 100, 2**15)):
            assert rounds.accept(answer(rounds, device, scalars=(most, -most, most))) is Verdict.ACCEPTED
        assert rounds.close_if_due()
        assert (rounds.round, rounds.reports) == (number + 1, {})
    assert [entry.round for entry in rounds.store.entries(rounds.run.id)] == list(range(1, 9))
    assert "device 2 reports slopes of more than" in caplog.text
    assert kinds(rounds) == []


# --- going on after a stop ---


def test_a_new_coordinator_goes_on_in_mid_round_with_the_reports_accepted(make_rounds: Make) -> None:
    rounds = make_rounds()
    for device in (0, 1):
        rounds.accept(answer(rounds, device))
    rounds.close_if_due()
    rounds.accept(answer(rounds, 2, 2))
    again = make_rounds(devices=0)
    assert state(again) == state(rounds)
    assert again.devices == 3
    assert again.accept(answer(again, 2, 2)) is Verdict.DUPLICATE
    again.accept(answer(again, 0, 2))
    assert again.close_if_due()


@pytest.mark.parametrize("changed", CHANGED_SETTINGS, ids=IDS)
def test_reports_that_answer_other_settings_are_asked_for_again(changed: dict[str, Any], make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(3, 3, 30.0))
    old = [answer(rounds, device) for device in (0, 1)]
    for each in old:
        assert rounds.accept(each) is Verdict.ACCEPTED
    again = make_rounds(devices=0, round=Round(3, 3, 30.0), **changed)
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


def test_of_the_reports_kept_only_those_of_other_settings_are_dropped(make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(3, 3, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.store.add_report(answer(rounds, 1, plan=rounds.plan_id(1, "fp32") ^ 1))
    for _ in range(2):
        again = make_rounds(devices=0, round=Round(3, 3, 30.0))
        assert list(again.reports) == [0]
        assert [report.device for report in again.store.reports(again.run.id, 1)] == [0]
        assert kinds(again) == ["settings changed"]
    assert again.accept(answer(again, 0)) is Verdict.DUPLICATE
    assert again.accept(answer(again, 1)) is Verdict.ACCEPTED


def test_settings_that_do_not_touch_the_scalars_keep_the_reports(make_rounds: Make) -> None:
    rounds = make_rounds()
    rounds.accept(answer(rounds, 0))
    again = make_rounds(devices=0, rounds=9, rate=Rate(0.5, 0.5), round=Round(3, 1, 5.0))
    assert state(again) == state(rounds)
    assert kinds(again) == []


def test_a_finished_run_that_is_prolonged_runs_again(make_rounds: Make) -> None:
    rounds = make_rounds(rounds=1, round=Round(1, 1, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.close_if_due()
    assert make_rounds(devices=0, rounds=1, round=Round(1, 1, 30.0)).store.run("run").state == "finished"
    again = make_rounds(devices=0, rounds=2, round=Round(1, 1, 30.0))
    assert (again.finished, again.store.run("run").state) == (False, "running")
    assert again.accept(answer(again, 0, 2)) is Verdict.ACCEPTED
    assert again.close_if_due()
    assert (again.finished, again.store.run("run").state) == (True, "finished")


def test_a_run_whose_end_could_not_be_noted_is_finished_at_the_next_start(make_rounds: Make) -> None:
    rounds = make_rounds(rounds=1, round=Round(1, 1, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.store.failing = "set_state"
    with pytest.raises(StorageError):
        rounds.close_if_due()
    again = make_rounds(devices=0, rounds=1)
    assert again.finished
    assert again.store.run("run").state == "finished"


# --- durable first, and one round once ---


def test_reports_accepted_before_a_crash_count_once_and_are_not_asked_for_again(make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(3, 3, 30.0))
    for device in (0, 1):
        rounds.accept(answer(rounds, device))
    again = make_rounds(devices=0, round=Round(3, 3, 30.0))
    assert [again.plan(device, "fp32") is None for device in range(3)] == [True, True, False]
    assert again.accept(answer(again, 1, scalars=(9, 9, 9))) is Verdict.DUPLICATE
    assert again.accept(answer(again, 2)) is Verdict.ACCEPTED
    assert again.close_if_due()
    rounds.store.failing = "commit"  # the other process is gone
    assert (again.store.head(again.run.id)[0], again.store.entries(again.run.id)[0].contributors) == (1, 3)
    assert again.store.reports(again.run.id, 1) == []
    for device in range(3):
        assert again.accept(answer(again, device, 1, plan=rounds.plan_id(device, "fp32"))) is Verdict.LATE
    assert make_rounds(devices=0, round=Round(3, 3, 30.0)).reports == {}


# --- parts tried apart (FedSPZO) ---


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
def test_trees_of_other_settings_are_asked_for_again_and_their_reports_are_late(changed: dict[str, Any], make_rounds: Make) -> None:
    """Nobody is refused: an agent that is working while the coordinator is restarted with other settings goes on."""
    rounds = make_rounds(round=Round(3, 3, 30.0), **CUT)
    old = [shaped(rounds, device) for device in range(3)]
    for each in old[:2]:
        assert rounds.accept(each) is Verdict.ACCEPTED
    again = make_rounds(devices=0, **{"round": Round(3, 3, 30.0)} | changed)
    assert (again.reports, again.store.reports(again.run.id, 1)) == ({}, [])
    assert kinds(again) == ["settings changed"]
    assert [again.accept(each) for each in old] == [Verdict.LATE] * 3
    assert [again.accept(shaped(again, device)) for device in range(3)] == [Verdict.ACCEPTED] * 3
    assert again.close_if_due()


@pytest.mark.parametrize("changed", [PLANNED, PLANNED | {"split": Split(kept=1e9)}])
def test_a_tree_that_would_also_be_asked_for_now_counts_after_settings_changed(changed: dict[str, Any], make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(3, 3, 30.0), **CUT)
    rounds.accept(shaped(rounds, 0))
    again = make_rounds(devices=0, **{"round": Round(3, 3, 30.0)} | changed)
    assert list(again.reports) == [0]
    assert kinds(again) == []
