"""What leaves under differential privacy: noise as promised, nothing else of the examples, and no more than the budget."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_agent import privacy
from edge_agent.config import Privacy
from edge_agent.privacy import Guard, cost, epsilon, noisy
from zo.disk import Disk
from zo.errors import PrivacySpent, StorageError
from zo.estimators import Grid
from zo.messages import Report, Spent
from zo.plan import Node, WorkPlan

GRID = Grid(14, 2.0)
ON = Privacy(clip=0.1, noise=20.0, epsilon=1.0, delta=1e-5)
PLAN = WorkPlan(1, 0, Node(0, 0, 3, ()), 8, True, False, GRID, 5)
REPORT = Report(1, 2, 1, np.array([300, -200, 100]), 5, "fp32", 2, (900, 901), Spent(100, 20), bytes(32), 5)


# --- the accountant ---


@pytest.mark.parametrize(("noise", "reports", "delta"), [(1.0, 1, 1e-5), (10.0, 1, 1e-5), (20.0, 1000, 1e-6), (50.0, 100_000, 1e-3)])
def test_epsilon_is_that_of_a_library(noise: float, reports: int, delta: float) -> None:
    """Against dp-accounting's Renyi accountant; noise over sensitivity is noise / 2."""
    dp_event = pytest.importorskip("dp_accounting.dp_event", reason="dp-accounting is not installed")
    from dp_accounting.rdp import RdpAccountant

    library = RdpAccountant(orders=privacy.ORDERS[(privacy.ORDERS > 1.01) & (privacy.ORDERS < 1e5)].tolist())
    library.compose(dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(noise / 2), reports))
    assert epsilon(reports * cost(noise), delta) == pytest.approx(library.get_epsilon(delta), rel=2e-3)


@pytest.mark.parametrize(("rho", "delta", "expected"), [(2.0, 1e-5, 10.72485), (0.02, 1e-5, 0.794315), (0.005, 1e-6, 0.429942)])
def test_epsilon_as_the_library_said_once(rho: float, delta: float, expected: float) -> None:
    """dp-accounting 0.6.0; it needs 150 MB with scipy, so that it is not among what tests install."""
    assert epsilon(rho, delta) == pytest.approx(expected, rel=1e-5)


@given(st.floats(1e-6, 50), st.floats(1e-9, 1e-2))
def test_epsilon_is_between_what_is_certain_and_the_simple_bound(rho: float, delta: float) -> None:
    """Bun and Steinke's conversion is an upper bound; more spending and a smaller delta never cost less."""
    found = epsilon(rho, delta)
    assert 0 <= found <= rho + 2 * math.sqrt(rho * math.log(1 / delta)) + 1e-9
    assert epsilon(2 * rho, delta) >= found
    assert epsilon(rho, delta / 2) >= found
    assert epsilon(0.0, delta) == 0.0


# --- the noise ---


@given(arrays(np.int64, st.integers(1, 20), elements=st.integers(-(2**31), 2**31 - 1)))
def test_without_noise_the_vector_is_cut_to_its_length_and_keeps_its_direction(scalars: np.ndarray) -> None:
    found = noisy(scalars, Privacy(clip=0.5), GRID)
    clip = 0.5 * 2**14
    assert np.linalg.norm(found) <= clip + math.sqrt(scalars.size)  # rounding
    length = float(np.linalg.norm(scalars.astype(np.float64)))
    if length <= clip:
        assert found.tolist() == scalars.tolist()
    else:
        assert np.abs(found - scalars * (clip / length)).max() <= 0.5001


