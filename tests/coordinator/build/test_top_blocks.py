"""Training the topmost blocks alone: what is below is one unchanging prefix, and the model computes what it computed before."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import ALPHA, RANK, RUN_KEY, Bundles

from coordinator.bench import tiny_models
from coordinator.build import chain
from coordinator.build.build import build, calibrate, calibration_batches, exact_twin
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import Training
from zo.bundle import Bundle, open_bundle
from zo.engine import Engine
from zo.errors import BundleError
from zo.manifest import TRAINABLE_SETS, Precision, Task

BLOCKS = {"bert": "encoder.layer.", "llama": "model.layers."}
HEADLESS = [("llama", "lora"), ("llama", "lora-fa")]  # a vocabulary gives adapters nothing to do
CASES = [(model, trainable) for model in BLOCKS for trainable in TRAINABLE_SETS]


def task_of(model: str) -> Task:
    return tiny_models.MODELS[model][2]


def draft(model: Path, out: Path, task: Task, training: Training, stages: int = 2) -> Bundle:
    """A bundle without calibration."""
    out.mkdir(parents=True, exist_ok=True)
    return Bundle(out, chain.write(chain.draft(Checkpoint(model), task, training, stages), out, "draft", task))


def refusal(made: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        made()
    return str(caught.value)


# --- groups and stages ---


@pytest.mark.parametrize("top", [0, 1, 2, 3, None])
@pytest.mark.parametrize(("model", "trainable"), CASES)
def test_the_topmost_blocks_and_the_head_have_groups_and_no_others(
    model: str, trainable: str, top: int | None, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    headed = (model, trainable) not in HEADLESS
    if not (top == 0 and not headed):
        groups = draft(folders(model), tmp_path, task_of(model), Training(trainable, rank=RANK, top_blocks=top)).manifest.groups
        trained = 3 if top is None else top
        assert [group.id for group in groups] == list(range(len(groups)))
        assert [group.kind for group in groups] == ["body"] * trained + ["head"] * headed
        for number, group in zip(range(3 - trained, 3), groups, strict=False):
            assert all(
                tensor.name.removeprefix("model.").startswith(f"{BLOCKS[model].removeprefix('model.')}{number}.")
                for tensor in group.tensors
            )


@pytest.mark.parametrize(("model", "trainable"), HEADLESS)
def test_a_head_without_anything_to_train_cannot_be_trained_alone(
    model: str, trainable: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    said = refusal(lambda: build(folders(model), tmp_path / "out", task_of(model), Training(trainable, top_blocks=0), ()))
    assert said.startswith(f"nothing would be trained: the head has nothing for {trainable!r}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("top", [0, 1, 2, 3])
@pytest.mark.parametrize("model", BLOCKS)
def test_a_stage_begins_at_the_lowest_trained_block(
    model: str, top: int, stages: int, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = draft(folders(model), tmp_path, task_of(model), Training("norms", top_blocks=top), stages).manifest
    cuts = {3 * number // stages for number in range(1, stages)} | ({3 - top} & {1, 2})
    assert len(manifest.stages) == len(cuts) + 2
    frozen = next(place for place, stage in enumerate(manifest.stages) if stage.groups)
    assert all(stage.groups for stage in manifest.stages[frozen:])
    assert frozen == len({cut for cut in cuts if cut <= 3 - top}) + (top == 0)
    assert manifest.groups[manifest.stages[frozen].groups[0]].kind == ("body" if top else "head")
    for place, stage in enumerate(manifest.stages):
        held = {each.name for each in onnx.load(tmp_path / stage.file, load_external_data=False).graph.initializer}
        for number in range(3):
            if any(f"layers.{number}." in name or f"layer.{number}." in name for name in held):
                assert (number < 3 - top) == (place < frozen), (number, stage)


@pytest.mark.parametrize("trainable", ["lora-fa", "norms", "full"])
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_what_is_trained_does_not_change_the_loss(model: str, trainable: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    tops = [None, 3, 2, 1, *([] if (model, trainable) in HEADLESS else [0])]
    bundles = [draft(folders(model), tmp_path / str(top), task_of(model), Training(trainable, rank=RANK, top_blocks=top)) for top in tops]
    batch = calibration_batches(bundles[0], tiny_models.examples(task_of(model)))[0]
    losses = [Engine(bundle, bundle.parameters()).forward(batch)[0] for bundle in bundles]
    np.testing.assert_allclose(losses, losses[0], atol=2e-6, rtol=0)


def test_training_all_blocks_by_number_is_training_all(folders: Callable[[str], Path], tmp_path: Path) -> None:
    one, two = (draft(folders("bert"), tmp_path / str(top), task_of("bert"), Training(rank=RANK, top_blocks=top)) for top in (None, 3))
    assert chain.digests(one.folder) == chain.digests(two.folder)
    assert one.manifest == two.manifest


# --- refusals ---


@pytest.mark.parametrize("top", [-1, 4, 100])
def test_more_blocks_than_there_are_or_fewer_than_none_are_refused(top: int, folders: Callable[[str], Path], tmp_path: Path) -> None:
    said = refusal(lambda: build(folders("bert"), tmp_path / "out", task_of("bert"), Training(top_blocks=top), ()))
    assert said == f"--top-blocks {top}: a model of 3 blocks can train 0 to 3"
    assert list(tmp_path.iterdir()) == []


# --- calibration ---


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("top", "kinds"), [(0, {"head"}), (1, {"body", "head"})])
def test_every_kind_that_is_trained_is_calibrated(top: int, kinds: set[str], precision: str, bundles: Bundles) -> None:
    bundle = bundles("bert", "lora-fa", precision, top)
    assert {each.kind for each in bundle.manifest.calibration} == kinds
    assert all(each.signal > 0 for each in bundle.manifest.calibration)
    assert all(each.correlation > 0.9 for each in bundle.manifest.calibration if precision == "fp32")


@pytest.mark.parametrize("precision", ["int8", "w8"])
@pytest.mark.parametrize("top", [0, 1, 3])
def test_the_exact_twin_trains_the_same_blocks_from_the_same_values(
    top: int, precision: Precision, bundles: Bundles, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = bundles("bert", "lora-fa", precision, top)
    twin = exact_twin(bundle, folders("bert"), tmp_path / "twin")
    assert twin.manifest.groups == bundle.manifest.groups
    assert twin.manifest.precision == "fp32"
    exact = bundles("bert", "lora-fa", "fp32", top)
    assert twin.manifest.stages == exact.manifest.stages
    for name, values in bundle.initial_tensors().items():
        np.testing.assert_array_equal(twin.initial_tensors()[name], values)
    measured = calibrate(bundle, twin, calibration_batches(bundle, tiny_models.examples(task_of("bert"))))
    chosen = {(each.kind, each.log2_eps): each for each in measured}
    for each in bundle.manifest.calibration:  # what was measured when it was built, again
        assert chosen[each.kind, each.log2_eps].correlation == pytest.approx(each.correlation, abs=1e-3)


@pytest.mark.parametrize("top", [1, 3])
def test_the_twin_of_another_model_is_refused(top: int, bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("bert", "lora-fa", "int8", top)
    shallow = {name: values for name, values in tiny_models.bert_weights().items() if ".layer.2." not in name}
    other = tiny_models.save(tmp_path / "model", tiny_models.BERT | {"num_hidden_layers": 2}, shallow)
    assert f"{other} is not the model that {bundle.folder} was built from" in refusal(lambda: exact_twin(bundle, other, tmp_path / "twin"))


# --- without data ---


SENTENCES = [
    ("ba bee bi", "la lee li"),
    ("na nee ni no", "ga"),
    ("ba ma", "ma ba"),
    ("an ordinary personal message to a friend", "da dee"),  # of which the tokenizer knows next to nothing
]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("labels", SENTENCES)
@pytest.mark.parametrize("top", [None, 1, 0])
def test_two_label_sentences_without_data_calibrate(
    top: int | None, labels: tuple[str, str], precision: Precision, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    task = dataclasses.replace(tiny_models.CLASSIFICATION, labels=labels)
    measured = build(folders("bert"), tmp_path / "out", task, Training("lora-fa", precision, RANK, ALPHA, RUN_KEY, top), ())
    calibration = open_bundle(tmp_path / "out").manifest.calibration
    assert {each.kind for each in calibration} == ({"head"} if top == 0 else {"body", "head"})
    assert set(measured) == {precision}
    assert {(each.kind, each.log2_eps) for each in calibration} <= {(each.kind, each.log2_eps) for each in measured[precision]}
    for each in calibration:
        assert each.signal > 1e-4, each  # nats a probe: a slope, not the flat bottom where every label is right
        assert each.correlation > (0.9 if precision == "fp32" else 0.3), each


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_stand_ins_say_every_label_sentence_with_right_labels_and_wrong_ones(
    count: int, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    labels = tuple(f"{first} {second}" for first in tiny_models.WORDS[:5] for second in tiny_models.WORDS[5:9])[:count]
    task = dataclasses.replace(tiny_models.CLASSIFICATION, labels=labels)
    bundle = draft(folders("bert"), tmp_path, task, Training(rank=RANK))
    batches = calibration_batches(bundle, ())
    sentences = [bundle.tokenizer().encode(label).ids for label in labels]
    said = [
        (sentences.index(ids[mask == 1].tolist()), int(label))
        for batch in batches
        for ids, mask, label in zip(batch.fields["input_ids"], batch.fields["attention_mask"], batch.fields["labels"], strict=True)
    ]
    assert len(said) == 16
    assert {label for _, label in said} == set(range(count)) or count > 16
    assert sum(sentence != label for sentence, label in said) > 0
    if count <= 5:
        assert sum(sentence == label for sentence, label in said) > 0
