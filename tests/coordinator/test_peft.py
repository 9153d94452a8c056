"""Adapters in PEFT's form: what it would add to the weights gives the engine's logits, and a bundle can begin with it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles
from numpy_models import NumpyModel
from safetensors.numpy import load_file, save_file
from test_export import batch, trained

from coordinator import peft
from coordinator.bench import tiny_models
from coordinator.build import chain
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import Training
from coordinator.cli import main
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import BundleError

Folders = Callable[[str], Path]
RANKS = (1, 2, 4)
KINDS = [
    ("bert", "lora", RANKS, 2),
    ("bert", "lora-fa", RANKS, 1),
    ("bert", "lora-fa", (), 0),
    ("bert-classifier", "lora", RANKS, 0),
    ("llama", "lora-fa", RANKS, 0),
    ("llama-tied", "lora", (), 0),
]


def merged_logits(model: str, folder: Path, bundle: Bundle, head: dict[str, np.ndarray]) -> np.ndarray:
    """Of a plain model whose weights have what PEFT adds to them."""
    config, weights, task = tiny_models.MODELS[model]
    settings, tensors = json.loads((folder / peft.CONFIG).read_text()), load_file(folder / peft.WEIGHTS)
    plain = NumpyModel(config, weights, task.head, rank=4, alpha=8.0, run_key=7)
    bare = "bert." if model == "bert-classifier" else "model." if model.startswith("llama") else ""
    layers = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    assert {layer.rpartition(".")[2] for layer in layers} == set(settings["target_modules"])
    for layer in layers:
        a, b = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
        assert a.shape[0] == b.shape[1] == settings["r"]
        name = layer.removeprefix("base_model.model." + bare) + ".weight"
        plain.weights[name] = plain.weights[name] + settings["lora_alpha"] / settings["r"] * b @ a
    return plain.logits(head, batch(bundle).fields)


@pytest.mark.parametrize(("model", "trainable", "ranks", "rank"), KINDS)
def test_what_peft_adds_gives_the_engines_logits(
    model: str, trainable: str, ranks: tuple[int, ...], rank: int, bundles: Bundles, tmp_path: Path
) -> None:
    bundle = bundles(model, trainable, ranks=ranks)
    run = trained(bundle, tmp_path)
    peft.export(bundle, run.replica, "run", tmp_path / "out", rank)
    head = {name: values for name, values in run.parameters.tensors().items() if name.startswith("head.")}
    expected = Engine(bundle, run.parameters, rank=rank).forward(batch(bundle))[1]
    assert np.abs(expected - Engine(bundle, bundle.parameters()).forward(batch(bundle))[1]).max() > 0.1
    np.testing.assert_allclose(merged_logits(model, tmp_path / "out", bundle, head), expected, atol=1e-4)
    if model == "bert":
        assert load_file(tmp_path / "out/head.safetensors").keys() == head.keys()
    if model == "bert-classifier":
        np.testing.assert_array_equal(
            load_file(tmp_path / "out" / peft.WEIGHTS)["base_model.model.classifier.weight"], head["head.weight"].T
        )


@pytest.mark.parametrize(
    ("model", "source", "ranks"), [("bert-classifier", "lora", RANKS), ("llama", "lora-fa", ()), ("llama-tied", "lora", RANKS)]
)
def test_a_bundle_begins_with_what_was_exported(
    model: str, source: str, ranks: tuple[int, ...], bundles: Bundles, folders: Folders, tmp_path: Path
) -> None:
    bundle = bundles(model, source, ranks=ranks)
    run = trained(bundle, tmp_path)
    peft.export(bundle, run.replica, "run", tmp_path / "out")
    adapter = peft.read(tmp_path / "out")
    training = Training("lora", rank=adapter.rank, alpha=adapter.alpha, run_key=7, ranks=ranks, adapter=adapter)
    made = tmp_path / "made"
    made.mkdir()
    task = tiny_models.MODELS[model][2]
    begun = Bundle(made, chain.write(chain.draft(Checkpoint(folders(model)), task, training, 2), made, "made", task))
    expected = Engine(bundle, run.parameters).forward(batch(bundle))[1]
    np.testing.assert_allclose(Engine(begun, begun.parameters()).forward(batch(bundle))[1], expected, atol=2e-4)


def test_the_commands_export_and_build(bundles: Bundles, folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(bundles("llama-tied", "lora", ranks=RANKS), tmp_path)
    run.store.close()
    out = tmp_path / "out"
    assert main(["export", "run", str(out), f"--store={tmp_path / 'run.sqlite'}", "--peft", "--rank=2"]) == 0
    config = json.loads((out / peft.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 4, ["q_proj", "v_proj"])
    command = ["bundle", "build", str(folders("llama-tied")), str(tmp_path / "bundle"), "--trainable=lora", f"--adapter={out}"]
    assert main([*command, "--max-tokens=16", "--ranks=1,2"]) == 0
    capsys.readouterr()
    assert main([*command, "--ranks=1,2,4"]) == BundleError.exit_code
    assert "exists already" in capsys.readouterr().err


def refusal(folder: Path, folders: Folders, **changed: object) -> str:
    def begin() -> None:
        adapter = peft.read(folder)
        training = Training(**{"trainable": "lora", "rank": adapter.rank, "alpha": 1.0, "adapter": adapter} | changed)  # type: ignore[arg-type]
        chain.draft(Checkpoint(folders("bert")), tiny_models.CLASSIFICATION, training, 2)

    with pytest.raises(BundleError) as caught:
        begin()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_begun_with_is_refused_by_name(bundles: Bundles, folders: Folders, tmp_path: Path) -> None:
    bundle = bundles("bert", "lora")
    good = tmp_path / "good"
    peft.export(bundle, trained(bundle, tmp_path).replica, "run", good)

    def refused(**changed: object) -> str:
        return refusal(good, folders, **changed)

    assert "needs trainable 'lora'" in refused(trainable="lora-fa")
    assert "has rank 4, not 2" in refused(ranks=(1, 2))
    assert "for which the bundle trains none" in refused(top_blocks=1)
    assert "is no adapter folder of PEFT" in refusal(tmp_path, folders)
    config, tensors = json.loads((good / peft.CONFIG).read_text()), load_file(good / peft.WEIGHTS)
    (good / peft.CONFIG).write_text(json.dumps(config | {"use_dora": True}))
    assert "use_dora = True is not known" in refused()
    for broken in ("[" * 100_000, json.dumps(config | {"r": float("inf")}), json.dumps(config | {"lora_alpha": None})):
        (good / peft.CONFIG).write_text(broken)
        assert "is no adapter folder of PEFT" in refused()
    (good / peft.CONFIG).write_text(json.dumps(config))
    first = next(iter(tensors))
    save_file({name: values for name, values in tensors.items() if name != first}, good / peft.WEIGHTS)
    assert "does not hold an A and a B of rank 4 for every layer" in refused()
    save_file(tensors | {"base_model.model.encoder.more": tensors[first]}, good / peft.WEIGHTS)
    assert "which has no place in a bundle" in refused()
    wide = {name: np.zeros((4, 99), np.float32) if name.endswith("lora_A.weight") else values for name, values in tensors.items()}
    save_file(wide, good / peft.WEIGHTS)
    assert "has other dimensions" in refused()


def test_a_bundle_without_adapters_has_none_to_export(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("bert", "norms")
    with pytest.raises(BundleError, match="trains 'norms', no adapters"):
        peft.export(bundle, trained(bundle, tmp_path).replica, "run", tmp_path / "out")
