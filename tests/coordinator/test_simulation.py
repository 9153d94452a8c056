"""A fleet in one process does what the real rounds do."""

import numpy as np
import pytest

from coordinator.bench import tiny_models
from coordinator.config import Round, RunConfig
from coordinator.replay import lowest_entry
from coordinator.simulation import Simulation
from zo.batches import collate, encode
from zo.bundle import Bundle
from zo.recipe import Probe, Split


def simulation(bundle: Bundle, seed: int = 0, **changed: object) -> Simulation:
    shares = [tiny_models.examples(bundle.manifest.task, 20, device) for device in range(3)]
    usual = {"rounds": 6, "round": Round(3, 3), "probe": Probe(examples=4), "split": Split((2,), (4,))}
    return Simulation(bundle, RunConfig(str(bundle.folder), **usual | changed), shares, seed)  # type: ignore[arg-type]


def validation(bundle: Bundle) -> list:
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    return [collate([row for each in tiny_models.examples(task, 8, 9) for row in encode(each, task, tokenizer)], task)]


def test_every_round_is_committed_and_looked_at_where_asked(bert_bundle: Bundle) -> None:
    fleet = simulation(bert_bundle)
    points = list(fleet.run(validation(bert_bundle), {2, 5}))
    assert [(point.round, point.probes) for point in points] == [(0, 0), (2, 12), (5, 30), (6, 36)]
    assert [entry.contributors for entry in fleet.rounds.store.entries(fleet.rounds.run.id)] == [3] * 6
    assert points[-1].metrics["loss"] != points[0].metrics["loss"]
    assert points[0].seconds == 0 < points[1].seconds < points[-1].seconds


def test_every_look_is_compared_with_the_lowest_one_before(bert_bundle: Bundle) -> None:
    points = list(simulation(bert_bundle, rounds=12).run(validation(bert_bundle), range(1, 13)))
    seen: dict[int, dict[str, float]] = {}
    for point in points:
        lowest = lowest_entry(seen)
        assert point.metrics["over"] == lowest
        assert point.metrics["rise"] == pytest.approx(point.metrics["balanced_loss"] - seen.get(lowest, point.metrics)["balanced_loss"])
        seen[point.round] = point.metrics
    assert any(point.metrics["over"] for point in points)


@pytest.mark.parametrize("algorithm", ["mezo", "fedspzo"])
def test_the_same_seed_draws_the_same_batches(algorithm: str, bert_bundle: Bundle) -> None:
    probed = [simulation(bert_bundle, seed, algorithm=algorithm).draw().fields["input_ids"] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(probed[0], probed[1])
    assert probed[0].shape != probed[2].shape or (probed[0] != probed[2]).any()


def test_a_run_ends_where_it_is_told_to(bert_bundle: Bundle) -> None:
    points = list(simulation(bert_bundle).run(validation(bert_bundle), range(1, 9), lambda point: point.round == 2))
    assert [point.round for point in points] == [0, 1, 2]
