"""Layers: adapters start as nothing, what is frozen is no input, and the run key decides the frozen A matrices."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import base_tensors
from numpy_models import NumpyModel

from coordinator.bench import tiny_models
from coordinator.build import chain
from coordinator.build.build import calibration_batches
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import Training
from zo.batches import collate, encode
from zo.bundle import Bundle
from zo.engine import Engine
from zo.examples import Example

QUERY = {"bert": "encoder.layer.2.attention.self.query", "llama": "layers.2.self_attn.q_proj"}


def draft(model: Path, out: Path, name: str, training: Training) -> Bundle:
    out.mkdir()
    task = tiny_models.MODELS[name][2]
    return Bundle(out, chain.write(chain.draft(Checkpoint(model), task, training, 2), out, "draft", task))


@pytest.mark.parametrize("model", ["bert-classifier", "llama", "llama-tied"])
@pytest.mark.parametrize("trainable", ["lora", "lora-fa", "norms", "full"])
def test_the_loss_at_entry_0_is_the_base_models(model: str, trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(model, trainable)
    config, weights, task = tiny_models.MODELS[model]
    batch = calibration_batches(bundle, tiny_models.examples(task))[0]
    base = NumpyModel(config, weights, task.head, rank=4, alpha=8.0, run_key=7).loss({}, batch.fields)
    assert Engine(bundle, bundle.parameters()).forward(batch)[0] == pytest.approx(base, abs=2e-5)


@pytest.mark.parametrize("trainable", ["lora", "lora-fa"])
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_b_starts_at_zero(model: str, trainable: str, bundles: Callable[..., Bundle]) -> None:
    tensors = bundles(model, trainable).initial_tensors()
    found = [values for name, values in tensors.items() if name.endswith("lora_B")]
    assert len(found) == 6
    assert not any(values.any() for values in found)


def test_a_is_trained_in_lora_and_frozen_in_lora_fa(bundles: Callable[..., Bundle]) -> None:
    trained, frozen = bundles("bert", "lora"), bundles("bert", "lora-fa")
    name = f"{QUERY['bert']}.lora_A"
    assert name in trained.initial_tensors()
    assert name not in frozen.initial_tensors()
    assert name in base_tensors(frozen)
    assert name not in base_tensors(trained)


@pytest.mark.parametrize("trainable", ["lora", "lora-fa"])
def test_a_is_the_signs_of_a_direction_of_the_run_key(trainable: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    config, weights, task = tiny_models.MODELS["llama"]
    bundle = draft(folders("llama"), tmp_path / "out", "llama", Training(trainable, rank=4, alpha=8.0, run_key=123456))
    plain = NumpyModel(config, weights, task.head, rank=4, alpha=8.0, run_key=123456)
    held = bundle.initial_tensors() if trainable == "lora" else base_tensors(bundle)
    scale = 1.0 if trainable == "lora" else 2.0  # alpha / rank, which a frozen A already holds
    np.testing.assert_allclose(held[f"{QUERY['llama']}.lora_A"], scale * plain.frozen_a(4, 32), atol=1e-6)


def test_the_run_key_decides_the_frozen_a_and_nothing_else(folders: Callable[[str], Path], tmp_path: Path) -> None:
    bases = {}
    for run_key in (1, 2):
        bundle = draft(folders("bert"), tmp_path / str(run_key), "bert", Training("lora-fa", rank=4, run_key=run_key))
        bases[run_key] = base_tensors(bundle)
    for name, values in bases[1].items():
        assert np.array_equal(values, bases[2][name]) == (not name.endswith("lora_A")), name


def test_no_two_adapters_share_their_a(bundles: Callable[..., Bundle]) -> None:
    frozen = base_tensors(bundles("bert", "lora-fa"))
    matrices = [values.tobytes() for name, values in frozen.items() if name.endswith("lora_A")]
    assert len(set(matrices)) == len(matrices) == 6


@pytest.mark.parametrize(("model", "precision"), [("bert", "int8"), ("llama", "int8"), ("llama", "w8"), ("bert", "w4")])
def test_the_same_start_in_every_precision(model: str, precision: str, bundles: Callable[..., Bundle]) -> None:
    trainable = "lora" if precision == "int8" else "lora-fa"
    exact, coarse = (bundles(model, trainable, each) for each in ("fp32", precision))
    assert exact.parameters().digest() == coarse.parameters().digest()
    assert exact.manifest.groups == coarse.manifest.groups


@pytest.mark.parametrize("trainable", ["lora", "lora-fa", "norms", "full"])
def test_initial_values_leave_sixteen_fold_room(trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("llama", trainable)
    tensors = bundle.initial_tensors()
    for group in bundle.manifest.groups:
        assert all(np.abs(tensors[tensor.name]).max() <= group.unit * 2**20 for tensor in group.tensors)


def test_half_and_brain_floats_are_read_as_float32(tmp_path: Path) -> None:
    config, weights, _ = tiny_models.MODELS["bert"]
    folder = tiny_models.save(tmp_path / "model", config, {name: values.astype(np.float16) for name, values in weights.items()})
    name = "encoder.layer.0.output.dense.weight"
    found = Checkpoint(folder)[name]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, weights[name].astype(np.float16).astype(np.float32))
    save_brain_floats(folder / "model.safetensors", weights)
    for name, values in weights.items():
        found = Checkpoint(folder)[name]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, cut(values))


def save_brain_floats(path: Path, weights: dict[str, np.ndarray]) -> None:
    """A safetensors file of bfloat16, which numpy does not know: the upper halves of float32."""
    header, place = {}, 0
    for name, values in weights.items():
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [place, place + 2 * values.size]}
        place += 2 * values.size
    text = json.dumps(header).encode()
    halves = b"".join((values.view(np.uint32) >> 16).astype("<u2").tobytes() for values in weights.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + halves)


def cut(values: np.ndarray) -> np.ndarray:
    """float32 with the lower half of its bits zero."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def test_a_bundle_can_be_built_from_brain_floats(tmp_path: Path) -> None:
    config, weights, task = tiny_models.MODELS["llama"]
    folder = tiny_models.save(tmp_path / "model", config, weights)
    save_brain_floats(folder / "model.safetensors", weights)
    bundle = draft(folder, tmp_path / "out", "llama", Training(rank=4, alpha=8.0, run_key=7))
    batch = calibration_batches(bundle, tiny_models.examples(task))[0]
    plain = NumpyModel(config, {name: cut(values) for name, values in weights.items()}, task.head, rank=4, alpha=8.0, run_key=7)
    assert Engine(bundle, bundle.parameters()).forward(batch)[0] == pytest.approx(plain.loss({}, batch.fields), abs=2e-5)


