"""Classification by a causal model: which of the label words it says next, and no other logits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy_models import NumpyModel
from safetensors.numpy import load_file

from coordinator.bench import tiny_models
from coordinator.build import chain
from coordinator.build.build import build
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import Training
from coordinator.export import MODEL, export
from zo.batches import Batch, collate, encode
from zo.bundle import Bundle, open_bundle
from zo.engine import Engine
from zo.errors import BundleError
from zo.examples import Example
from zo.manifest import TRAINABLE_SETS, Task, TrainableSet
from zo.replica import Replica

WORDS = ("no", "lee", "bay")
TASK = Task("classification", 16, "label-words", WORDS, "{text} du da")
IDS = [len(tiny_models.SPECIAL) + tiny_models.WORDS.index(word) for word in WORDS]
MODELS = ("llama", "llama-tied")


@pytest.fixture
def draft(folders: Callable[[str], Path], tmp_path: Path) -> Callable[..., Bundle]:
    """draft(model, trainable): a bundle without calibration."""

    def make(model: str, trainable: TrainableSet = "lora-fa", task: Task = TASK) -> Bundle:
        out = tmp_path / f"{model}-{trainable}"
        out.mkdir()
        layers = chain.draft(Checkpoint(folders(model)), task, Training(trainable, rank=4, alpha=8.0, run_key=7), 2)
        return Bundle(out, chain.write(layers, out, "draft", task))

    return make


def texts_of_all_lengths(bundle: Bundle) -> Batch:
    texts = [" ".join(tiny_models.WORDS[place : place + length]) for place, length in enumerate((1, 12, 4, 9))]
    return collate([encode(Example(text, place % 3), TASK, bundle.tokenizer())[0] for place, text in enumerate(texts)], TASK)


@pytest.mark.parametrize("trainable", TRAINABLE_SETS)
@pytest.mark.parametrize("model", MODELS)
def test_logits_are_the_label_words_rows_of_the_whole_models_at_the_last_token(
    model: str, trainable: TrainableSet, draft: Callable[..., Bundle]
) -> None:
    bundle = draft(model, trainable)
    config, weights, _ = tiny_models.MODELS[model]
    batch = texts_of_all_lengths(bundle)
    lengths = batch.fields["attention_mask"].sum(axis=1)
    assert len(set(lengths)) == 4
    last = {"input_ids": batch.fields["input_ids"], "positions": np.arange(4) * batch.tokens + lengths - 1}
    whole = NumpyModel(config, weights, "vocabulary", rank=4, alpha=8.0, run_key=7).logits({}, last)
    loss, found = Engine(bundle, bundle.parameters()).forward(batch)
    np.testing.assert_allclose(found, whole[:, IDS], atol=1e-4)
    chances = np.exp(whole[:, IDS]) / np.exp(whole[:, IDS]).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(chances[np.arange(4), batch.fields["labels"]]).mean(), abs=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_computed_or_kept_of_the_rest_of_the_vocabulary(model: str, draft: Callable[..., Bundle]) -> None:
    bundle = draft(model)
    assert [tensor.shape for tensor in bundle.manifest.groups[-1].tensors] == [(32, 3), (3,)]
    assert not any(name.startswith("lm_head") for name in load_file(bundle.folder / bundle.manifest.base.file))
    head = onnx.load(bundle.folder / bundle.manifest.stages[-1].file, load_external_data=False).graph
    assert not any(tiny_models.VOCABULARY in weight.dims for weight in head.initializer)


@pytest.mark.parametrize("trainable", ["lora-fa", "norms"])
def test_a_bundle_is_built_trained_in_all_its_groups_and_exported(
    trainable: TrainableSet, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    examples = [Example(text, place % 3) for place, text in enumerate(tiny_models.sentences(16))]
    build(folders("llama"), tmp_path / "built", TASK, Training(trainable, rank=2), examples)  # proves every tensor live
    bundle = open_bundle(tmp_path / "built")
    assert {each.kind for each in bundle.manifest.calibration} == {"body", "head"}
    replica, batch = Replica(bundle.parameters(), bytes(32), bundle.initial_tensors), texts_of_all_lengths(bundle)
    export(bundle, replica, "run", tmp_path / "out")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / MODEL), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {given.name: batch.fields[given.name] for given in session.get_inputs()})[0]
    np.testing.assert_allclose(found, Engine(bundle, bundle.parameters()).forward(batch)[1], atol=1e-4)


def test_a_prompt_that_is_too_long_loses_its_beginning_and_keeps_the_question(draft: Callable[..., Bundle]) -> None:
    tokenizer = draft("llama").tokenizer()
    found = encode(Example(" ".join(tiny_models.WORDS[:40]), 0), TASK, tokenizer)[0].ids.tolist()
    assert len(found) == 16
    assert tokenizer.decode(found).endswith(" du da")
    found = encode(Example(" ".join(tiny_models.WORDS[:40]), 0), tiny_models.CLASSIFICATION, tokenizer)[0].ids.tolist()
    assert tokenizer.decode(found).startswith(" ".join(tiny_models.WORDS[:5]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("no", "yes"), "label word 'yes' is no token of the model, which reads it as '[UNK]'; choose another"),
        (("no", "ba bee"), "label word 'ba bee' is not one token of the model, but 2"),
        (("", "no"), "label word '' is not one token of the model, but 0"),
        (("no", " no"), "label word ' no' is the same token as another"),
    ],
)
def test_words_that_are_not_one_token_of_their_own_are_refused(words: tuple[str, ...], said: str, draft: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleError) as caught:
        draft("llama", task=Task("classification", 16, "label-words", words))
    assert said in str(caught.value)


def test_a_bert_says_no_words(folders: Callable[[str], Path]) -> None:
    with pytest.raises(BundleError, match="a BERT model is built for classification with prototypes or a linear head"):
        chain.draft(Checkpoint(folders("bert")), TASK, Training(), 2)
