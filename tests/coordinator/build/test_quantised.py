"""Weights in 8 and 4 bits: numpy, unpacking them itself, computes what ONNX Runtime computes with them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_models import NumpyModel
from safetensors.numpy import load_file, save_file

from coordinator.bench import tiny_models
from coordinator.build import chain
from coordinator.build.build import calibration_batches
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import Layers, Training
from zo import quantised
from zo.bundle import Bundle
from zo.calibration import correlation_here
from zo.engine import Engine
from zo.manifest import Calibration, Precision, TrainableSet

FEW_BITS: tuple[Precision, ...] = ("w8", "w4")
SHAPES = st.tuples(st.sampled_from((1, 2, 16, 31, 32, 33, 48, 64, 100, 172)), st.integers(1, 40))  # in, out


def dequantised(packed: np.ndarray, scales: np.ndarray, bits: int, inner: int) -> np.ndarray:
    """Weights [out, in] in float64, value by value as the operator's documentation states them."""
    outer, count, length = packed.shape
    assert length == 32 * bits // 8
    weight = np.empty((outer, count * 32))
    for place in range(count * 32):
        block, within = divmod(place, 32)
        octet = packed[:, block, within * bits // 8].astype(np.int64)
        code = octet if bits == 8 else octet >> 4 * (within % 2) & 15
        weight[:, place] = (code - 2 ** (bits - 1)) * scales.astype(np.float64).reshape(outer, count)[:, block]
    return weight[:, :inner]


def drawn(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal values, columns of very different size, one column of zeros."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape) * 10.0 ** generator.integers(-3, 3, shape[-1])
    values[..., 0] *= seed % 2
    return values.astype(np.float32)


@given(shape=SHAPES, bits=st.sampled_from((8, 4)), seed=st.integers(0, 99))
def test_every_weight_is_within_half_a_step_and_the_largest_of_a_block_is_exact(shape: tuple[int, int], bits: int, seed: int) -> None:
    weight, (inner, outer) = drawn(shape, seed), shape
    packed, scales = quantised.blocks(weight, bits)
    blocks = -(-inner // 32)
    assert (packed.dtype, packed.shape) == (np.uint8, (outer, blocks, 4 * bits))
    assert (scales.dtype, scales.shape) == (np.float32, (outer * blocks,))
    found, steps = dequantised(packed, scales, bits, inner), np.repeat(np.abs(scales).reshape(outer, blocks), 32, axis=1)[:, :inner]
    reached = np.abs(weight.T) <= (2 ** (bits - 1) - 0.5) * steps  # the other end of the range is a step short
    errors = np.abs(found - weight.T)
    assert np.all(errors <= np.where(reached, 0.5, 1.0) * steps * 1.0001)
    for start in range(0, inner, 32):
        part = weight.T[:, start : start + 32]
        furthest = np.abs(part).argmax(axis=1)[:, None]
        assert np.array_equal(*(np.take_along_axis(each, furthest, 1) for each in (part, found[:, start : start + 32])))


@settings(max_examples=40)
@given(
    shape=SHAPES,
    precision=st.sampled_from(FEW_BITS),
    lead=st.sampled_from([(1, 1, 1), (1, 2, 5), (2, 3, 40)]),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_layer_computes_with_the_dequantised_weights_in_float(
    shape: tuple[int, int], precision: Precision, lead: tuple[int, ...], biased: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (inner, outer), bits = shape, quantised.BITS[precision]
    weight, bias, x = drawn(shape, seed), drawn((outer,), seed), drawn((*lead, inner), seed + 1)
    layers, folder = Layers(None, Training(precision=precision)), tmp_path_factory.mktemp("layer")  # type: ignore[arg-type]
    y = layers.frozen_linear(layers.graph.input("x", [*"pbt", inner]), "layer", weight, bias if biased else None)
    layers.end({"y": [*"pbt", outer]}, y)
    save_file(layers.frozen.tensors, folder / "held")
    places = {name: ("held", *place) for name, place in chain._offsets(folder / "held").items()}
    onnx.save(layers.graph.model(layers.outputs[0], places), folder / "layer.onnx")
    held = load_file(folder / "held")
    exact = dequantised(held[f"layer.w{bits}"], held["layer.scale"], bits, inner)
    expected = x.astype(np.float64) @ exact.T + (bias if biased else 0)
    session = onnxruntime.InferenceSession(str(folder / "layer.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})[0]
    tolerance = 1e-5 * (np.abs(x).astype(np.float64) @ np.abs(exact).T + (np.abs(bias) if biased else 0))
    assert found.shape == expected.shape
    assert np.all(np.abs(found - expected) <= tolerance + 1e-30)


def unpacked(base: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of a bundle's base as a checkpoint would hold them."""
    weights = {}
    for name, values in base.items():
        stem, _, kind = name.rpartition(".")
        if kind in ("w8", "w4"):
            weights[stem] = dequantised(values, base[f"{stem}.scale"], int(kind[1]), 32 * values.shape[1])
        elif kind == "int8":
            weights[stem] = values * base[f"{stem}.scale"].astype(np.float64)
        elif kind != "scale":
            weights[name] = values
    return weights


@pytest.fixture
def draft(folders: Callable[[str], Path], tmp_path: Path) -> Callable[..., Bundle]:
    """draft(model, trainable, precision): a bundle without calibration, with probes of 2**-10."""

    def make(model: str, trainable: TrainableSet, precision: Precision) -> Bundle:
        out, task = tmp_path / f"{model}-{trainable}-{precision}", tiny_models.MODELS[model][2]
        out.mkdir()
        training = Training(trainable, precision, rank=4, alpha=8.0, run_key=7)
        manifest = chain.write(chain.draft(Checkpoint(folders(model)), task, training, 2), out, "draft", task)
        base = dataclasses.replace(manifest.base, calibration=(Calibration("body", -10, 1.0, 0.0, 0.0, 0.0, 1.0),))
        return Bundle(out, dataclasses.replace(manifest, bases={precision: base}))

    return make


@pytest.mark.parametrize("precision", FEW_BITS)
@pytest.mark.parametrize(
    ("model", "trainable"), [("bert-classifier", "lora-fa"), ("bert-classifier", "norms"), ("llama", "lora"), ("llama-tied", "norms")]
)
def test_a_model_is_the_one_with_the_dequantised_weights(
    model: str, trainable: TrainableSet, precision: Precision, draft: Callable[..., Bundle]
) -> None:
    bundle = draft(model, trainable, precision)
    config, weights, task = tiny_models.MODELS[model]
    prefix = "bert." if model == "bert-classifier" else "model."
    coarse = {prefix + name: values for name, values in unpacked(load_file(bundle.folder / bundle.manifest.base.file)).items()}
    if prefix == "model.":
        coarse["lm_head.weight"] = coarse.pop("model.lm_head.tied" if "model.lm_head.tied" in coarse else "model.lm_head.weight")
        config = config | {"tie_word_embeddings": False}
    matrices = {name for name, values in weights.items() if values.ndim == 2} - {"classifier.weight"}
    exact = {name for name in matrices if name not in coarse or np.array_equal(coarse[name], weights[name])}
    assert exact <= {"bert.embeddings.position_embeddings.weight"}  # all other matrices are quantised
    plain = NumpyModel(config, weights | coarse, task.head, rank=4, alpha=8.0, run_key=7)
    batch = calibration_batches(bundle, tiny_models.examples(task))[0]
    found = Engine(bundle, bundle.parameters()).forward(batch)[1]
    np.testing.assert_allclose(found, plain.logits(bundle.initial_tensors(), batch.fields), atol=1e-4)


@pytest.mark.parametrize("model", ["bert-classifier", "llama"])
def test_the_loss_is_smooth_at_the_smallest_probe_where_int8s_is_a_staircase(model: str, draft: Callable[..., Bundle]) -> None:
    found = {}
    for precision in (*FEW_BITS, "int8"):
        bundle = draft(model, "lora-fa", precision)
        batch = calibration_batches(bundle, tiny_models.examples(bundle.manifest.task))[0]
        found[precision] = correlation_here(Engine(bundle, bundle.parameters()), "body", batch, 8)
    assert found["w8"] > 0.99
    assert found["w4"] > 0.99
    assert found["int8"] < 0.9
