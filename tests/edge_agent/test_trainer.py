"""Training for a run without a coordinator: a plan that was taken on gives a report, and leaves no trace in the parameters."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.bench import tiny_models
from coordinator.demo import shares
from edge_agent.config import AgentConfig, Privacy
from edge_agent.guest import Guest
from edge_agent.profile import Profiler
from edge_agent.state import State
from edge_agent.status import Status
from edge_agent.trainer import Trainer
from zo.batches import Batch
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import DataError, RunRefused
from zo.estimators import Grid
from zo.plan import Shape, WorkPlan
from zo.planning import kinds, one_level, tree

Make = Callable[..., Trainer]
GENESIS = bytes(range(32))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    shares.write(tmp_path / "data" / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30))
    state = State(tmp_path / "state", 1e9)
    config = AgentConfig(str(tmp_path / "data"), state=str(state.folder))

    def trainer(bundle: Bundle, data: str = "", kind: type[Profiler] = Profiler, **changed: Any) -> Trainer:
        given = dataclasses.replace(config, data=data or config.data, **changed)
        return Trainer(bundle, GENESIS, given, state, Status(state), Guest(threading.Event()), kind)

    yield trainer
    state.close()


def plan(bundle: Bundle, shape: Shape | None = None) -> WorkPlan:
    sizes = {kind: bundle.manifest.log2_eps(kind) for kind in kinds(bundle.manifest)}
    root = tree(bundle.manifest, sizes, shape) if shape else one_level(bundle.manifest, sizes, 100, 3)
    return WorkPlan(9, 0, root, 6, True, True, Grid(14, 2.0), 77)


def test_a_plan_gives_a_report_of_this_device_and_leaves_no_trace(bert_bundle: Bundle, make: Make) -> None:
    trainer, given = make(bert_bundle), plan(bert_bundle)
    before = trainer.replica.digest()
    assert trainer.take_on(given) == ""
    found = trainer.report(given, run=3, device=5)
    assert (found.run, found.device, found.round, found.plan, found.precision) == (3, 5, 9, 77, "fp32")
    assert found.scalars.shape == (3,)
    assert np.any(found.scalars)
    assert len(found.held_out) == 1
    assert found.digest == before == trainer.replica.digest()
    assert (trainer.replica.entry, trainer.replica.head) == (0, GENESIS)


class Noting(Profiler):
    """Notes what it times stages on."""

    def __init__(self, engine: Engine, batch: Batch, *given: Any) -> None:
        super().__init__(engine, batch, *given)
        self.batch = batch


@pytest.mark.parametrize("private", [True, False])
def test_under_privacy_nothing_of_its_examples_is_in_what_it_tells_of_itself(private: bool, bert_bundle: Bundle, make: Make) -> None:
    trainer = make(bert_bundle, kind=Noting, **({"dp": Privacy(clip=0.1, noise=10.0)} if private else {}))
    assert isinstance(trainer.profiler, Noting)
    assert (np.unique(trainer.profiler.batch.fields["input_ids"]).size == 1) == private
    trainer._parking._parked = ["body"]
    assert (trainer.profile().parked == ()) == private
    assert len(trainer.profile().stage_ns) == len(bert_bundle.manifest.stages)


def test_what_no_plan_may_ask_is_refused_before_any_work(bert_bundle: Bundle, make: Make) -> None:
    with pytest.raises(RunRefused):
        make(bert_bundle).take_on(dataclasses.replace(plan(bert_bundle), examples=10**9))


def test_data_without_examples_ends_it_before_anything_is_held(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        make(bert_bundle, str(tmp_path / "empty"))
