"""A built bundle holds what was asked for; what cannot be built is refused in words, and leaves nothing behind."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Bundles, base_tensors
from safetensors.numpy import load_file, save_file

from coordinator.architectures import ARCHITECTURES
from coordinator.architectures.bert import Bert
from coordinator.bench import tiny_models
from coordinator.build import adapters, chain, dimensions, head
from coordinator.build.build import BATCH, BATCHES, build, calibration_batches, prove_live
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import Training
from zo.bundle import Bundle, open_bundle
from zo.engine import Engine
from zo.errors import BundleError, DataError
from zo.examples import Example
from zo.manifest import FILE, PRECISIONS, TRAINABLE_SETS, Precision, Task

SMALL = Training(rank=4)
BODIES = [(model, trainable) for model in ("bert", "llama-tied") for trainable in TRAINABLE_SETS]


def draft(model: Path, out: Path, task: Task, training: Training = SMALL, stages: int = 2) -> Bundle:
    """A bundle without calibration."""
    out.mkdir(exist_ok=True)
    return Bundle(out, chain.write(chain.draft(Checkpoint(model), task, training, stages), out, "draft", task))


def task_of(model: str) -> Task:
    return tiny_models.MODELS[model][2]


def refusal(made: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        made()
    return str(caught.value)


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """changed(model, **config): a folder with another config; a value of None takes the key out."""

    def change(model: str, /, **changes: Any) -> Path:
        config, weights, _ = tiny_models.MODELS[model]
        return tiny_models.save(tmp_path / "model", {k: v for k, v in (config | changes).items() if v is not None}, weights)

    return change


# --- stages ---


@pytest.mark.parametrize("model", ["bert", "llama"])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_blocks_are_cut_into_as_many_stages_as_asked_and_the_head_is_one_more(
    model: str, stages: int, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = draft(folders(model), tmp_path, task_of(model), stages=stages).manifest
    assert len(manifest.stages) == stages + 1
    kinds = [{manifest.groups[group].kind for group in stage.groups} for stage in manifest.stages]
    assert kinds == [{"body"}] * stages + [{"head"} if model == "bert" else set()]
    assert sorted(group for stage in manifest.stages for group in stage.groups) == [group.id for group in manifest.groups]


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_the_number_of_stages_does_not_change_the_loss(model: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    bundles = [draft(folders(model), tmp_path / str(n), task_of(model), stages=n) for n in (1, 3)]
    batch = calibration_batches(bundles[0], tiny_models.examples(task_of(model)))[0]
    one, three = (Engine(bundle, bundle.parameters()).forward(batch)[0] for bundle in bundles)
    assert three == pytest.approx(one, abs=1e-6)


def test_stages_take_their_trainable_tensors_and_batch_fields_and_no_others(bert_bundle: Bundle) -> None:
    manifest = bert_bundle.manifest
    for stage in manifest.stages:
        graph = onnx.load(bert_bundle.folder / stage.file, load_external_data=False).graph
        tensors = [tensor.name for group in stage.groups for tensor in manifest.groups[group].tensors]
        assert {given.name for given in graph.input} == {*stage.inputs, *tensors}
        assert tuple(given.name for given in graph.output) == stage.outputs


@pytest.mark.parametrize("stages", [-1, 4, 100])
def test_stages_out_of_range_are_refused(stages: int, folders: Callable[[str], Path], tmp_path: Path) -> None:
    said = refusal(lambda: build(folders("bert"), tmp_path / "out", task_of("bert"), Training(), (), stages))
    assert said == f"--stages {stages}: a model of 3 blocks is cut into 1 to 3"


# --- what is trained ---


@pytest.mark.parametrize(("model", "trainable"), BODIES)
def test_groups_are_the_blocks_and_the_head(model: str, trainable: str, bundles: Callable[..., Bundle]) -> None:
    groups = bundles(model, trainable).manifest.groups
    assert [group.id for group in groups] == list(range(len(groups)))
    head = model == "bert" or trainable in ("norms", "full")
    assert [group.kind for group in groups] == ["body"] * 3 + ["head"] * head


@pytest.mark.parametrize(
    ("model", "trainable", "endings"),
    [
        ("bert", "lora", {"query.lora_A", "query.lora_B", "value.lora_A", "value.lora_B"}),
        ("bert", "lora-fa", {"query.lora_B", "value.lora_B"}),
        ("llama", "lora", {"q_proj.lora_A", "q_proj.lora_B", "v_proj.lora_A", "v_proj.lora_B"}),
        ("llama", "lora-fa", {"q_proj.lora_B", "v_proj.lora_B"}),
        ("llama", "norms", {"input_layernorm.weight", "post_attention_layernorm.weight"}),
    ],
)
def test_a_block_trains_what_its_set_says(model: str, trainable: str, endings: set[str], bundles: Callable[..., Bundle]) -> None:
    names = [tensor.name for tensor in bundles(model, trainable).manifest.groups[0].tensors]
    assert {".".join(name.split(".")[-2:]) for name in names} == endings
    assert len(names) == len(endings)


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_full_trains_every_weight_matrix_of_a_block(model: str, bundles: Callable[..., Bundle]) -> None:
    block, weights = {"bert": "encoder.layer.0.", "llama": "model.layers.0."}[model], tiny_models.MODELS[model][1]
    wanted = {name.removeprefix("model."): w.T.shape for name, w in weights.items() if name.startswith(block) and w.ndim == 2}
    assert len(wanted) >= 6
    tensors = {tensor.name: tensor.shape for tensor in bundles(model, "full").manifest.groups[0].tensors}
    assert wanted.items() <= tensors.items()


@pytest.mark.parametrize("trainable", TRAINABLE_SETS)
def test_only_the_body_of_full_has_no_branch_axis(trainable: str, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("bert", trainable)
    branched = Engine(bundle, bundle.parameters()).inputs.branched
    for group in bundle.manifest.groups:
        expected = not (trainable == "full" and group.kind == "body")
        assert all((tensor.name in branched) == expected for tensor in group.tensors), group


def test_prototypes_start_at_the_label_sentences(bert_bundle: Bundle) -> None:
    prototypes = bert_bundle.initial_tensors()["head.prototypes"]
    np.testing.assert_allclose(np.linalg.norm(prototypes, axis=1), 1, atol=1e-5)
    engine, task = Engine(bert_bundle, bert_bundle.parameters()), bert_bundle.manifest.task
    batch = calibration_batches(bert_bundle, [Example(sentence, label) for label, sentence in enumerate(task.labels)])[0]
    logits = engine.forward(batch)[1]
    assert logits.argmax(axis=1).tolist() == batch.fields["labels"].tolist()
    np.testing.assert_allclose(logits.max(axis=1), 20, atol=1e-3)


def test_a_linear_head_starts_as_the_checkpoints_classifier_where_it_fits(
    bundles: Callable[..., Bundle], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    weight = tiny_models.MODELS["bert-classifier"][1]["classifier.weight"].T
    np.testing.assert_allclose(bundles("bert-classifier").initial_tensors()["head.weight"], weight, atol=1e-5)
    four = dataclasses.replace(tiny_models.LINEAR, labels=("a", "b", "c", "d"))
    weights = [
        draft(folders("bert-classifier"), tmp_path / str(key), four, Training(rank=4, run_key=key)).initial_tensors() for key in (0, 0, 1)
    ]
    for each in weights:
        assert each["head.weight"].shape == (32, 4)
        np.testing.assert_allclose(np.abs(each["head.weight"]), head.INITIAL_WEIGHT, rtol=1e-3)
        assert abs(each["head.weight"].mean()) < head.INITIAL_WEIGHT / 2
        assert not each["head.bias"].any()
    assert np.array_equal(weights[0]["head.weight"], weights[1]["head.weight"])
    assert not np.array_equal(weights[0]["head.weight"], weights[2]["head.weight"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_linear_head_is_built_on_a_bare_bert(precision: Precision, folders: Callable[[str], Path], tmp_path: Path) -> None:
    training = Training("lora-fa", precision, rank=4)
    build(folders("bert"), tmp_path / "out", tiny_models.LINEAR, training, tiny_models.examples(tiny_models.LINEAR))
    calibration = open_bundle(tmp_path / "out").manifest.calibration
    assert {each.kind for each in calibration} == {"body", "head"}
    assert all(each.signal > 0 for each in calibration)


def test_gains_and_biases_of_early_checkpoints_are_read(folders: Callable[[str], Path], tmp_path: Path) -> None:
    def early(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    for model in ("bert", "bert-classifier"):
        config, weights, task = tiny_models.MODELS[model]
        renamed = {early(name): values for name, values in weights.items()}
        assert sum(name.endswith(("gamma", "beta")) for name in renamed) == 14
        folder = tiny_models.save(tmp_path / model / "model", config, renamed)
        old, new = (draft(source, tmp_path / model / name, task) for name, source in (("a", folder), ("b", folders(model))))
        assert chain.digests(old.folder) == chain.digests(new.folder)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora"), ("bert", "lora-fa"), ("llama", "lora-fa")])
def test_every_digest_and_tensor_of_a_build_recurs_when_it_is_repeated(
    model: str, trainable: str, precision: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    training = Training(trainable, precision, rank=2, run_key=5)
    one, two = (draft(folders(model), tmp_path / name, task_of(model), training) for name in ("one", "two"))
    assert chain.digests(one.folder) == chain.digests(two.folder)


# --- the proof that everything is live ---


class Forgetful(Bert):
    """Computes an adapter in the last block, and does not use it."""

    def block(self, number: int, x: str) -> str:
        if number == self.blocks - 1:
            adapters.linear(self.layers, x, "encoder.layer.0.attention.self.key")
        return super().block(number, x)


def test_a_tensor_that_is_not_used_is_found(folders: Callable[[str], Path], tmp_path: Path) -> None:
    task, examples = task_of("bert"), tiny_models.examples(task_of("bert"))
    ARCHITECTURES["forgetful"] = Forgetful
    try:
        model = tiny_models.save(tmp_path / "model", tiny_models.BERT | {"model_type": "forgetful"}, tiny_models.bert_weights())
        said = refusal(lambda: build(model, tmp_path / "out", task, Training(rank=4), examples))
    finally:
        del ARCHITECTURES["forgetful"]
    assert "changing trainable tensor 'encoder.layer.0.attention.self.key.lora_B' does not change the logits" in said
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("model", "trainable"), BODIES)
def test_all_tensors_are_live(model: str, trainable: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = draft(folders(model), tmp_path, task_of(model), Training(trainable, rank=4))
    prove_live(bundle, calibration_batches(bundle, tiny_models.examples(task_of(model)))[0])


def test_attention_that_is_nearly_sure_is_no_error(tmp_path: Path) -> None:
    weights = tiny_models.bert_weights()
    for name, values in weights.items():
        if name.endswith(("self.query.weight", "self.key.weight")):
            values *= 60
    bundle = draft(tiny_models.save(tmp_path / "model", tiny_models.BERT, weights), tmp_path, task_of("bert"), Training("full"))
    prove_live(bundle, calibration_batches(bundle, tiny_models.examples(task_of("bert")))[0])


# --- files ---


@pytest.mark.parametrize(("model", "precision"), [("bert", "fp32"), ("bert", "int8"), ("bert", "w4"), ("llama", "fp32"), ("llama", "w8")])
def test_the_base_is_a_standard_file_into_which_the_graphs_point(model: str, precision: str, bundles: Callable[..., Bundle]) -> None:
    folder = bundles(model, precision=precision).folder
    tensors = load_file(folder / f"{precision}.safetensors")
    pointed = set()
    for stage in bundles(model, precision=precision).manifest.stages:
        graph = onnx.load(folder / stage.file).graph  # with external data, by onnx itself
        for weight in graph.initializer:
            if weight.name in tensors:
                np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), tensors[weight.name])
                pointed.add(weight.name)
    assert pointed == tensors.keys()


@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("bert-classifier", "norms"), ("llama-tied", "lora")])
def test_several_bases_share_what_is_trained_and_are_what_they_are_alone(model: str, trainable: str, bundles: Bundles) -> None:
    together = bundles(model, trainable, "int8,fp32,w4")
    assert (list(together.manifest.bases), together.manifest.precision) == (["int8", "fp32", "w4"], "int8")
    assert {path.name for path in together.folder.iterdir()} == {FILE, *together.manifest.files}
    for precision, base in together.manifest.bases.items():
        alone = bundles(model, trainable, precision)
        assert alone.manifest.bases == {precision: base}
        assert alone.manifest.groups == together.manifest.groups
        assert {name: together.manifest.files[name] for name in alone.manifest.files} == alone.manifest.files
        assert base.size == (together.folder / base.file).stat().st_size


def test_the_float32_base_that_serves_calibration_is_not_kept(bundles: Bundles) -> None:
    bundle = bundles("bert", precision="int8")
    assert list(bundle.manifest.bases) == ["int8"]
    assert not [path.name for path in bundle.folder.iterdir() if path.name.startswith("fp32")]


class Fickle(Bert):
    """Trains a tensor that only a float32 base has."""

    def head(self, x: str) -> None:
        if self.layers.training.precision == "fp32":
            self.layers.trained("extra", np.zeros(3, np.float32))
        super().head(x)


def test_bases_that_would_not_share_what_is_trained_are_refused(tmp_path: Path) -> None:
    ARCHITECTURES["fickle"] = Fickle
    try:
        model = tiny_models.save(tmp_path / "model", tiny_models.BERT | {"model_type": "fickle"}, tiny_models.bert_weights())
        said = refusal(lambda: build(model, tmp_path / "out", task_of("bert"), Training(rank=1), (), None, ["int8"]))
    finally:
        del ARCHITECTURES["fickle"]
    assert "fp32, int8, fp32 have other trainable tensors" in said


@pytest.mark.parametrize(("precision", "bits"), [("w8", 8), ("w4", 4)])
def test_weights_in_blocks_take_their_bits_and_a_scale_a_block(precision: str, bits: int, bundles: Callable[..., Bundle]) -> None:
    exact, coarse = (base_tensors(bundles("bert", precision=each)) for each in ("fp32", precision))
    name = "encoder.layer.1.output.dense.weight"
    assert coarse[f"{name}.{precision}"].nbytes == exact[name].size * bits // 8
    assert coarse[f"{name}.scale"].nbytes == exact[name].size // 32 * 4
    assert coarse["embeddings.word_embeddings.weight.int8"].dtype == np.int8
    assert not {name, "embeddings.word_embeddings.weight"} & coarse.keys()


def test_int8_holds_the_weight_matrices_in_a_quarter_of_the_bytes(bundles: Callable[..., Bundle]) -> None:
    exact, coarse = (base_tensors(bundles("bert", precision=precision)) for precision in ("fp32", "int8"))
    name = "encoder.layer.1.output.dense.weight"
    assert coarse[f"{name}.int8"].dtype == np.int8
    assert name not in coarse
    np.testing.assert_allclose(coarse[f"{name}.int8"] * coarse[f"{name}.scale"], exact[name], atol=np.abs(exact[name]).max() / 250)


def test_a_bundle_may_be_moved(bert_bundle: Bundle, tmp_path: Path) -> None:
    moved = open_bundle(Path(shutil.copytree(bert_bundle.folder, tmp_path / "elsewhere")))
    batch = calibration_batches(moved, ())[0]
    losses = [Engine(bundle, bundle.parameters()).forward(batch)[0] for bundle in (bert_bundle, moved)]
    assert losses[0] == losses[1]


def test_a_folder_that_exists_is_refused_and_stays_as_it_was(folders: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    assert f"{tmp_path} exists already" in refusal(lambda: build(folders("bert"), tmp_path, task_of("bert"), Training(), ()))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_build_leaves_the_bundle_and_nothing_else(folders: Callable[[str], Path], tmp_path: Path) -> None:
    build(folders("llama"), tmp_path / "deep" / "out", task_of("llama"), Training(rank=1), ())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert open_bundle(tmp_path / "deep" / "out").manifest.name == "out"


@pytest.mark.parametrize("model", ["bert", "bert-classifier", "llama"])
def test_without_examples_label_sentences_or_vocabulary_serve(model: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    build(folders(model), tmp_path / "out", task_of(model), Training(rank=1), ())
    assert open_bundle(tmp_path / "out").manifest.calibration


def test_one_example_is_enough(folders: Callable[[str], Path], tmp_path: Path) -> None:
    build(folders("bert"), tmp_path / "out", task_of("bert"), Training(rank=1), [Example("ba bee", 1)])
    assert open_bundle(tmp_path / "out").manifest.calibration


def test_calibration_batches_hold_every_class(bert_bundle: Bundle) -> None:
    lopsided = [Example("ba bee", 0)] * 100 + [Example("la", 1), Example("na", 2)]
    batches = calibration_batches(bert_bundle, lopsided)
    assert [batch.examples for batch in batches] == [8, 8]
    assert {label for batch in batches for label in batch.fields["labels"].tolist()} == {0, 1, 2}


def test_language_examples_that_are_all_too_short_to_calibrate_with_are_refused(llama_bundle: Bundle) -> None:
    with pytest.raises(DataError, match=r"none of the calibration examples has two tokens; give longer texts with --data, or none"):
        calibration_batches(llama_bundle, [Example("ba"), Example("bee")])
    assert [batch.examples for batch in calibration_batches(llama_bundle, [Example("ba"), Example("bee ba")])] == [1]


def test_a_build_with_such_examples_leaves_nothing(folders: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        build(folders("llama"), tmp_path / "out", task_of("llama"), SMALL, [Example("ba")])
    assert list(tmp_path.iterdir()) == []


# --- what cannot be built ---


def refused_before_writing(model: Path, task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The refusal of a build that did not get as far as writing."""

    def write(*_: object) -> None:
        pytest.fail("something was written")

    monkeypatch.setattr(chain, "write", write)
    said = refusal(lambda: build(model, folder / "out", task, SMALL, ()))
    assert {path.name for path in folder.iterdir()} == {"model"}
    return said


