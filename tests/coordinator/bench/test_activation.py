"""`scripts/bench activation`: each side tries what it says, and costs are told from traces."""

from pathlib import Path

import pytest
from conftest import Bundles

from coordinator.bench import activation, tiny_models
from coordinator.bench.activation import Fleets, Trace
from coordinator.demo import shares


@pytest.fixture
def fleets(bundles: Bundles, tmp_path: Path) -> Fleets:
    for number, name in enumerate(("train", "validation")):
        shares.write(tmp_path / f"{name}.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 60, number))
    return Fleets(bundles("bert", stages=3), tmp_path, 2)


def tried(fleets: Fleets, side: str) -> list[set[int]]:
    """Groups by device, in the first round."""
    simulation = fleets.side(side, 0, 1.0)
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


def test_a_run_ends_at_its_target_and_the_figures_are_told(fleets: Fleets) -> None:
    found = activation.measure(fleets, 1, (1.0,))
    (row,) = found["seeds"]
    assert row["probes"]["all"] <= 2 * 8 * 2
    assert row["least"].keys() == fleets.sides.keys()
    assert "seed 0: validation loss" in activation.told(found)
    assert fleets.run("all", 0, 1.0, 2, target=100.0).probes == (0, 32)
    assert fleets.run("all", 0, 1.0, 4).probes == (0, 64)


def test_the_cost_is_that_of_the_first_look_at_the_target() -> None:
    trace = Trace(1.0, (0, 16, 32), (0.9, 0.5, 0.6))
    assert [trace.cost(loss) for loss in (0.95, 0.55, 0.5, 0.4)] == [0, 16, 16, float("inf")]
