"""Which reports count, and what the others are told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bundles
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from local_coordinator import answer
from made_rounds import CUT, PLANNED, SHAPES, Clock, Make, close, kinds, maker, shaped, state

from coordinator.config import Round
from coordinator.plans import ReportRefused
from zo.errors import StorageError
from zo.messages import Verdict
from zo.plan import Shape
from zo.seeds import MOST_DEVICES, SEEDS_PER_ROUND

RANKS = (1, 2, 4)


@st.composite
def any_shape(draw: st.DrawFn) -> Shape:
    """Of whatever parts, groups and rank."""
    cuts = draw(st.sets(st.integers(0, 4), max_size=2))
    counts = draw(st.lists(st.integers(1, 4), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    groups = draw(st.sets(st.integers(0, 12), max_size=4))
    joint = len(cuts) == 1 and draw(st.booleans())
    clean = not joint and draw(st.booleans())
    return Shape(tuple(counts), tuple(sorted(cuts)), joint, clean, tuple(sorted(groups)), draw(st.sampled_from((0, *RANKS, 3))))


def test_a_run_has_room_for_a_certain_number_of_devices(make_rounds: Make) -> None:
    rounds = make_rounds()
    rounds.store.failing = "enrol"
    with pytest.raises(ReportRefused, match=f"at most {MOST_DEVICES} devices"):
        rounds.enrol(5)
    assert rounds.devices == 3
    assert MOST_DEVICES * 4096 <= SEEDS_PER_ROUND


def test_a_second_report_of_a_round_is_a_duplicate_and_changes_nothing(make_rounds: Make) -> None:
    rounds = make_rounds()
    first = answer(rounds, 0)
    assert rounds.accept(first) is Verdict.ACCEPTED
    assert rounds.accept(answer(rounds, 0, scalars=(1, 1, 1))) is Verdict.DUPLICATE
    assert rounds.reports[0] is first


def test_reports_taken_in_together_are_answered_each_for_itself(make_rounds: Make) -> None:
    rounds = make_rounds(devices=6, round=Round(9, 9, 30.0))
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


@pytest.mark.parametrize("settings", [{}, CUT, PLANNED], ids=["mezo", "cut", "planned"])
def test_whatever_shape_a_report_claims_those_beside_it_count(settings: dict[str, Any], bundles: Bundles, tmp_path: Path) -> None:
    rounds = maker(bundles("bert", ranks=RANKS), tmp_path, Clock())(**settings)
    honest = shaped(rounds, 0)

    @tries(deadline=None, max_examples=200)
    @given(shape=any_shape(), plan=st.integers(0, 2**32 - 1), precision=st.sampled_from(["fp32", "int8"]))
    def check(shape: Shape, plan: int, precision: Any) -> None:
        found, other = rounds.accept_all([honest, answer(rounds, 1, shape=shape, plan=plan, precision=precision)])
        assert found in (Verdict.ACCEPTED, Verdict.DUPLICATE)
        assert other is Verdict.LATE or isinstance(other, ReportRefused)

    check()


@pytest.mark.parametrize("failing", ["add_reports", "after add_reports"])
def test_of_reports_that_cannot_be_kept_none_is_counted(failing: str, make_rounds: Make) -> None:
    rounds = make_rounds()
    rounds.store.failing = failing
    with pytest.raises(StorageError):
        rounds.accept_all([answer(rounds, device) for device in (0, 1)])
    assert rounds.reports == {}
    rounds.store.failing = ""
    kept = failing == "after add_reports"  # and are found at the next start
    assert sorted(make_rounds(devices=0).reports) == ([0, 1] if kept else [])
    expected = Verdict.DUPLICATE if kept else Verdict.ACCEPTED
    assert rounds.accept_all([answer(rounds, device) for device in (0, 1)]) == [expected] * 2


@pytest.mark.parametrize("number", [0, 1, 3, 2**63])
def test_a_report_of_another_round_is_late_or_of_a_round_that_nobody_knows(number: int, make_rounds: Make) -> None:
    rounds = make_rounds(round=Round(1, 1, 30.0))
    rounds.accept(answer(rounds, 0))
    rounds.close_if_due()
    assert rounds.accept(answer(rounds, 1, number)) is (Verdict.LATE if number < 2 else Verdict.UNKNOWN_ROUND)
    assert rounds.reports == {}


@pytest.mark.parametrize("wrong", [{}, {"scalars": (1, 2)}, {"scalars": (2**31 - 1,) * 3}, {"examples": 99}, {"digest": bytes(32)}])
def test_a_report_that_answers_another_plan_is_late_whatever_it_holds(wrong: dict[str, Any], make_rounds: Make) -> None:
    rounds = make_rounds()
    for plan in (0, rounds.plan_id(1, "fp32"), rounds.plan_id(0, "fp32") ^ 1):
        assert rounds.accept(answer(rounds, 0, plan=plan, **wrong)) is Verdict.LATE
    assert (rounds.reports, rounds.store.reports(rounds.run.id, 1), kinds(rounds)) == ({}, [], [])


def test_a_report_of_another_round_is_that_whatever_it_holds(make_rounds: Make) -> None:
    assert (rounds := make_rounds()).accept(answer(rounds, 0, 2, scalars=(1,), examples=0)) is Verdict.UNKNOWN_ROUND


def test_a_report_after_the_end_is_late(make_rounds: Make) -> None:
    rounds = make_rounds(rounds=1, round=Round(1, 1, 30.0))
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
        ({"held_out": (1,) * 6}, "6 held-out losses are more than the 5 that are ever asked for"),
        ({"held_out": (1, 0, -1)}, "a held-out loss is below 0, as none can be"),
    ],
)
def test_what_is_no_answer_to_a_plan_is_refused(wrong: dict[str, Any], said: str, make_rounds: Make) -> None:
    rounds = make_rounds()
    before = state(rounds)
    with pytest.raises(ReportRefused, match=said):
        rounds.accept(answer(rounds, **{"device": 0} | wrong))
    assert state(rounds) == before
    assert rounds.store.reports(rounds.run.id, 1) == []


def test_scalars_at_the_clip_are_taken(make_rounds: Make) -> None:
    rounds = make_rounds()
    assert rounds.accept(answer(rounds, 0, scalars=(2**15, -(2**15), 0))) is Verdict.ACCEPTED


def test_other_parameters_are_found_by_their_digest(make_rounds: Make) -> None:
    rounds = make_rounds()
    assert rounds.accept(answer(rounds, 0, digest=bytes(32))) is Verdict.DIVERGED
    assert rounds.reports == {}
    assert kinds(rounds) == ["diverged"]
    assert rounds.accept(answer(rounds, 0, digest=rounds.ledger.parameters.digest())) is Verdict.ACCEPTED


def test_who_holds_other_parameters_is_told_so_each_time_and_the_event_once_a_round(make_rounds: Make) -> None:
    rounds = make_rounds()
    for _ in range(3):
        assert rounds.accept(answer(rounds, 2, digest=bytes(32))) is Verdict.DIVERGED
    close(rounds, 2)
    assert rounds.accept(answer(rounds, 2, digest=bytes(32))) is Verdict.DIVERGED
    assert kinds(rounds) == ["diverged"] * 2


def test_a_report_with_a_plan_of_another_base_is_late(make_several: Make) -> None:
    rounds = make_several()
    assert rounds.accept(answer(rounds, 0, precision="int8", plan=rounds.plan_id(0, "fp32"))) is Verdict.LATE
    assert rounds.accept(answer(rounds, 0, precision="int8")) is Verdict.ACCEPTED


@pytest.mark.parametrize(
    "wrong", [{"scalars": (1, 2, 3)}, {"scalars": (1,) * 12}, {"scalars": (1,) * 16}, {"scalars": (2**15 + 1,) * 15}, {"examples": 5}]
)
def test_what_is_no_answer_to_a_tree_is_refused(wrong: dict[str, Any], make_rounds: Make) -> None:
    rounds = make_rounds(**CUT)
    with pytest.raises(ReportRefused):
        rounds.accept(shaped(rounds, 0, **wrong))
    assert rounds.accept(shaped(rounds, 0)) is Verdict.ACCEPTED


def test_a_report_whose_plan_and_shape_do_not_go_together_is_late(make_rounds: Make) -> None:
    rounds = make_rounds(**PLANNED)
    for said, meant in ((SHAPES[1], SHAPES[2]), (SHAPES[0], SHAPES[3])):
        assert rounds.accept(shaped(rounds, 0, said, plan=rounds.plan_id(0, "fp32", meant))) is Verdict.LATE
    assert rounds.reports == {}