@pytest.mark.parametrize("model", ["bert", "llama"])
@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_with_more_ids_than_the_model_is_refused(
    model: str, special: bool, changed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tokenizer = changed(model), tiny_models.tokenizer()
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(["[MORE]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = refused_before_writing(folder, task_of(model), tmp_path, monkeypatch)
    assert said == f"{folder / 'tokenizer.json'} gives ids up to 60, the model knows 60; put the model's own tokenizer there"


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", json.dumps({"version": "1.0", "model": {"type": "?"}})])
def test_a_file_that_is_no_tokenizer_is_refused(
    content: str, changed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed("bert")
    (folder / "tokenizer.json").write_text(content)
    said = refused_before_writing(folder, task_of("bert"), tmp_path, monkeypatch)
    assert said.startswith(f"{folder / 'tokenizer.json'} is not a tokenizer (")
    assert said.endswith("); put the model's own there")


def test_a_vocabulary_smaller_than_the_model_knows_is_no_problem(folders: Callable[[str], Path], tmp_path: Path) -> None:
    config, weights, task = tiny_models.MODELS["bert"]
    name = "embeddings.word_embeddings.weight"
    padded = weights | {name: np.concatenate([weights[name], np.ones((4, 32), np.float32)])}
    folder = tiny_models.save(tmp_path / "model", config | {"vocab_size": 64}, padded)
    assert draft(folder, tmp_path / "out", task).tokenizer().get_vocab_size() == 60


def test_full_with_quantised_activations_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    said = refusal(lambda: build(folders("bert"), tmp_path / "out", task_of("bert"), Training("full", "int8"), ()))
    assert "needs precision 'fp32'" in said
    said = refusal(lambda: build(folders("bert"), tmp_path / "out", task_of("bert"), Training("full"), (), others=["int8"]))
    assert "'full'" in said
    assert "needs precision 'fp32'" in said
    assert list(tmp_path.iterdir()) == []


def test_inactive_blocks_need_every_block_as_a_stage(folders: Callable[[str], Path], tmp_path: Path) -> None:
    said = refusal(lambda: build(folders("bert"), tmp_path / "out", task_of("bert"), Training("full"), (), 2, ["w4"]))
    assert "3 stages, not 2" in said


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_full_with_a_base_in_few_bits_has_a_graph_for_every_block_left_inactive(model: str, bundles: Bundles) -> None:
    bundle = bundles(model, "full", "w4,w8,fp32")
    for precision in ("w4", "w8"):
        stages = bundle.manifest.at(precision).stages
        assert [len(stage.groups) for stage in stages] == [0, 1, 1, 1, 1]
        assert [bool(stage.inactive) for stage in stages] == [False, True, True, True, False]
        assert all((bundle.folder / stage.inactive).stat().st_size < 30_000 for stage in stages if stage.inactive)
        assert bundle.manifest.at(precision).optional == {0, 1, 2}
    assert not bundle.manifest.at("fp32").optional
    assert not bundle.manifest.prefix  # the embeddings alone are not worth keeping


@pytest.mark.parametrize("kind", ["gpt2", None, "Bert"])
def test_an_unknown_architecture_is_refused_with_those_known(kind: str | None, changed: Callable[..., Path], tmp_path: Path) -> None:
    said = refusal(lambda: build(changed("bert", model_type=kind), tmp_path / "out", task_of("bert"), Training(), ()))
    assert said == f"architecture {kind!r} is not known; known are bert, llama"


@pytest.mark.parametrize(
    ("model", "key"), [("bert", "layer_norm_eps"), ("bert", "hidden_act"), ("llama", "rms_norm_eps"), ("llama", "vocab_size")]
)
def test_a_missing_key_of_the_config_is_named(model: str, key: str, changed: Callable[..., Path], tmp_path: Path) -> None:
    said = refusal(lambda: build(changed(model, **{key: None}), tmp_path / "out", task_of(model), Training(), ()))
    assert f"config.json lacks '{key}'" in said


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("bert", {"hidden_act": "relu"}, "activation 'relu' is not known"),
        ("bert", {"position_embedding_type": "relative_key"}, "only absolute position embeddings"),
        ("llama", {"hidden_act": "gelu"}, "activation 'gelu' is not known"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary scaling"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rotary scaling"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotary scaling"),
    ],
)
def test_what_the_architecture_does_not_compute_is_refused(
    model: str, changes: dict[str, Any], said: str, changed: Callable[..., Path], tmp_path: Path
) -> None:
    assert said in refusal(lambda: build(changed(model, **changes), tmp_path / "out", task_of(model), Training(), ()))


def test_plain_rope_is_known_in_all_its_spellings(changed: Callable[..., Path], tmp_path: Path) -> None:
    model = changed("llama", rope_theta=None, rope_scaling=None, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    other = draft(model, tmp_path / "other", task_of("llama"))
    batch = calibration_batches(other, ())[0]
    shutil.rmtree(model)
    usual = draft(changed("llama"), tmp_path / "usual", task_of("llama"))
    losses = [Engine(bundle, bundle.parameters()).forward(batch)[0] for bundle in (other, usual)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("model", "task"), [("bert", tiny_models.LANGUAGE), ("llama", tiny_models.CLASSIFICATION)])
def test_a_task_that_the_architecture_cannot_do_is_refused(model: str, task: Task, folders: Callable[[str], Path], tmp_path: Path) -> None:
    assert "is built for" in refusal(lambda: build(folders(model), tmp_path / "out", task, Training(), ()))


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_more_tokens_than_positions_are_refused(model: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    task = dataclasses.replace(task_of(model), max_tokens=49)
    said = refusal(lambda: build(folders(model), tmp_path / "out", task, Training(), ()))
    assert said == "max_tokens = 49 is more than the 48 positions of the model; give --max-tokens 48"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("bert", "encoder.layer.1.output.dense.weight"),
        ("bert-classifier", "bert.embeddings.LayerNorm.weight"),
        ("llama", "model.layers.2.mlp.up_proj.weight"),
        ("llama-tied", "model.norm.weight"),
    ],
)
def test_a_missing_tensor_is_named(model: str, name: str, tmp_path: Path) -> None:
    config, weights, task = tiny_models.MODELS[model]
    folder = tiny_models.save(tmp_path / "model", config, {key: values for key, values in weights.items() if key != name})
    bare = name.removeprefix("bert.").removeprefix("model.")
    assert f"holds no tensor {bare!r}" in refusal(lambda: build(folder, tmp_path / "out", task, Training(), ()))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_are_not_finite_are_refused_naming_the_tensor(tmp_path: Path) -> None:
    config, weights, task = tiny_models.MODELS["bert"]
    name = "encoder.layer.1.output.LayerNorm.weight"
    weights = weights | {name: np.full_like(weights[name], np.nan)}
    folder = tiny_models.save(tmp_path / "model", config, weights)
    assert name in refusal(lambda: build(folder, tmp_path / "out", task, Training("norms"), ()))


def test_a_label_without_words_gets_a_prototype_too(folders: Callable[[str], Path], tmp_path: Path) -> None:
    task = dataclasses.replace(task_of("bert"), labels=("ba", "", "na"))
    build(folders("bert"), tmp_path / "out", task, Training(rank=1), tiny_models.examples(task))
    assert np.isfinite(open_bundle(tmp_path / "out").initial_tensors()["head.prototypes"]).all()


def test_frozen_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    config, weights, task = tiny_models.MODELS["bert"]
    name = "encoder.layer.1.output.dense.bias"
    folder = tiny_models.save(tmp_path / "model", config, weights | {name: np.full_like(weights[name], np.inf)})
    refusal(lambda: build(folder, tmp_path / "out", task, Training(rank=1), ()))


@pytest.mark.parametrize("rank", [0, -1, 33, 100_000_000])
def test_adapters_of_no_rank_or_one_beyond_the_models_width_are_refused(rank: int, folders: Callable[[str], Path], tmp_path: Path) -> None:
    said = refusal(lambda: build(folders("bert"), tmp_path / "out", task_of("bert"), Training(rank=rank), ()))
    assert f"rank {rank}" in said
    assert ("of 32 x 32; give a smaller --rank" in said) == (rank > 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan, np.inf, 1e30])
def test_adapters_of_an_impossible_alpha_are_refused(alpha: float, folders: Callable[[str], Path], tmp_path: Path) -> None:
    said = refusal(lambda: build(folders("bert"), tmp_path / "out", task_of("bert"), Training(alpha=alpha), ()))
    assert said == f"adapters of alpha {alpha} cannot be; give more than 0, and at most 1e+06"


def test_names_of_saved_tensors_may_be_spread_over_several_files(folders: Callable[[str], Path], tmp_path: Path) -> None:
    config, weights, task = tiny_models.MODELS["llama"]
    names = sorted(weights)
    folder = tiny_models.save(tmp_path / "model", config, {name: weights[name] for name in names[::2]})
    save_file({name: weights[name] for name in names[1::2]}, folder / "model-2.safetensors")
    halves, whole = draft(folder, tmp_path / "a", task), draft(folders("llama"), tmp_path / "b", task)
    assert chain.digests(halves.folder) == chain.digests(whole.folder)


@pytest.mark.parametrize("value", ["three", "32", 0, -1, 1.5, True, [3], 10**30])
@pytest.mark.parametrize("key", dimensions.NEEDED)
def test_dimensions_that_cannot_be_are_refused(key: str, value: Any, changed: Callable[..., Path], tmp_path: Path) -> None:
    said = refusal(lambda: build(changed("bert", **{key: value}), tmp_path / "out", task_of("bert"), Training(), ()))
    assert f"config.json cannot be a bert model: {key} must be a whole number from 1 to " in said


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("bert", {"num_attention_heads": 5}, "hidden_size = 32 is not divisible by num_attention_heads = 5"),
        ("bert", {"layer_norm_eps": float("nan")}, "layer_norm_eps must be a number above 0, not nan"),
        ("bert", {"layer_norm_eps": "small"}, "layer_norm_eps must be a number above 0, not 'small'"),
        ("bert", {"hidden_act": {"a": 1}}, "config.json cannot be a bert model"),
        ("bert", {"model_type": ["bert"]}, "architecture ['bert'] is not known"),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads = 4 is not divisible by num_key_value_heads = 3"),
        ("llama", {"num_attention_heads": 6}, "hidden_size = 32 is not divisible by num_attention_heads = 6"),
        ("llama", {"head_dim": 7}, "head_dim = 7 is not divisible by halves of a rotation = 2"),
        ("llama", {"head_dim": "8"}, "head_dim must be a whole number"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, not 'yes'"),
        ("llama", {"rope_theta": "x"}, "rope_theta must be a number above 0, not 'x'"),
        ("llama", {"rope_scaling": [1]}, "rotary scaling must be a table, not [1]"),
        (
            "bert",
            {"hidden_size": 64},
            "vocab_size = 60, hidden_size = 64, but tensor 'embeddings.word_embeddings.weight' of the model is 60 x 32",
        ),
        ("bert", {"vocab_size": 100}, "vocab_size = 100, hidden_size = 32, but tensor"),
        ("bert", {"max_position_embeddings": 64}, "max_position_embeddings = 64, hidden_size = 32, but tensor"),
        ("bert", {"intermediate_size": 128}, "intermediate_size = 128, hidden_size = 32, but tensor"),
        ("llama", {"hidden_size": 64}, "vocab_size = 60, hidden_size = 64, but tensor 'embed_tokens.weight' of the model is 60 x 32"),
        ("llama", {"num_attention_heads": 2}, "num_key_value_heads x head_dim = 32, hidden_size = 32, but tensor"),
        ("llama", {"head_dim": 16}, "num_attention_heads x head_dim = 64, hidden_size = 32, but tensor"),
        ("llama", {"num_key_value_heads": 4}, "num_key_value_heads x head_dim = 32, hidden_size = 32, but tensor"),
        ("llama", {"intermediate_size": 32}, "intermediate_size = 32, hidden_size = 32, but tensor"),
        ("llama", {"num_hidden_layers": 2**31 - 1}, "num_hidden_layers must be a whole number from 1 to 65536"),
    ],
)
def test_config_values_that_do_not_fit_are_named(
    model: str, changes: dict[str, Any], said: str, changed: Callable[..., Path], tmp_path: Path
) -> None:
    assert said in refusal(lambda: build(changed(model, **changes), tmp_path / "out", task_of(model), Training(), ()))


def test_a_config_that_is_nested_without_end_is_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    model = changed("bert")
    (model / "config.json").write_text("[" * 100_000)
    assert "config.json cannot be read" in refusal(lambda: build(model, tmp_path / "out", task_of("bert"), Training(), ()))


def test_the_manifest_says_what_was_asked_for(bundles: Callable[..., Bundle]) -> None:
    plain = json.loads((bundles("bert", "norms", "int8").folder / "manifest.json").read_text())
    assert (plain["architecture"], plain["precision"], plain["trainable"], plain["run_key"]) == ("bert", "int8", "norms", 7)
    assert tuple(plain["task"]["labels"]) == tiny_models.LABELS


@pytest.mark.parametrize("order", ["by class", "in turns", "mixed"])
def test_every_batch_for_calibration_holds_every_class(order: str, bert_bundle: Bundle) -> None:
    """Consecutive stretches of examples in turns by class, however the data lie: a batch of one class has no slope of its own."""
    classes, each = len(bert_bundle.manifest.task.labels), 20
    sentences = tiny_models.sentences(classes * each)
    labels = {"by class": np.repeat(np.arange(classes), each), "in turns": np.tile(np.arange(classes), each)}
    labels["mixed"] = np.random.default_rng(0).permutation(labels["by class"])
    given = [Example(text, int(label)) for text, label in zip(sentences, labels[order], strict=True)]
    batches = calibration_batches(bert_bundle, given)
    assert [batch.examples for batch in batches] == [BATCH] * BATCHES
    for batch in batches:
        counts = np.bincount(batch.fields["labels"], minlength=classes)
        assert counts.min() >= BATCH // classes
        assert counts.max() - counts.min() <= 1
