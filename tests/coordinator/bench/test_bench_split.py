"""`scripts/bench split`: what is counted is what runs, and costs are told from traces."""

import math
import shutil
from pathlib import Path

import pytest
from conftest import Bundles
from tiny_walks import SIZES, batch_of, moved, tree_of

from coordinator.bench import split, tiny_models
from coordinator.bench.counting import Counting
from coordinator.bench.fleets import DEVICES, EXAMPLES, Fleets, Trace
from coordinator.demo import shares
from zo.bundle import Bundle
from zo.engine import Engine
from zo.plan import Shape
from zo.planning import lowest_stage
from zo.split import forwards


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, name in enumerate(("train", "validation")):
        shares.write(tmp_path / f"{name}.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 60, number))
    return tmp_path


@pytest.mark.parametrize(
    "shape", [Shape((1, 8), (2,)), Shape((2, 3), (1,), True), Shape((1, 2, 4), (1, 2)), Shape((2, 1, 4), (1, 2), clean=True)]
)
def test_forward_passes_are_as_many_as_predicted(shape: Shape, data: Path, bert_bundle: Bundle) -> None:
    found = Fleets(bert_bundle, data, 2, shape).measured(1)
    assert found["forward_ratio"] == found["forward_ratio_predicted"] > (0.5 if shape.clean else 1)
    assert found["time_ratio"] > 0


@pytest.mark.parametrize("shape", [Shape((3,)), Shape((1, 2), (1,)), Shape((2, 3), (1,), clean=True), Shape((3,), clean=True)])
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_what_is_counted_of_any_model_is_what_is_predicted(model: str, shape: Shape, bundles: Bundles) -> None:
    bundle = bundles(model, "full")
    engine, batch, cost = Engine(bundle, moved(bundle)), batch_of(bundle), (0.5, 0.3, 0.2)
    engine.stages = counting = Counting(engine.stages, batch)  # type: ignore[assignment]
    engine.probe(tree_of(bundle, shape), batch)
    counted = sum(each * counting.branches[stage] for stage, each in enumerate(cost))
    assert counted == pytest.approx(forwards(shape, cost, lowest_stage(bundle.manifest, SIZES)))


def test_savings_and_gains_are_told_of_runs_on_real_rounds(data: Path, bert_bundle: Bundle, tmp_path: Path) -> None:
    fleets = Fleets(bert_bundle, data, 3, Shape((1, 4), (2,)))
    found = split.measure(fleets, 1, 2, tmp_path / "plot.png", rates=[1, 2], batches=[2, 8])
    (row,) = found["savings"]
    assert row["forwards"]["mezo"] > 0
    assert row["batch"]["mezo"] in (2, 8)
    assert row["rate"]["fedspzo"] in (1, 2)
    assert [(each["rate"], each["batch"]) for each in row["tried"]["mezo"]] == [(1, 2), (2, 2), (1, 8), (2, 8)]
    assert min(each["loss"] for each in row["tried"]["mezo"]) == row["loss"]
    assert len(found["body_gain"]["losses"]["both"]) == 2
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert "median saving" in split.told(found)


def test_all_runs_spend_as_many_forward_passes_whatever_their_shape_and_batch(data: Path, bert_bundle: Bundle) -> None:
    fleets = Fleets(bert_bundle, data, 12, Shape((2, 4), (2,)))
    whole = fleets.run(Shape((1,)), 0, 1.0, looks=()).forwards[-1]
    assert whole == pytest.approx(DEVICES * 12 * 2)
    for shape in (Shape((1,)), fleets.shape, Shape((4, 1), (2,), clean=True)):
        for batch in (4, 8):
            trace = fleets.run(shape, 0, 1.0, batch=batch, looks=())
            step = DEVICES * fleets.forwards(shape) * batch / EXAMPLES
            assert abs(trace.forwards[-1] - whole) <= step / 2 + 1e-9


def test_a_long_run_is_compared_with_the_linear_probe(data: Path, bert_bundle: Bundle) -> None:
    shutil.copy(data / "validation.jsonl", data / "test.jsonl")
    found = split.long_run(bert_bundle, data, 2, Shape((1, 4), (2,)), 1.0)
    assert found["final_loss"] > 0 < found["linear_probe_loss"]


def test_a_cost_is_where_the_loss_is_reached_first_and_infinite_where_it_is_not() -> None:
    trace = Trace(Shape((1,)), 1.0, 8, (0.0, 2.0, 4.0), (0.0, 0.5, 1.0), (0.9, 0.4, 0.5))
    assert trace.cost(0.5) == (2.0, 0.5)
    assert trace.cost(0.1) == (math.inf, math.inf)
