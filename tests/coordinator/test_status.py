"""Where a run stands, from its store alone."""

import json
from pathlib import Path

import pytest
from local_coordinator import answer, settings

from coordinator import status
from coordinator.config import Round
from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from zo.bundle import Bundle
from zo.messages import Spent

METRICS = {"loss": 0.5, "accuracy": 0.75, "balanced_loss": 0.6, "balanced_accuracy": 0.7, "rows": 4}


@pytest.fixture
def rounds(bert_bundle: Bundle, tmp_path: Path) -> Rounds:
    store = SqliteStore(tmp_path / "run.sqlite", create=True)
    run = store.open_run("fleet", bert_bundle.folder, bert_bundle.digest)
    made = Rounds(store, run, bert_bundle, settings(bert_bundle, round=Round(1, 1, 9.0), rounds=2))
    made.enrol(7)
    return made


def of(rounds: Rounds) -> dict:
    return status.of(rounds.store, rounds.store.run("fleet"))


def test_a_run_that_has_just_begun_is_told(rounds: Rounds) -> None:
    found = of(rounds)
    assert (found["state"], found["entry"], found["rounds"], found["devices"], found["last_round"]) == ("running", 0, 0, 1, None)
    assert "run 'fleet' is running: 0 rounds, 1 devices, 0 probes" in status.told(found)
    assert "best by what devices held out: entry 0" in status.told(found)


def test_counts_add_up_over_rounds(rounds: Rounds) -> None:
    for number in (1, 2):
        spent = Spent(milliseconds=1, millijoules=4_500_000, energy="rapl" if number == 1 else "model")
        rounds.accept(answer(rounds, 0, number, dropped=1, spent=spent))
        rounds.close_if_due()
    rounds.store.add_evaluation(rounds.run.id, 1, "validation", METRICS)
    rounds.store.add_evaluation(rounds.run.id, 0, "test", METRICS)
    rounds.note("diverged", "device 0 holds other parameters")
    found = of(rounds)
    assert (found["state"], found["entry"], found["rounds"], found["probes"], found["dropped"]) == ("finished", 2, 2, 12, 2)
    assert found["joules"] == {"rapl": 4500.0, "model": 4500.0}
    assert 0 < found["device_seconds"] <= 0.002
    assert found["head"] == rounds.ledger.replica.head.hex()
    assert found["best_entry"] == 1
    assert found["last_round"]["round"] == 2
    assert [event["kind"] for event in found["events"]] == ["diverged"]
    told = status.told(found)
    for part in (
        "is finished: 2 rounds",
        "best by validation: entry 1",
        "devices have worked 0.0 minutes, and drew 4.5 kJ by rapl, 4.5 kJ by model",
        "round 2: 1 reports",
        "loss 0.5000, accuracy 0.7500; class-balanced: loss 0.6000, accuracy 0.7000",
        "diverged: device 0",
    ):
        assert part in told


def test_where_nothing_is_better_than_the_start_it_says_so_and_by_which_loss(rounds: Rounds) -> None:
    rounds.store.add_evaluation(rounds.run.id, 0, "validation", METRICS)
    assert "best by validation: entry 0\n" in status.told(of(rounds)) + "\n"
    rounds.accept(answer(rounds, 0))
    rounds.close_if_due()
    rounds.store.add_evaluation(rounds.run.id, 1, "validation", METRICS | {"loss": 0.3, "gain": 0.03, "gain_error": 0.15})
    said = "best by validation: entry 0; the class-balanced loss of no later one is lower by more than 2 standard errors"
    assert said in status.told(of(rounds))


def test_all_of_it_is_json(rounds: Rounds) -> None:
    rounds.store.add_evaluation(rounds.run.id, 0, "validation", METRICS)
    found = json.loads(json.dumps(of(rounds)))
    assert found["validation"] == {"0": METRICS}
    assert found["run"] == "fleet"


def test_only_the_newest_events_are_kept_in_sight(rounds: Rounds) -> None:
    for number in range(30):
        rounds.note("bad report", f"number {number}")
    assert [event["text"] for event in of(rounds)["events"]] == [f"number {number}" for number in range(10, 30)]
