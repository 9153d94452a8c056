"""`scripts/bench activation`: each side tries what it says, and costs are told from traces."""

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


def test_the_others_get_a_multiple_of_the_rounds(fleets: Fleets) -> None:
    assert [fleets.side("by time", 0, 1.0, multiple).rounds.config.rounds for multiple in (0.4, 1.0, 1.3, 2.0)] == [1, 2, 3, 4]


def test_each_side_gets_the_rate_that_ends_lowest_on_average() -> None:
    losses = {1.0: (0.5, 0.5), 2.0: (0.1, 0.8), 4.0: (0.45, 0.5)}
    tried = {Job("all", 1.0, rate, seed): loss for rate, each in losses.items() for seed, loss in enumerate(each)}
    assert activation.best_rates(tried) == {("all", 1.0): 2.0}
    assert activation.best_rates(tried | {Job("all", 1.0, 2.0, 2): 0.9}) == {("all", 1.0): 4.0}


def test_losses_are_compared_by_seed() -> None:
    found = {Job("all", 1.0, 2.0, seed): loss for seed, loss in enumerate((0.5, 0.3))}
    found |= {Job("by memory", 1.3, 4.0, seed): loss for seed, loss in enumerate((0.48, 0.24))}
    told = activation.summed(found)
    assert told["loss_by_memory_1.3"] == {"mean": 0.36, "rate": 4.0, "seeds": [0.48, 0.24]}
    assert told["excess_by_memory_1.3"] == {"mean": -0.04, "se": 0.02}


def test_a_whole_comparison_in_small(fleets: Fleets) -> None:
    found = activation.measure(fleets, 2, (1.0, 2.0))
    assert len(found["tried"]) == len(activation.SIDES) * 2 * len(activation.RATE_SEEDS)
    assert found["loss_all"]["seeds"] == [round(fleets.loss(Job("all", 1.0, found["loss_all"]["rate"], seed)), 4) for seed in range(2)]
    assert "by_time_1.3" not in activation.told(found)
    assert activation.told(found).count("probes") == 5
