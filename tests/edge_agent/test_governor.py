"""Runs become smaller, then it pauses, then a probe is given up; and all of it comes back."""

import logging
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.governor import CALM, FLOOR, GIVE_UP, INTERRUPTIBLE, QUICK, SETTLE, Governor, Level
from edge_agent.pressure import OWN, Line
from zo.errors import DoesNotFit

STEP = 1.1 * SETTLE


@dataclass
class Machine:
    """Memory and time that a test sets. Soft line 80, hard line 100."""

    others: float = 0.0
    own: float = 0.0
    now: float = 0.0
    trims: int = 0
    growth: float = 0.0
    rows: int = 256
    governor: Governor = field(init=False)

    def __post_init__(self) -> None:
        lines = [lambda: Line("cgroup a", self.others, 80, 100), lambda: Line(OWN, self.own, 80, 100), lambda: None]
        self.governor = Governor(self.rows, lines, self._trim, lambda rows: rows * self.growth, lambda: self.now)

    def _trim(self) -> None:
        self.trims += 1

    def after(self, seconds: float, others: float | None = None, own: float | None = None) -> str:
        """Why it must rest, after some time, with memory like this; empty where it need not."""
        self.now += seconds
        self.others = self.others if others is None else others
        self.own = self.own if own is None else own
        objection = self.governor.objection()
        return objection.reason if objection else ""


def test_below_the_lines_nothing_happens() -> None:
    machine = Machine(others=79, own=79)
    assert machine.after(1) == ""
    assert (machine.governor.rows, machine.trims) == (256, 0)


def test_over_the_soft_line_runs_become_smaller_step_by_step_and_memory_is_given_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    machine = Machine(others=85)
    found = []
    for _ in range(3):
        assert machine.after(STEP) == ""
        found.append(machine.governor.rows)
    assert found == [128, 64, FLOOR]
    assert (machine.governor.counts.sheds, machine.trims) == (3, 3)
    assert "cgroup a: 0.0 MB of 0.0 MB is over the soft line; runs of at most 128 rows" in caplog.text


def test_a_smaller_run_is_given_time_to_take_effect() -> None:
    machine = Machine(others=85)
    machine.after(STEP)
    machine.after(SETTLE / 2)
    assert machine.governor.rows == 128


def test_where_smaller_runs_do_not_help_it_pauses_until_there_is_clearly_room() -> None:
    machine = Machine(others=85)
    for _ in range(3):
        machine.after(STEP)
    assert "waiting for memory (cgroup a" in machine.after(STEP)
    assert machine.governor.counts.pauses == 1
    assert machine.after(1, others=79) != ""  # below the line, but only just
    assert machine.after(1, others=70) == ""
    assert machine.governor.counts.pauses == 1


def test_what_is_its_own_is_not_waited_for() -> None:
    machine = Machine(own=85)
    for _ in range(10):
        assert machine.after(STEP) == ""
    assert machine.governor.rows == FLOOR
    assert machine.after(1, own=101) != ""


def test_what_does_not_fit_with_the_smallest_runs_either_ends_the_agent() -> None:
    machine = Machine(own=101)
    for _ in range(4):
        assert machine.after(GIVE_UP / 4) != ""
    with pytest.raises(DoesNotFit, match=r"resident: 0\.0 MB of 0\.0 MB even with the smallest runs"):
        machine.after(1)
    patient = Machine(own=101, others=90)  # others may leave
    for _ in range(10):
        assert patient.after(GIVE_UP / 4) != ""


def test_over_the_hard_line_a_probe_is_given_up_and_it_pauses_at_once(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(others=99)
    assert not machine.governor.must_abandon()
    machine.others = 100
    assert machine.governor.must_abandon()
    assert "the probe under way is given up" in caplog.text
    assert "waiting for memory" in machine.after(0)
    assert (machine.governor.counts.abandoned, machine.governor.rows) == (1, 128)


def test_runs_grow_again_after_a_calm_while_as_far_as_is_foretold_to_fit() -> None:
    machine = Machine(others=85, growth=0.1)
    for _ in range(3):
        machine.after(STEP)
    machine.after(0.1, others=50)
    assert machine.governor.rows == FLOOR
    found = []
    for _ in range(4):
        machine.after(CALM + 0.1)
        found.append(machine.governor.rows)
    assert found == [64, 128, 256, 256]
    machine.rows = 64
    tight = Machine(others=85, growth=1.0)
    for _ in range(3):
        tight.after(STEP)
    for _ in range(4):
        tight.after(CALM + 0.1, others=30)
    assert tight.governor.rows == 64  # 128 would take 64 more than it has


def test_runs_that_cannot_be_waited_for_become_shorter_and_longer_again() -> None:
    machine = Machine()
    machine.governor.took(INTERRUPTIBLE * 0.9)
    assert machine.governor.rows == 256
    machine.governor.took(INTERRUPTIBLE * 1.1)
    assert machine.governor.rows == 128
    machine.governor.took(QUICK / 2)
    machine.after(2 * CALM)
    assert machine.governor.rows == 256


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(0, 200), st.floats(0.01, 1.4)), max_size=40))
def test_whatever_happens_rows_stay_within_bounds_and_the_hard_line_is_never_worked_over(steps: list[tuple[float, float, float]]) -> None:
    machine = Machine()
    for others, own, seconds in steps:
        told = machine.after(seconds, others, own)  # 40 steps of at most a second are not enough to give up
        assert FLOOR <= machine.governor.rows <= 256
        if max(others, own) >= 100:
            assert told
    for _ in range(10):
        machine.after(CALM + 1, 0, 0)
    assert machine.governor.rows == 256
    assert machine.governor.look() is Level.FREE
