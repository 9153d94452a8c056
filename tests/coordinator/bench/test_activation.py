"""`scripts/bench activation`: each side tries what it says, and costs are told from traces."""

import math
from pathlib import Path

import pytest
from conftest import Bundles

from coordinator.bench import activation, tiny_models
from coordinator.bench.activation import Fleets
from coordinator.demo import shares


@pytest.fixture
def fleets(bundles: Bundles, tmp_path: Path) -> Fleets:
    for number, name in enumerate(("train", "validation")):
        shares.write(tmp_path / f"{name}.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 60, number))
    return Fleets(bundles("bert", stages=3), tmp_path, 2)


def tried(fleets: Fleets, side: str) -> list[set[int]]:
    """Groups by device, in the first round."""
    simulation = fleets.side(side, 0, 1.0, 1.0)
    plans = [simulation.work(device, "fp32") for device in range(activation.DEVICES)]
    return [{group for size in plan.root.probe_sizes for group in size.groups} for plan in plans if plan]


def test_every_side_tries_its_blocks_and_never_the_head(fleets: Fleets) -> None:
    body = {group.id for group in fleets.bundle.manifest.groups if group.kind == "body"}
    assert tried(fleets, "all") == [body] * 8
    by_memory, by_time = tried(fleets, "by memory"), tried(fleets, "by time")
    assert sorted(map(len, by_memory)) == [1, 1, 2, 2, 3, 3, 3, 3]
    assert set.union(*by_memory) == set.union(*by_time) == body
    assert [min(each) for each in by_time] == [min(lowest, len(body) - 1) for lowest in activation.LOWEST]
    assert all(each == {group for group in body if group >= min(each)} for each in by_time)


def test_the_others_get_a_multiple_of_the_rounds_and_each_side_its_best_rate(fleets: Fleets) -> None:
    assert [fleets.side("by time", 0, 1.0, multiple).rounds.config.rounds for multiple in (0.4, 1.0, 1.3, 2.0)] == [1, 2, 3, 4]
    found = fleets.losses(0, (1.0, 2.0), (1.0,))
    assert found["all"].keys() == found["by time"].keys() == {1.0}
    assert found["by memory"][1.0] == min(fleets.loss("by memory", 0, rate, 1.0) for rate in (1.0, 2.0))


def test_the_least_multiple_that_comes_to_the_loss_is_told(fleets: Fleets) -> None:
    row = {"all": {1.0: 0.5}, "by memory": {0.75: 0.55, 1.0: 0.5, 1.3: 0.4}, "by time": {0.75: 0.9, 1.0: 0.8, 1.3: 0.7}}
    other = {side: {multiple: each + 0.1 for multiple, each in losses.items()} for side, losses in row.items()}
    found = activation.summed(fleets, [row, other])
    assert found["loss_all"] == {"1": 0.55}
    assert (found["probes_ratio_by_memory"], found["probes_ratio_by_time"]) == (1.0, math.inf)
    told = activation.told(found)
    assert "0.6 after 24, 0.55 after 32, 0.45 after 42; 1.0 of the probes" in told
