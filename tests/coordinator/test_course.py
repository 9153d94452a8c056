"""Rates, plans and ends go by the entries before, and a coordinator that was restarted knows the same."""

from collections.abc import Sequence

import pytest
from local_coordinator import answer
from made_rounds import CHEAP_HEAD, CUT, PLANNED, SHAPES, Clock, Make, append_rollback, comes_to, kinds, shaped, state

from coordinator import history
from coordinator.config import Rate, Round
from coordinator.rounds import AGAIN, Rounds
from zo.errors import StorageError
from zo.messages import Spent, Verdict


def test_a_run_of_trees_is_where_it_was_after_every_restart(make_rounds: Make) -> None:
    """Plans go by the slopes of the entries before; a coordinator that was restarted knows the same ones."""
    rounds = make_rounds(rounds=60, round=Round(2, 1, 30.0), **PLANNED)
    for number in range(40):
        again = make_rounds(devices=0, rounds=60, round=Round(2, 1, 30.0), **PLANNED)
        for device in range(2):
            report = shaped(rounds, device, SHAPES[(number + device) % len(SHAPES)])
            assert rounds.accept(report) is Verdict.ACCEPTED
        reports = [rounds.reports[device] for device in range(2)]
        assert comes_to(again, reports) == comes_to(rounds, reports)
        assert rounds.close_if_due()
    again = make_rounds(devices=0, rounds=60, **PLANNED)
    assert state(again) == state(rounds)
    assert again.course.planner.table("fp32", CHEAP_HEAD) == rounds.course.planner.table("fp32", CHEAP_HEAD)


def test_what_others_append_is_learnt_as_a_restart_would(make_rounds: Make) -> None:
    rounds = make_rounds(rounds=60, round=Round(1, 1, 30.0), **CUT)
    for _ in range(20):
        rounds.accept(shaped(rounds, 0))
        assert rounds.close_if_due()
    append_rollback(rounds)
    assert rounds.follow()
    again = make_rounds(devices=0, rounds=60, round=Round(1, 1, 30.0), **CUT)
    assert again.course.planner.table("fp32", CHEAP_HEAD) == rounds.course.planner.table("fp32", CHEAP_HEAD)
    report = shaped(rounds, 0)
    assert comes_to(again, [report]) == comes_to(rounds, [report])


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


def test_losses_that_rise_take_the_fleet_back_exactly_to_the_best_entry(make_rounds: Make) -> None:
    rounds = make_rounds(2, rounds=30, held_out_every=16)
    work_until(rounds, [1.0] * 2, 2)
    best = rounds.ledger.digest()
    work_until(rounds, [1.0, 1.0, 0.5, 0.5, 1.5, 1.5, 1.5], 7)
    assert kinds(rounds) == ["autopilot: go back", "rolled back"]
    assert rounds.ledger.digest() == best  # of entry 2, where the loss was lowest
    assert rounds.ledger.entry == 8
    assert rounds.course.factors(rounds.round)["body"] < 0.5
    again = make_rounds(2, rounds=30, held_out_every=16)
    assert state(again)[:4] == state(rounds)[:4]
    assert again.course.autopilot.pace.factors == rounds.course.autopilot.pace.factors


@pytest.mark.parametrize("restarted", [True, False])
def test_a_way_back_that_a_crash_or_a_full_disk_came_before_is_gone_afterwards(restarted: bool, make_rounds: Make, clock: Clock) -> None:
    rounds = make_rounds(2, rounds=30, held_out_every=16)
    work_until(rounds, [1.0] * 2, 2)
    best = rounds.ledger.digest()
    rounds.store.failing = "roll back"
    with pytest.raises(StorageError):
        work_until(rounds, [1.0, 1.0, 0.5, 0.5, 1.5, 1.5, 1.5], 7)
    assert rounds.ledger.entry == 7
    rounds.store.failing = ""
    if restarted:
        rounds = make_rounds(2, rounds=30, held_out_every=16)
    else:
        with pytest.raises(StorageError, match="disk full"):  # not tried again at once, and nothing else is done
            rounds.close_if_due()
        assert rounds.ledger.entry == 7
        clock.now += AGAIN
        assert rounds.close_if_due()
    assert (rounds.ledger.entry, rounds.ledger.digest(), rounds.round) == (8, best, 9)
    assert not rounds.close_if_due()
    assert kinds(rounds) == ["autopilot: go back", "rolled back"]


def test_after_three_ways_back_the_run_pauses_until_it_is_started_again(make_rounds: Make) -> None:
    rounds = make_rounds(2, rounds=90, held_out_every=16)
    start = rounds.ledger.digest()
    work_until(rounds, [1.0] + [2.0] * 90, 90)
    assert rounds.paused
    assert rounds.ledger.digest() == start
    assert [kind for kind in kinds(rounds) if kind.startswith("autopilot")] == ["autopilot: go back"] * 2 + ["autopilot: pause"]
    assert rounds.plan(0, "fp32") is None
    assert "paused" in rounds.why_waiting()
    assert rounds.store.run("run").state == "paused"
    again = make_rounds(2, rounds=90, held_out_every=16)
    assert not again.paused
    assert again.plan(0, "fp32") is not None
    assert again.store.run("run").state == "running"


def test_a_run_that_gains_nothing_stops_and_stays_stopped(make_rounds: Make, clock: Clock) -> None:
    rounds = make_rounds(2, rounds=200, least_gain=0.001, held_out_every=16)
    for number in range(1, 200):
        if rounds.finished:
            break
        clock.now += 9
        for device in range(2):
            plan = rounds.plan(device, "fp32")
            assert plan is not None
            held_out, spent = ((2**14,) if plan.measure_held_out else ()), Spent(milliseconds=9000)
            rounds.accept(answer(rounds, device, number, plan=plan.id, held_out=held_out, spent=spent))
        rounds.close_if_due()
    assert rounds.round < 100
    assert rounds.finished
    assert kinds(rounds) == ["autopilot: stop"]
    assert make_rounds(2, rounds=200, least_gain=0.001, held_out_every=16).finished


def test_rates_that_are_stated_are_left_as_they_are(make_rounds: Make) -> None:
    rounds = make_rounds(1, rate=Rate(body=0.1, head=0.1, final=1.0), round=Round(1, 1, 5.0), rounds=20, held_out_every=16)
    for number in range(1, 10):
        plan = rounds.plan(0, "fp32")
        assert plan is not None
        held_out = (2**14, *[2**13, 2**15] * 2)[: 5 if plan.stride else 1] if plan.measure_held_out else ()
        rounds.accept(answer(rounds, 0, number, plan=plan.id, held_out=held_out))
        rounds.close_if_due()
    assert rounds.course.factors(rounds.round) == {"body": 1.0, "head": 1.0}


def test_a_way_back_to_what_has_been_compacted_is_not_gone_and_the_run_goes_on(make_rounds: Make) -> None:
    rounds = make_rounds(2, rounds=30, held_out_every=16)
    work_until(rounds, [0.5, 0.5, 1.5, 1.5, 1.5], 4)
    history.compact_all_but(rounds.store, rounds.run, rounds.bundle, 1)
    work_until(rounds, [1.5] * 8, 8)
    assert kinds(rounds) == ["autopilot: go back", "autopilot"]
    assert (rounds.ledger.entry, rounds.round, rounds.paused) == (8, 9, False)
    assert rounds.course.factors(rounds.round)["body"] < 0.5
