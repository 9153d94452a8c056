"""Calibration: probe sizes in each group's own units, and the largest eps among those that measure well."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from coordinator.bench import tiny_models
from zo.batches import Batch, collate, encode
from zo.bundle import Bundle
from zo.calibration import CANDIDATES, choose, correlation_here, measure
from zo.engine import Engine
from zo.errors import UserError
from zo.lattice import snap
from zo.manifest import Calibration
from zo.parameters import Parameters
from zo.plan import Node
from zo.planning import kinds, one_level, probe_sizes


def measured(*correlations: float) -> list[Calibration]:
    """One a candidate, from the smallest on."""
    return [Calibration("body", size, 1.0, 0.1, 0.0, 0.5, r) for size, r in zip(CANDIDATES, correlations, strict=False)]


def batches(bundle: Bundle, count: int = 2) -> list[Batch]:
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    rows = [[row for example in tiny_models.examples(task, 6, seed) for row in encode(example, task, tokenizer)] for seed in range(count)]
    return [collate(each, task) for each in rows]


class Quadratic(Engine):
    """Loss = 1 + 3 * (first value of the head's bias) + curvature * (all its values) squared, with an error of its own."""

    curvature = 0.0
    error: Callable[[int], float] = staticmethod(lambda place: 0.0)

    def __init__(self, bundle: Bundle) -> None:
        self.manifest, self.parameters, self.calls = bundle.manifest, bundle.parameters(), 0

    def probe(self, node: Node, batch: Batch, go_on: Callable[[], None] = lambda: None) -> np.ndarray:
        losses = []
        for direction in range(node.count):
            for sign in (1, -1):
                moved = self.parameters.copy()
                moved.add(node.terms(direction, sign))
                self.calls += 1
                losses.append(self.loss(moved.tensor("head.bias")) + self.error(self.calls))
        return np.array(losses)

    def forward(self, batch: Batch) -> tuple[float, np.ndarray]:
        return self.loss(self.parameters.tensor("head.bias")), np.empty(0)

    def loss(self, bias: np.ndarray) -> float:
        return 1 + 3 * float(bias[0]) + self.curvature * float(bias.astype(np.float64) @ bias)


# --- plans ---


def test_kinds_are_those_of_the_groups(bert_bundle: Bundle, llama_bundle: Bundle) -> None:
    assert kinds(bert_bundle.manifest) == ("body", "head")
    assert kinds(llama_bundle.manifest) == ("body",)


@pytest.mark.parametrize("trainable", ["lora-fa", "norms", "full"])
def test_e_is_eps_in_each_groups_own_unit(trainable: str, bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("bert", trainable).manifest
    sizes = probe_sizes(manifest, {"body": -6, "head": -3})
    eps = {group: size.log2_e + manifest.groups[group].log2_unit for size in sizes for group in size.groups}
    assert eps == {group.id: {"body": -6, "head": -3}[group.kind] for group in manifest.groups}
    assert len({size.log2_e for size in sizes}) == len(sizes)


def test_kinds_that_are_not_named_are_left_alone(bert_bundle: Bundle) -> None:
    groups = [group for size in probe_sizes(bert_bundle.manifest, {"head": -3}) for group in size.groups]
    assert groups == [group.id for group in bert_bundle.manifest.groups if group.kind == "head"]


def test_plain_mezo_begins_at_the_lowest_perturbed_stage(bert_bundle: Bundle) -> None:
    last = len(bert_bundle.manifest.stages) - 1
    assert one_level(bert_bundle.manifest, {"body": -3, "head": -3}, 5, 7).stage == 0
    node = one_level(bert_bundle.manifest, {"head": -3}, 5, 7)
    assert (node.stage, node.first_seed, node.count, node.child) == (last, 5, 7, None)


# --- choosing ---


@pytest.mark.parametrize(
    ("correlations", "chosen"),
    [
        ((1.0, 1.0, 1.0, 1.0, 0.999, 0.99), -0),
        ((1.0, 1.0, 0.999, 0.93, 0.72), -6),
        ((0.04, 0.28, 0.51, 0.79, 0.965, 0.69), -2),
        ((0.9, 0.5), -10),
        ((0.1, -0.2, 0.6, 0.5), -6),
    ],
)
def test_the_largest_eps_within_two_percent_of_the_best_is_chosen(correlations: Sequence[float], chosen: int) -> None:
    assert choose(measured(*correlations))[0].log2_eps == chosen


@pytest.mark.parametrize(("kind", "alone"), [("body", -8), ("head", -6)])
def test_probes_of_a_head_alone_are_larger(kind: str, alone: int) -> None:
    (found,) = choose([dataclasses.replace(each, kind=kind) for each in measured(1.0, 1.0, 0.96, 0.9)])
    assert (found.log2_eps, found.log2_eps_apart) == (-8, alone)


def test_a_kind_whose_signal_would_drown_the_others_shrinks() -> None:
    body = [Calibration("body", e, 2.0**e, 0, 0, 0, 1) for e in (-8, -6, -4, -2)]
    head = [Calibration("head", e, 16 * 2.0**e, 0, 0, 0, 1) for e in (-8, -6, -4, -2)]
    assert [(c.kind, c.log2_eps) for c in choose([*body, *head])] == [("body", -2), ("head", -6)]


def test_a_kind_does_not_shrink_into_its_own_noise() -> None:
    body = [Calibration("body", e, 2.0**e, 0, 0, 0, c) for e, c in ((-6, 0.3), (-4, 0.8), (-2, 1))]
    head = [Calibration("head", -8, 2.0**-8, 0, 0, 0, 1)]
    assert choose([*body, *head])[0].log2_eps == -4


def test_what_was_measured_for_the_chosen_eps_is_kept() -> None:
    (found,) = choose(measured(0.5, 1.0))
    assert found == dataclasses.replace(measured(0.5, 1.0)[1], log2_eps_apart=found.log2_eps, curvature_apart=0.5)


def test_nothing_that_measures_the_slope_is_an_error_for_a_person() -> None:
    with pytest.raises(UserError):
        choose(measured(-0.4, 0.0))


# --- measuring ---


def test_an_exact_linear_loss_is_measured_without_noise_or_bias(bert_bundle: Bundle) -> None:
    engine = Quadratic(bert_bundle)
    found = measure(engine, engine, "head", batches(bert_bundle), 8)
    assert [m.log2_eps for m in found] == list(CANDIDATES)
    for m in found:
        assert m.correlation == pytest.approx(1)
        assert m.bias == pytest.approx(0, abs=1e-9)
        assert m.signal == pytest.approx(3 * 2.0**m.log2_eps)
        assert m.noise == pytest.approx(0, abs=1e-9)
        assert m.curvature == pytest.approx(0, abs=1e-9)


def test_curvature_is_eps_squared_times_the_trace(bert_bundle: Bundle) -> None:
    engine = Quadratic(bert_bundle)
    engine.curvature = 0.25
    for m in measure(engine, engine, "head", batches(bert_bundle), 8):
        trace = 2 * 0.25 * 3  # of three values
        assert m.curvature == pytest.approx(trace * 4.0**m.log2_eps)


@pytest.mark.parametrize("seed", range(8))
def test_noise_that_drowns_small_steps_leads_to_large_ones(seed: int, bert_bundle: Bundle) -> None:
    noisy, generator = Quadratic(bert_bundle), np.random.default_rng(seed)
    noisy.error = lambda place: 0.03 * generator.standard_normal()
    found = measure(noisy, Quadratic(bert_bundle), "head", batches(bert_bundle), 12)
    assert choose(found)[0].log2_eps >= -4
    assert found[-1].noise == pytest.approx(0.03 / np.sqrt(2), rel=0.5)


def test_a_loss_that_is_not_finite_counts_as_no_correlation(bert_bundle: Bundle) -> None:
    broken = Quadratic(bert_bundle)
    broken.error = lambda place: np.nan if place > 2 * 16 else 0.0  # from the second candidate on
    found = measure(broken, Quadratic(bert_bundle), "head", batches(bert_bundle), 8)
    assert [m.correlation for m in found] == [pytest.approx(1), 0.0]
    assert choose(found)[0].log2_eps == CANDIDATES[0]


@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("llama", "norms"), ("bert-classifier", "full")])
def test_float32_bundles_measure_the_slope_well(model: str, trainable: str, bundles: Callable[..., Bundle]) -> None:
    calibration = bundles(model, trainable).manifest.calibration
    assert {c.kind for c in calibration} == set(kinds(bundles(model, trainable).manifest))
    for c in calibration:
        assert c.correlation > 0.97
        assert abs(c.bias) < 0.3
        assert c.noise < c.signal


