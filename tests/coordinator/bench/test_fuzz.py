"""Every parser takes what is right, and answers or refuses anything else; hypothesis and the benchmark's own changes look for more."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.bench import fuzz
from edge_agent.bench import fuzz as agents
from zo import fuzzing
from zo.fuzzing import Target, attack, attack_all


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return [*fuzz.targets(tmp_path_factory.mktemp("fuzz")), *agents.targets(tmp_path_factory.mktemp("agent"))]


def test_what_is_right_is_taken(targets: list[Target]) -> None:
    for target in targets:
        for data in target.right:
            if target.name not in ("tiles_head", "identity"):
                target.parse(data)


@given(data=st.data())
def test_any_bytes_are_answered_or_refused(targets: list[Target], data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(targets))
    assert target.failure(data.draw(st.binary(max_size=300))) == ""


@given(seed=st.integers(0, 2**32))
def test_changes_of_what_is_right_are_answered_or_refused(targets: list[Target], seed: int) -> None:
    draw = random.Random(seed)
    target = draw.choice(targets)
    for _ in range(5):
        assert target.failure(fuzzing.changed(draw.choice(target.right), draw, target.right)) == ""


def test_a_parser_that_fails_is_found_and_its_input_told() -> None:
    def bad(data: bytes) -> None:
        if len(data) > 4 and data[3] == 0xFF:
            raise IndexError("gone")

    found = attack_all([Target("bad", (b"abcdefgh",), bad, (ValueError,)), Target("good", (b"a",), bytes.hex, ())], 1, 10.0)
    assert found["failed"].keys() == {"bad"}
    assert found["failed"]["bad"].startswith("IndexError: gone on ")
    assert found["by_target"]["good"] > 100
    assert attack(Target("good", (b"a",), bytes.hex, ()), random.Random(0), 0.05)[1] == ""


def test_the_benchmark_runs_all_targets(tmp_path: Path, targets: list[Target]) -> None:
    found = fuzz.measure(2.0, 0, tmp_path)
    assert found["by_target"].keys() == {target.name for target in targets}
    assert found["failed"] == {}
    assert found["inputs"] > 500
    assert "no failure" in fuzz.told(found)