def test_noise_has_the_deviation_that_is_promised_and_is_never_twice_the_same() -> None:
    scalars, wide = np.zeros(20_000, np.int64), Grid(14, 1000.0)
    settings = Privacy(clip=0.1, noise=10.0)
    first, second = (noisy(scalars, settings, wide) for _ in range(2))
    assert first.std() == pytest.approx(10.0 * 0.1 * 2**14, rel=0.05)
    assert abs(first.mean()) < 5 * 16384 / math.sqrt(20_000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_noise_stays_on_the_grid_and_within_the_runs_clip() -> None:
    found = noisy(np.full(1000, 5), Privacy(clip=2.0, noise=100.0), GRID)
    assert found.dtype == np.int64
    assert np.abs(found).max() == GRID.limit


# --- the guard ---


@pytest.fixture
def guard(tmp_path: Path) -> Callable[..., Guard]:
    return lambda settings=ON, disk=None: Guard(settings, tmp_path, disk)


def test_only_the_scalars_depend_on_the_examples(guard: Callable[..., Guard]) -> None:
    found = guard().guarded(REPORT, PLAN)
    assert (found.examples, found.dropped, found.held_out, found.spent) == (PLAN.examples, 0, (), Spent())
    other = dataclasses.replace(REPORT, scalars=np.array([0, 0, 0]), examples=1, dropped=0, held_out=(1,), spent=Spent(1, 2))
    same = [field.name for field in dataclasses.fields(Report) if field.name != "scalars"]
    also = guard().guarded(other, PLAN)
    assert [getattr(found, name) for name in same] == [getattr(also, name) for name in same]


def test_without_a_clip_a_report_leaves_as_it_is(guard: Callable[..., Guard], tmp_path: Path) -> None:
    assert guard(Privacy()).guarded(REPORT, PLAN) is REPORT
    assert list(tmp_path.iterdir()) == []


def test_the_budget_stops_it_and_a_restart_gives_nothing_back(guard: Callable[..., Guard]) -> None:
    first = guard()
    first.guarded(REPORT, PLAN)
    second = guard()
    assert second.rho == first.rho
    said = r"the privacy budget is spent: epsilon 0\.\d+ of dp.epsilon = 1.0 at delta 1e-05"
    with pytest.raises(PrivacySpent, match=said):  # noqa: PT012
        for _ in range(100):
            second.guarded(REPORT, PLAN)
    assert epsilon(second.rho, 1e-5) <= 1.0 < epsilon(second.rho + cost(20.0), 1e-5)
    before = second.rho
    with pytest.raises(PrivacySpent):
        guard().guarded(REPORT, PLAN)
    assert guard().rho == before
    guard(dataclasses.replace(ON, epsilon=2.0)).guarded(REPORT, PLAN)


def test_a_budget_below_the_cost_of_one_report_is_told_with_that_cost(guard: Callable[..., Guard]) -> None:
    with pytest.raises(PrivacySpent, match=r"a single report with dp.noise = 1.0 costs epsilon 10.7\d+ .*, more than dp.epsilon = 0.5;"):
        guard(Privacy(clip=0.1, noise=1.0, epsilon=0.5)).check()


def test_noise_that_was_there_before_is_missed(guard: Callable[..., Guard], caplog: pytest.LogCaptureFixture) -> None:
    guard(Privacy())
    guard().guarded(REPORT, PLAN)
    guard()
    assert caplog.messages == []
    guard(Privacy(clip=1.0))
    assert "this device has reported with noise before" in caplog.text


class FullDisk(Disk):
    """It takes nothing."""

    def write(self, path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")


def test_what_cannot_be_accounted_for_does_not_leave(guard: Callable[..., Guard]) -> None:
    with pytest.raises(StorageError, match="nothing is reported that cannot be accounted for"):
        guard(disk=FullDisk()).guarded(REPORT, PLAN)


@given(st.binary(max_size=80))
def test_a_damaged_account_is_not_taken_for_an_empty_one(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("state")
    (folder / "privacy").write_bytes(content)
    with pytest.raises(StorageError, match="is damaged, so it is not known"):
        Guard(ON, folder)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"clip": -1.0}, "finite, and not negative"),
        ({"clip": math.nan}, "finite, and not negative"),
        ({"noise": 1.0}, "give clip as well"),
        ({"clip": 1.0, "epsilon": 1.0}, "needs noise"),
        ({"delta": 0.0}, "between 0 and 1"),
        ({"delta": math.nan}, "between 0 and 1"),
    ],
)
def test_settings_that_promise_nothing_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Privacy(**wrong)