def test_int8_wants_larger_probes_than_float32(bundles: Callable[..., Bundle]) -> None:
    exact, coarse = bundles("bert"), bundles("bert", precision="int8")
    assert coarse.manifest.log2_eps("body") >= exact.manifest.log2_eps("body")
    assert next(c for c in coarse.manifest.calibration if c.kind == "body").correlation > 0.8


@pytest.mark.parametrize("both", [False, True], ids=["exact is finer", "exact alike"])
def test_candidates_smaller_than_a_unit_are_passed_over(both: bool, bert_bundle: Bundle) -> None:
    engine, manifest = Quadratic(bert_bundle), bert_bundle.manifest
    groups = tuple(dataclasses.replace(group, log2_unit=-5) if group.kind == "head" else group for group in manifest.groups)
    tensors = bert_bundle.initial_tensors()
    snapped = {tensor.name: snap(tensors[tensor.name], group.log2_unit) for group in groups for tensor in group.tensors}
    engine.manifest = dataclasses.replace(manifest, groups=groups)
    engine.parameters = Parameters(manifest.run_key, groups, snapped)
    found = measure(engine, engine if both else Quadratic(bert_bundle), "head", batches(bert_bundle), 8)
    assert [m.log2_eps for m in found] == [size for size in CANDIDATES if size >= -5]
    assert 0 < len(found) < len(CANDIDATES)
    assert all(m.signal == pytest.approx(3 * 2.0**m.log2_eps) for m in found)
    assert all(m.correlation == pytest.approx(1) for m in found)


@pytest.mark.parametrize("call", range(1, 9))
def test_a_check_of_the_probes_can_be_stopped_and_leaves_the_parameters_as_they_were(call: int, llama_bundle: Bundle) -> None:
    engine, calls = Engine(llama_bundle, llama_bundle.parameters(), max_rows=1), 0
    (batch,), before = batches(llama_bundle, 1), engine.parameters.digest()

    def count() -> None:
        nonlocal calls
        calls += 1

    assert correlation_here(engine, "body", batch, 2, count) == correlation_here(engine, "body", batch, 2)
    assert engine.parameters.digest() == before
    assert calls >= 8
    stop_at = calls * call // 8
    calls = 0

    def stop() -> None:
        count()
        if calls == stop_at:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        correlation_here(engine, "body", batch, 2, stop)
    assert calls == stop_at
    assert engine.parameters.digest() == before


def test_measuring_changes_no_bit(llama_bundle: Bundle) -> None:
    parameters = llama_bundle.parameters()
    before, engine = parameters.digest(), Engine(llama_bundle, parameters)
    measure(engine, engine, "body", batches(llama_bundle, 1), 2)
    assert parameters.digest() == before