def test_heads_may_be_together_wider_than_the_model(tmp_path: Path) -> None:
    config, weights, task = tiny_models.LLAMA | {"head_dim": 16}, tiny_models.llama_weights(tied=True, head_width=16), tiny_models.LANGUAGE
    folder = tiny_models.save(tmp_path / "model", config, weights)
    bundle = draft(folder, tmp_path / "out", "llama-tied", Training(rank=4, alpha=8.0, run_key=7))
    batch = calibration_batches(bundle, tiny_models.examples(task))[0]
    plain = NumpyModel(config, weights, task.head, rank=4, alpha=8.0, run_key=7)
    assert Engine(bundle, bundle.parameters()).forward(batch)[0] == pytest.approx(plain.loss({}, batch.fields), abs=2e-5)
    assert bundle.manifest.dimensions.adapters(4) == sum(group.size for group in bundle.manifest.groups if group.kind == "body")


def test_gelu_new_is_the_tanh_form(tmp_path: Path) -> None:
    config, weights, _ = tiny_models.MODELS["bert-classifier"]
    losses = []
    for name in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        folder = tiny_models.save(tmp_path / name, config | {"hidden_act": name}, weights)
        bundle = draft(folder, tmp_path / f"out-{name}", "bert-classifier", Training())
        losses.append(Engine(bundle, bundle.parameters()).forward(calibration_batches(bundle, ())[0])[0])
    assert losses[1] == losses[2]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.01)


@pytest.mark.parametrize("model", ["bert", "bert-classifier", "llama"])
def test_longer_rows_in_the_batch_do_not_change_a_row(model: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(model)
    engine, task, tokenizer = Engine(bundle, bundle.parameters()), bundle.manifest.task, bundle.tokenizer()
    short, long = (encode(Example(" ".join(tiny_models.WORDS[:words]), 0), task, tokenizer) for words in (5, 15))
    alone, beside = collate(short, task), collate([*short, *long], task)
    assert beside.fields["input_ids"].shape[1] > alone.fields["input_ids"].shape[1]
    expected = engine.forward(alone)[1]
    np.testing.assert_allclose(engine.forward(beside)[1][: len(expected)], expected, atol=1e-5)
