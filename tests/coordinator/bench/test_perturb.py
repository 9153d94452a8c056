"""What the benchmark of the kernels prints is what it measured, and its passes leave the weights as they were."""

import numpy as np
import pytest

from coordinator.bench import perturb, replay
from zo import kernel


def test_fractions_are_those_of_the_times() -> None:
    found = perturb.measure(100_000, 3)
    taken = found["milliseconds"]
    assert set(taken) == {"w += c", "numpy"} | ({"compiled"} if kernel.COMPILED else set())
    assert all(each >= 0 for each in taken.values())
    assert found["bandwidth_fraction_numpy"] > 0
    assert (found["bandwidth_fraction"] is None) is not kernel.COMPILED


def test_passes_too_short_for_a_decimal_are_told_all_the_same() -> None:
    taken = {"w += c": 0.0, "numpy": 0.1, "compiled": 0.0}
    told = perturb.told({"milliseconds": taken, "bandwidth_fraction": 0.801, "bandwidth_fraction_numpy": 0.25})
    assert [line.split("ms")[1].split()[0] for line in told.splitlines()] == ["1.00", "0.25", "0.80"]


def test_replay_counts_every_value_and_term() -> None:
    found = replay.measure(50_000, 1)
    assert found["terms"] == 32
    assert 0 < found["ns_per_element_term_numpy"] < 1000


@pytest.mark.parametrize("name", perturb.kernels())
def test_two_passes_undo_one_another(name: str) -> None:
    values = np.zeros(1000, np.float32)
    add = perturb.adding(perturb.kernels()[name], values, 4)
    add()
    assert np.any(values)
    add()
    assert not np.any(values)
