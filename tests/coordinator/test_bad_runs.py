"""Runs that go wrong by data or devices: they stop, or carry on with a reason, and what they export is no worse than the start."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from coordinator import replay
from coordinator.bench import tiny_models
from coordinator.config import Round, RunConfig
from coordinator.simulation import Simulation
from zo import evaluation
from zo.batches import Batch, collate, encode
from zo.bundle import Bundle
from zo.examples import Example
from zo.messages import Report
from zo.recipe import Split
from zo.sampling import Sampler

DEVICES, ROUNDS, EACH = 5, 40, 60


class TooLarge(Simulation):
    """The first device's scalars are a hundred times what it measured."""

    def _work(self, device: int, sampler: Sampler) -> Report:
        report = super()._work(device, sampler)
        limit = self.rounds.plans.grid.limit
        return report if device else replace(report, scalars=np.clip(100 * report.scalars, -limit, limit))


class Constant(Simulation):
    """Nothing that a device tries changes its loss."""

    def _work(self, device: int, sampler: Sampler) -> Report:
        report = super()._work(device, sampler)
        same = tuple(self.rounds.plans.grid.nearest(1.0) for _ in report.held_out)
        return replace(report, scalars=np.zeros_like(report.scalars), held_out=same)


def shares(bundle: Bundle) -> list[list[Example]]:
    """Of every device; labels can be told from the text."""
    return [tiny_models.examples(bundle.manifest.task, EACH, device) for device in range(DEVICES)]


def shuffled(examples: Sequence[Example]) -> list[Example]:
    labels = np.random.default_rng(0).permutation([example.label for example in examples])
    return [replace(example, label=int(label)) for example, label in zip(examples, labels, strict=True)]


def wrong(examples: Sequence[Example]) -> list[Example]:
    return [replace(example, label=(example.label + 1) % 3) for example in examples]


def batches(bundle: Bundle, examples: Sequence[Example]) -> list[Batch]:
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    return [collate([row for each in examples for row in encode(each, task, tokenizer)], task)]


def fly(bundle: Bundle, data: list[list[Example]], kind: Callable[..., Simulation] = Simulation, **changed: Any) -> tuple[Any, list[float]]:
    """The rounds after the run, and the class-balanced loss of fresh examples with right labels at the start, the end, and the export."""
    settings = {"rounds": ROUNDS, "round": Round(DEVICES, DEVICES), "split": Split((2,), (64,))} | changed
    fleet = kind(bundle, RunConfig(str(bundle.folder), **settings), data, 0)
    validation = batches(bundle, tiny_models.examples(bundle.manifest.task, 90, 77))
    test = batches(bundle, tiny_models.examples(bundle.manifest.task, 90, 78))
    losses = [evaluation.evaluate(fleet.engine, test)["balanced_loss"]]
    for point in fleet.run(validation, range(0, ROUNDS, 4)):
        fleet.rounds.store.add_evaluation(fleet.rounds.run.id, fleet.rounds.ledger.entry, "validation", point.metrics)
    losses.append(evaluation.evaluate(fleet.engine, test)["balanced_loss"])
    best = replay.best_entry(fleet.rounds.store, fleet.rounds.run.id)
    replay.move(fleet.rounds.ledger.replica, fleet.rounds.store, fleet.rounds.run, best)
    return fleet.rounds, [*losses, evaluation.evaluate(fleet.engine, test)["balanced_loss"]]


def events(rounds: Any) -> list[str]:
    return [kind for _, kind, _ in rounds.store.events(rounds.run.id)]


def test_an_ordinary_run_learns(bert_bundle: Bundle) -> None:
    rounds, (start, end, exported) = fly(bert_bundle, shares(bert_bundle))
    assert max(end, exported) < 0.9 * start
    assert rounds.finished


def test_labels_shuffled_at_random_teach_nothing_and_ruin_nothing(bert_bundle: Bundle) -> None:
    rounds, (start, end, exported) = fly(bert_bundle, [shuffled(share) for share in shares(bert_bundle)])
    assert rounds.finished or rounds.paused
    assert exported <= start
    assert end < start + 0.5


def test_one_device_with_all_labels_wrong_does_not_lead_the_others_astray(bert_bundle: Bundle) -> None:
    first, *others = shares(bert_bundle)
    rounds, (start, end, exported) = fly(bert_bundle, [wrong(first), *others])
    assert rounds.finished
    assert max(end, exported) < 0.95 * start


def test_a_device_that_reports_a_hundred_times_too_much_is_named_and_held(bert_bundle: Bundle) -> None:
    rounds, (start, end, exported) = fly(bert_bundle, shares(bert_bundle), TooLarge)
    assert any(kind == "tempered" and "device 0 " in text for _, kind, text in rounds.store.events(rounds.run.id))
    assert max(end, exported) < 0.95 * start


def test_a_loss_that_never_changes_ends_the_run_with_a_reason_and_no_change(bert_bundle: Bundle) -> None:
    rounds, (start, end, exported) = fly(bert_bundle, shares(bert_bundle), Constant, rounds=200)
    assert start == end == exported
    assert "autopilot: stop" in events(rounds)
    assert rounds.ledger.entry < 200
