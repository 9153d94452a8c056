"""The engine gives what the plain definition gives, whichever way it walks a plan, and leaves the parameters as they were."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from numpy_models import NumpyModel
from tiny_walks import Countdown, Stop, batch_of, moved, plan

from coordinator.bench import tiny_models
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import BundleError
from zo.manifest import TRAINABLE_SETS
from zo.parameters import Parameters
from zo.plan import Node, ProbeSize
from zo.reference import probe
from zo.terms import Term

CASES = [(model, trainable) for model in tiny_models.MODELS for trainable in TRAINABLE_SETS]
EXACT = 2e-5  # nats: float32 against float64


def numpy_model(model: str, bundle: Bundle) -> NumpyModel:
    config, weights, task = tiny_models.MODELS[model]
    return NumpyModel(config, weights, task.head, rank=4, alpha=8.0, run_key=bundle.manifest.run_key)


class OneByOne(Engine):
    """Walks every plan in place, also where branches would do."""

    def in_place(self, node: Node) -> bool:
        return True


# --- against the reference ---


@pytest.mark.parametrize(("model", "trainable"), CASES)
def test_unperturbed_logits_and_loss_are_those_of_plain_numpy(model: str, trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(model, trainable)
    parameters, batch, plain = moved(bundle), batch_of(bundle), numpy_model(model, bundle)
    loss, logits = Engine(bundle, parameters).forward(batch)
    assert loss == pytest.approx(plain.loss(parameters.tensors(), batch.fields), abs=EXACT)
    np.testing.assert_allclose(logits, plain.logits(parameters.tensors(), batch.fields), atol=1e-4)


@pytest.mark.parametrize(("model", "trainable"), CASES)
def test_probes_are_those_of_the_plain_definition(model: str, trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(model, trainable)
    parameters, batch, plain, node = moved(bundle), batch_of(bundle), numpy_model(model, bundle), plan(bundle)
    expected = probe(parameters, node, lambda tensors: plain.loss(tensors, batch.fields))
    assert np.ptp(expected) > 100 * EXACT
    np.testing.assert_allclose(Engine(bundle, parameters).probe(node, batch), expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("llama", "norms"), ("llama", "full")])
def test_perturbing_some_groups_is_what_the_plain_definition_says(model: str, trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(model, trainable)
    parameters, batch, plain = moved(bundle), batch_of(bundle), numpy_model(model, bundle)
    first, last = bundle.manifest.groups[1], bundle.manifest.groups[-1]
    node = Node(0, 5, 2, (ProbeSize((first.id,), -6 - first.log2_unit), ProbeSize((last.id,), -4 - last.log2_unit)))
    expected = probe(parameters, node, lambda tensors: plain.loss(tensors, batch.fields))
    np.testing.assert_allclose(Engine(bundle, parameters).probe(node, batch), expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("max_rows", [1, 40, 384])
@pytest.mark.parametrize(("model", "trainable"), CASES)
def test_the_loss_alone_is_the_loss_that_comes_with_the_logits(
    model: str, trainable: str, max_rows: int, bundles: Callable[..., Bundle]
) -> None:
    bundle = bundles(model, trainable)
    engine = Engine(bundle, moved(bundle), max_rows=max_rows)
    for batch in (batch_of(bundle, 5), batch_of(bundle, 1)):
        assert engine.loss(batch) == engine.forward(batch)[0]


# --- the ways of walking agree ---


@pytest.mark.parametrize("model", ["bert", "bert-classifier", "llama"])
@pytest.mark.parametrize("trainable", ["lora", "norms"])
def test_branches_and_in_place_agree(model: str, trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(model, trainable)
    parameters, batch, node = moved(bundle), batch_of(bundle), plan(bundle)
    side_by_side, one_by_one = Engine(bundle, parameters), OneByOne(bundle, parameters)
    assert not side_by_side.in_place(node)
    np.testing.assert_allclose(one_by_one.probe(node, batch), side_by_side.probe(node, batch), atol=5e-6, rtol=0)


@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("llama", "lora"), ("llama", "full")])
@pytest.mark.parametrize("max_rows", [1, 40, 100, 200, 400])
def test_losses_do_not_depend_on_how_many_rows_run_at_once(
    model: str, trainable: str, max_rows: int, bundles: Callable[..., Bundle]
) -> None:
    bundle = bundles(model, trainable)
    parameters, batch, node = moved(bundle), batch_of(bundle, 5), plan(bundle, count=5)
    whole, parted = Engine(bundle, parameters, max_rows=10**6), Engine(bundle, parameters, max_rows=max_rows)
    found = parted.probe(node, batch)
    assert found.shape == (10,)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, whole.probe(node, batch), atol=2e-6, rtol=0)
    (loss, logits), (expected, expected_logits) = parted.forward(batch), whole.forward(batch)
    assert loss == pytest.approx(expected, abs=2e-6)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)


@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("llama", "full"), ("bert-classifier", "norms")])
def test_unperturbed_stages_below_may_run_once(model: str, trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(model, trainable)
    engine, batch = Engine(bundle, moved(bundle)), batch_of(bundle)
    stage = len(bundle.manifest.stages) - 2
    sizes = tuple(ProbeSize((g,), -6 - bundle.manifest.groups[g].log2_unit) for g in bundle.manifest.stages[stage].groups)
    from_the_start, from_the_stage = Node(0, 8, 3, sizes), Node(stage, 8, 3, sizes)
    np.testing.assert_allclose(engine.probe(from_the_stage, batch), engine.probe(from_the_start, batch), atol=2e-6, rtol=0)


def test_a_plan_for_the_head_alone_begins_at_the_head(bert_bundle: Bundle) -> None:
    node = plan(bert_bundle, count=20, sizes={"head": -4})
    assert node.stage == len(bert_bundle.manifest.stages) - 1
    losses = Engine(bert_bundle, moved(bert_bundle), max_rows=10**6).probe(node, batch_of(bert_bundle))
    assert len(set(losses)) == 40


def test_threads_of_onnxruntime_do_not_matter(llama_bundle: Bundle) -> None:
    parameters, batch, node = moved(llama_bundle), batch_of(llama_bundle), plan(llama_bundle)
    one, two = (Engine(llama_bundle, parameters, threads=threads).probe(node, batch) for threads in (1, 2))
    np.testing.assert_allclose(two, one, atol=2e-6, rtol=0)


def test_a_count_of_zero_gives_no_losses(bundles: Callable[..., Bundle]) -> None:
    for bundle in (bundles("bert"), bundles("llama", "full")):
        assert Engine(bundle, bundle.parameters()).probe(dataclasses.replace(plan(bundle), count=0), batch_of(bundle)).shape == (0,)


# --- what is left behind ---


@pytest.mark.parametrize("trainable", ["lora-fa", "full"])
@pytest.mark.parametrize("max_rows", [1, 200, 10**6], ids=["example by example", "in parts", "whole"])
def test_an_exception_of_go_on_ends_the_walk_and_changes_no_bit(trainable: str, max_rows: int, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("llama", trainable)
    parameters, batch, node = moved(bundle), batch_of(bundle), plan(bundle, count=2)
    engine, before, runs = Engine(bundle, parameters, max_rows=max_rows), parameters.digest(), Countdown(10**6)
    engine.probe(node, batch, runs)
    for stop in {0, runs.called // 2, runs.called - 1}:
        go_on = Countdown(stop)
        with pytest.raises(Stop):
            engine.probe(node, batch, go_on)
        assert go_on.called == stop + 1
        assert parameters.digest() == before


@pytest.mark.parametrize(("trainable", "runs"), [("lora-fa", 2), ("full", 8)])
def test_go_on_is_asked_before_every_run(trainable: str, runs: int, bundles: Callable[..., Bundle]) -> None:
    bundle, go_on = bundles("llama", trainable), Countdown(10**6)
    batch = batch_of(bundle)
    two_directions = 4 * batch.examples * batch.tokens
    Engine(bundle, bundle.parameters(), max_rows=two_directions).probe(plan(bundle, count=4), batch, go_on)
    assert go_on.called == runs


@pytest.mark.parametrize("trainable", TRAINABLE_SETS)
def test_a_walk_changes_no_bit(trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("llama", trainable)
    parameters = moved(bundle)
    before = parameters.digest()
    Engine(bundle, parameters).probe(plan(bundle), batch_of(bundle))
    assert parameters.digest() == before


@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("bert", "full"), ("llama", "norms")])
def test_forward_sees_what_is_added_to_the_parameters(model: str, trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(model, trainable)
    parameters, batch = bundle.parameters(), batch_of(bundle)
    engine = Engine(bundle, parameters)
    before = engine.forward(batch)[0]
    term = Term(tuple(group.id for group in bundle.manifest.groups), 1, np.array([2**14]))
    parameters.add([term])
    assert abs(engine.forward(batch)[0] - before) > 1e-4
    assert engine.forward(batch)[0] == Engine(bundle, parameters.copy()).forward(batch)[0]
    parameters.add([-term])
    assert engine.forward(batch)[0] == before


def test_probes_of_one_walk_do_not_reach_the_next(bert_bundle: Bundle) -> None:
    engine, batch = Engine(bert_bundle, moved(bert_bundle), max_rows=200), batch_of(bert_bundle)
    whole, head = plan(bert_bundle, count=2), plan(bert_bundle, count=2, sizes={"head": -4})
    first = engine.probe(whole, batch)
    engine.probe(head, batch)
    np.testing.assert_array_equal(engine.probe(whole, batch), first)


# --- what cannot be computed ---


@pytest.mark.parametrize("trainable", ["norms", "full"])
def test_losses_that_are_not_finite_come_through(trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("bert-classifier", trainable)
    values = bundle.initial_tensors()
    huge = tuple(dataclasses.replace(group, log2_unit=60) for group in bundle.manifest.groups)
    far = Parameters(7, huge, {name: np.full_like(tensor, 2.0**83) for name, tensor in values.items()})
    before = far.digest()
    node = Node(0, 1, 2, tuple(ProbeSize((group.id,), 20) for group in huge))
    losses = Engine(bundle, far).probe(node, batch_of(bundle))
    assert losses.shape == (4,)
    assert not np.isfinite(losses).any()
    assert far.digest() == before


def test_a_stage_that_is_no_graph_is_named(bert_bundle: Bundle, tmp_path) -> None:
    for name in bert_bundle.manifest.files:
        (tmp_path / name).write_bytes(b"no graph" if name == "fp32.stage_1.onnx" else (bert_bundle.folder / name).read_bytes())
    with pytest.raises(BundleError, match=r"stage_1\.onnx is no ONNX graph"):
        Engine(dataclasses.replace(bert_bundle, folder=tmp_path), bert_bundle.parameters())


# --- int8 ---


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_int8_is_near_float32(model: str, bundles: Callable[..., Bundle]) -> None:
    exact, coarse = bundles(model), bundles(model, precision="int8")
    losses = [Engine(bundle, moved(bundle)).forward(batch_of(bundle))[0] for bundle in (exact, coarse)]
    assert 0 < abs(losses[1] - losses[0]) < 0.3
