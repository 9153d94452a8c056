"""`scripts/bench blocks`: its figures are those of its fleets."""

import numpy as np

from coordinator.allocation import Base
from coordinator.bench import blocks
from coordinator.bench.random_fleets import ASKED, fleet, fleets, manifest_of


def test_random_fleets_are_the_same_every_time_and_differ_from_each_other() -> None:
    manifest = manifest_of("bert-base")
    first, second = (list(fleets(5, 20, manifest)) for _ in range(2))
    assert first == second
    assert len({len(each) for each in first}) > 1
    base = Base(manifest, ASKED)
    many = [base.fit(each.profile).capacity for each in fleet(np.random.default_rng(0), manifest, 300).values()]
    assert {each.most for each in many if each} == set(range(1, 13))
    assert len({each.lowest for each in many if each}) > 6


def test_the_figures_are_told() -> None:
    found = blocks.measure(30, count=4)
    assert found["greedy_gap_of"] == 4
    assert 0 <= found["greedy_gap_p95"] <= found["greedy_gap_most"]
    assert 0 < found["memory_saved"] <= found["memory_saved_with_slack"] < 1
    assert "30 devices, 32 blocks" in blocks.told(found)


def test_without_moves_the_rarest_first_is_worse_at_times() -> None:
    manifest, generator = manifest_of("bert-base"), np.random.default_rng(1)
    rows = [blocks._compared(each, manifest, 0.05, generator.uniform(0.5, 1.5, 12)) for each in fleets(12, 20, manifest)]
    assert max(row["rarest_first_gap"] for row in rows) > 1e-4 > max(row["greedy_gap"] for row in rows)
