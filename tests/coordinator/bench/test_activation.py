"""`scripts/bench activation`: each side tries what it says, and losses are compared by seed."""

from pathlib import Path

import pytest
from conftest import Bundles

from coordinator.bench import activation, tiny_models
from coordinator.bench.activation import Fleets, Job
from coordinator.demo import shares


@pytest.fixture
def fleets(bundles: Bundles, tmp_path: Path) -> Fleets:
    for number, name in enumerate(("train", "validation")):
        shares.write(tmp_path / f"{name}.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 60, number))
    return Fleets(bundles("bert", stages=3), tmp_path, 2)


def tried(fleets: Fleets, side: str) -> list[set[int]]:
    """Groups by device, in the first round."""
    simulation = fleets.side(Job(side, 1.0, 0))
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


def test_the_others_get_a_multiple_of_the_rounds(fleets: Fleets) -> None:
    assert [fleets.side(Job("by time", multiple, 0)).rounds.config.rounds for multiple in (0.4, 1.0, 1.3, 2.0)] == [1, 2, 3, 4]


def test_all_begin_with_the_rate_asked_for(fleets: Fleets) -> None:
    usual, faster = (Fleets(fleets.bundle, fleets.data, 2, rate).side(Job("by memory", 1.0, 0)).rounds.course for rate in (1.0, 4.0))
    assert faster.rates.by_kind["body"] == 4 * usual.rates.by_kind["body"]
    assert faster.rates.by_kind["head"] == 0


def test_losses_are_compared_by_seed() -> None:
    found = {Job("all", 1.0, seed): loss for seed, loss in enumerate((0.5, 0.3))}
    found |= {Job("by memory", 1.3, seed): loss for seed, loss in enumerate((0.48, 0.24))}
    told = activation.summed(found)
    assert told["loss_by_memory_1.3"] == {"mean": 0.36, "seeds": [0.48, 0.24]}
    assert told["excess_by_memory_1.3"] == {"mean": -0.04, "se": 0.02, "upper": 0.0}


def test_a_whole_comparison_in_small(fleets: Fleets) -> None:
    found = activation.measure(fleets, 2)
    assert found["loss_all"]["seeds"] == [round(fleets.loss(Job("all", 1.0, seed)), 4) for seed in range(2)]
    assert "by_time_1.3" not in activation.told(found)
    assert activation.told(found).count("probes") == 5
