"""What is exported is the trained model: plain onnxruntime gives the engine's logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_models
from conftest import Bundles
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from coordinator.export import MODEL, TRAINED, export
from coordinator.model import Replay, best_entry
from coordinator.store import Store
from zo.batches import Batch, collate, encode
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import BundleError
from zo.examples import Example
from zo.ledger import GENESIS, Entry, chain
from zo.terms import Term

KINDS = [
    ("bert", "lora-fa", "fp32"),
    ("bert", "lora-fa", "int8"),
    ("bert-classifier", "norms", "fp32"),
    ("llama-tied", "full", "fp32"),
    ("llama-tied", "lora", "fp32"),
    ("llama", "lora", "fp32"),
]


def trained(bundle: Bundle, folder: Path, entries: int = 3) -> Replay:
    """A run of some entries that move every group by about an eighth of its largest value."""
    store = Store(folder / "run.sqlite", create=True)
    run = store.open_run("run", bundle.folder, bundle.digest)
    generator, head = np.random.default_rng(0), GENESIS
    for number in range(1, entries + 1):
        groups = tuple(group.id for group in bundle.manifest.groups)
        entry = Entry(number, number, 1, (Term(groups, number << 32, generator.integers(-(2**15), 2**15, 4)),))
        head = chain(head, entry)
        store.commit(run.id, entry, head, {"round": number})
    replay = Replay(store, run)
    replay.move_to(entries)
    return replay


def batch(bundle: Bundle) -> Batch:
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    return collate([row for example in tiny_models.examples(task, 5, 3) for row in encode(example, task, tokenizer)], task)


def run(out: Path, fields: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(out / MODEL), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {given.name: fields[given.name] for given in session.get_inputs()})[0]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_exported_model_gives_the_engines_logits_after_training(kind: tuple[str, ...], bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles(*kind)
    replay, given = trained(bundle, tmp_path), batch(bundle)
    export(replay, tmp_path / "out")
    expected = Engine(bundle, replay.parameters).forward(given)[1]
    untrained = Engine(bundle, bundle.parameters()).forward(given)[1]
    found = run(tmp_path / "out", given.fields)
    if not bundle.manifest.task.labels:
        assert found.shape == (*given.fields["input_ids"].shape, tiny_models.VOCABULARY)
        found = found.reshape(-1, found.shape[-1])[given.fields["positions"]]
    assert found.shape == expected.shape
    assert np.abs(expected - untrained).max() > 0.1
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("kind", [("bert",), ("llama-tied",)], ids="-".join)
def test_the_exported_model_takes_one_text_of_any_length(kind: tuple[str, ...], bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles(*kind)
    replay = trained(bundle, tmp_path, 1)
    export(replay, tmp_path / "out")
    engine, task = Engine(bundle, replay.parameters), bundle.manifest.task
    for text in ("ba bee", "ba bee bi " * 4):
        given = collate(encode(Example(text, 0), task, bundle.tokenizer())[:1], task)
        exact = {name: values[:, : given.losses if not task.labels else None] for name, values in given.fields.items() if values.ndim == 2}
        found = run(tmp_path / "out", exact | {name: values for name, values in given.fields.items() if values.ndim == 1})
        assert np.abs(found.reshape(-1, found.shape[-1]) - engine.forward(given)[1]).max() < 1e-4


def test_the_trained_tensors_are_exported_with_their_digest(bert_bundle: Bundle, tmp_path: Path) -> None:
    replay = trained(bert_bundle, tmp_path)
    export(replay, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / TRAINED)
    assert tensors.keys() == replay.parameters.tensors().keys()
    assert all(np.array_equal(values, replay.parameters.tensor(name)) for name, values in tensors.items())
    details = {"run": "run", "entry": "3", "digest": replay.parameters.digest().hex()}
    with safe_open(tmp_path / "out" / TRAINED, "np") as opened:
        assert opened.metadata() == details
    task: dict[str, Any] = json.loads((tmp_path / "out/task.json").read_text(encoding="utf-8"))
    assert details.items() <= task.items()
    assert task["labels"] == list(tiny_models.LABELS)


def test_the_folder_is_all_that_is_needed(bert_bundle: Bundle, tmp_path: Path) -> None:
    export(trained(bert_bundle, tmp_path), tmp_path / "deep/out")
    assert {path.name for path in (tmp_path / "deep/out").iterdir()} == {TRAINED, MODEL, "tokenizer.json", "task.json"}
    assert Tokenizer.from_file(str(tmp_path / "deep/out/tokenizer.json")).get_vocab_size() == tiny_models.VOCABULARY


def test_an_existing_folder_is_refused(bert_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="exists already; choose another folder"):
        export(trained(bert_bundle, tmp_path), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# --- any entry of the ledger ---


def test_a_replay_goes_back_exactly(bert_bundle: Bundle, tmp_path: Path) -> None:
    replay = trained(bert_bundle, tmp_path)
    digests = {3: replay.parameters.digest()}
    for entry in (2, 1, 0):
        replay.move_to(entry)
        digests[entry] = replay.parameters.digest()
    assert digests[0] == bert_bundle.parameters().digest()
    assert len(set(digests.values())) == 4
    for entry in (2, 0, 3, 1, 1):
        replay.move_to(entry)
        assert replay.parameters.digest() == digests[entry]


def test_the_best_entry_has_the_lowest_balanced_validation_loss(bert_bundle: Bundle, tmp_path: Path) -> None:
    replay = trained(bert_bundle, tmp_path)
    store, run_id = replay.store, replay.run.id
    assert best_entry(store, run_id) == 3
    for entry, loss in ((0, 1.0), (2, 0.5), (1, 0.5), (3, 0.75)):
        store.add_evaluation(run_id, entry, "validation", {"balanced_loss": loss, "loss": -entry})
    assert best_entry(store, run_id) == 1
