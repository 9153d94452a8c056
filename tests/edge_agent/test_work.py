"""From a plan to a report."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from coordinator.bench import tiny_models
from edge_agent.data import Dataset
from edge_agent.work import work
from zo.batches import Batch
from zo.bundle import Bundle
from zo.engine import Engine
from zo.estimators import Grid
from zo.messages import Report
from zo.plan import Node, Shape, WorkPlan
from zo.planning import kinds, one_level, seeded, tree
from zo.stride import losses
from zo.terms import Term

GRID, PLAN = Grid(14, 2.0), 2**32 - 7


class Losing(Engine):
    """Gives the losses it is told to."""

    told: tuple[float, ...] = ()

    def probe(self, node: Node, batch: Batch, go_on: Callable[[], None] = lambda: None) -> np.ndarray:
        return np.array(self.told) if self.told else super().probe(node, batch, go_on)


@pytest.fixture
def engine(bert_bundle: Bundle) -> Losing:
    return Losing(bert_bundle, bert_bundle.parameters())


@pytest.fixture
def dataset(bert_bundle: Bundle, tmp_path: Path) -> Dataset:
    lines = [json.dumps({"text": each.text, "label": each.label}) for each in tiny_models.examples(tiny_models.CLASSIFICATION, 30)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    task = bert_bundle.manifest.task
    return Dataset(tmp_path, task, bert_bundle.tokenizer(), held_out_share=0.2, held_out_most=32, balanced=True)


def plan(engine: Engine, count: int = 4, measure: bool = False, digest: bool = False) -> WorkPlan:
    sizes = {kind: engine.manifest.log2_eps(kind) for kind in kinds(engine.manifest)}
    return WorkPlan(9, 0, one_level(engine.manifest, sizes, 100, count), 6, measure, digest, GRID, PLAN)


def go_on() -> None:
    pass


def test_a_report_answers_its_plan(engine: Losing, dataset: Dataset) -> None:
    before = engine.parameters.digest()
    found = work(plan(engine, measure=True, digest=True), engine, dataset, go_on, run=3, device=5)
    assert (found.run, found.device, found.round, found.examples, found.dropped) == (3, 5, 9, 6, 0)
    assert (found.plan, found.precision) == (PLAN, "fp32")
    assert found.scalars.shape == (4,)
    assert np.any(found.scalars)
    assert found.digest == before == engine.parameters.digest()
    (loss,) = losses(engine, dataset.held_out_batches(6))
    assert found.held_out == (round(loss * 2**14),)
    assert found.spent.peak_memory_mib > 10


def test_what_is_not_asked_for_is_not_reported(engine: Losing, dataset: Dataset) -> None:
    found = work(plan(engine), engine, dataset, go_on)
    assert (found.held_out, found.digest) == ((), None)


def scalars(engine: Losing, dataset: Dataset, *losses: float) -> Report:
    engine.told = losses
    return work(plan(engine, len(losses) // 2), engine, dataset, go_on)


@pytest.mark.filterwarnings("error")
def test_losses_that_are_not_finite_are_dropped_and_counted(engine: Losing, dataset: Dataset) -> None:
    nan, inf = float("nan"), float("inf")
    found = scalars(engine, dataset, 1.5, 1.0, nan, 1.0, 1.0, inf, 1.0, -inf, nan, nan, 1.0, 1.25)
    assert found.scalars.tolist() == [2**12, 0, 0, 0, 0, -(2**11)]
    assert found.dropped == 4


def test_two_infinite_losses_of_a_pair_are_dropped_too(engine: Losing, dataset: Dataset) -> None:
    inf = float("inf")
    found = scalars(engine, dataset, inf, inf, 2.0, 1.0)
    assert (found.scalars.tolist(), found.dropped) == ([0, 2**13], 1)


def test_a_report_is_within_the_clip(engine: Losing, dataset: Dataset) -> None:
    found = scalars(engine, dataset, 1e30, 0.0, 0.0, 1e30, 4.0, 0.0)
    assert found.scalars.tolist() == [GRID.limit, -GRID.limit, GRID.limit]
    assert found.dropped == 0


def test_a_stop_between_probes_ends_the_work_with_the_parameters_restored(bundles: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = bundles("llama-tied", "full")
    engine = Engine(bundle, bundle.parameters())
    before, calls = engine.parameters.digest(), 0
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in tiny_models.sentences(10)))
    data = Dataset(tmp_path, bundle.manifest.task, bundle.tokenizer(), held_out_share=0.0, held_out_most=0, balanced=True)

    def stop_at_the_third() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        work(plan(engine), engine, data, stop_at_the_third)
    assert engine.parameters.digest() == before


def test_the_held_out_losses_along_the_stride_are_reported_and_the_parameters_restored(engine: Losing, dataset: Dataset) -> None:
    ids = tuple(group.id for group in engine.manifest.groups)
    stride, before = (Term(ids, 5, np.array([1 << 14, -(1 << 13)])),), engine.parameters.digest()
    found = work(plan(engine, measure=True), engine, dataset, go_on, stride)
    assert found.held_out == tuple(round(each * 2**14) for each in losses(engine, dataset.held_out_batches(6), stride))
    assert len(set(found.held_out)) == len(found.held_out) == 5
    assert engine.parameters.digest() == before


class Blown(Losing):
    """Its loss is not finite."""

    def losses(self, batch: Batch, changes: Sequence[Sequence[Term]]) -> np.ndarray:
        return np.full(len(changes), np.nan)


def test_a_held_out_loss_that_is_not_finite_is_not_reported(bert_bundle: Bundle, dataset: Dataset) -> None:
    engine = Blown(bert_bundle, bert_bundle.parameters())
    assert work(plan(engine, measure=True), engine, dataset, go_on).held_out == ()


def test_without_held_out_examples_there_is_no_held_out_loss(engine: Losing, dataset: Dataset) -> None:
    dataset.held_out = []
    assert work(plan(engine, measure=True), engine, dataset, go_on).held_out == ()


TREES = [
    Shape((2, 3), (2,)),
    Shape((2, 3), (1,)),
    Shape((2, 1, 3), (1, 2)),
    Shape((2, 3), (2,), joint=True),
    Shape((1, 1), (1,), joint=True),
]


@pytest.mark.parametrize("shape", TREES, ids=str)
def test_the_report_of_a_tree_tells_its_shape_and_a_scalar_of_every_direction(shape: Shape, engine: Losing, dataset: Dataset) -> None:
    sizes = {kind: engine.manifest.log2_eps(kind) for kind in kinds(engine.manifest)}
    root = seeded(tree(engine.manifest, sizes, shape), engine.manifest.run_key, 9, 5)
    asked = WorkPlan(9, 0, root, 6, False, True, GRID, PLAN)
    before = engine.parameters.digest()
    found = work(asked, engine, dataset, go_on, run=3, device=5)
    assert found.shape == shape
    assert found.scalars.shape == (shape.scalars,)
    assert np.count_nonzero(found.scalars) > shape.scalars // 2
    assert found.digest == before == engine.parameters.digest()
    engine.told = (1.0, float("nan"), *[1.5, 1.0] * (shape.scalars - 1))
    found = work(asked, engine, dataset, go_on)
    assert (found.dropped, found.scalars.tolist()) == (1, [0] + [2**12] * (shape.scalars - 1))
