"""The soak benchmark in short: what it starts, counts and calls a leak."""

from pathlib import Path

import pytest

from coordinator.bench import soak


def test_growth_is_between_the_first_and_last_seconds_of_a_life_that_has_warmed_up() -> None:
    warm = [50.0] * int(soak.WARM)
    assert soak.growth([*warm, *[100.0] * 40]) == 0.0
    assert soak.growth([*warm, *[100.0] * 20, *[103.0] * 20]) == 3.0
    assert soak.growth([*warm, *[100.0] * 20, *[90.0] * 20]) == 0.0
    assert soak.growth([*warm, *[100.0] * 5]) == 0.0  # too short a life to tell
    assert soak.growth([]) == 0.0


@pytest.mark.slow
def test_a_short_soak_lets_nobody_in_and_loses_nothing(tmp_path: Path) -> None:
    found = soak.measure(0.6, tmp_path, soak.Every(death=12.0, leaving=8.0, revocation=7.0))
    assert (found["lost_commits"], found["unauthorised_accepted"], found["agents_that_failed"]) == (0, 0, 0)
    assert found["restarts"] >= 1
    assert min(found["joined"], found["left"], found["revoked"]) >= 1
    assert found["commits"] > 10
    kinds = {"garbage", "too large", "no certificate", "another fleet", "revoked", "another's report", "another's work", "another round"}
    assert found["refused"].keys() >= kinds
    assert sum(found["refused"].values()) > 36 * soak.RATE / 3
