"""What is exported is the trained model: plain onnxruntime gives the engine's logits."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import Bundles
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from coordinator import replay
from coordinator.bench import tiny_models
from coordinator.cli import main
from coordinator.export import MODEL, TRAINED, export
from coordinator.sqlite_store import SqliteStore
from coordinator.store import RunRow
from coordinator.summary import NOTHING_DONE
from zo.batches import Batch, collate, encode
from zo.bundle import Bundle
from zo.checkpoint import signs
from zo.engine import Engine
from zo.errors import BundleError, ConfigError
from zo.examples import Example
from zo.ledger import Entry
from zo.parameters import Parameters
from zo.replica import Replica
from zo.terms import Term

KINDS = [
    ("bert", "lora-fa", "fp32"),
    ("bert", "lora-fa", "int8"),
    ("bert", "lora-fa", "w4"),
    ("llama", "lora-fa", "w8"),
    ("bert-classifier", "norms", "fp32"),
    ("llama-tied", "full", "fp32"),
    ("llama-tied", "lora", "fp32"),
    ("llama", "lora", "fp32"),
]


@dataclass
class Trained:
    """A run that has been trained: its store, and a replica at its last entry."""

    store: SqliteStore
    run: RunRow
    replica: Replica

    @property
    def parameters(self) -> Parameters:
        return self.replica.parameters


def trained(bundle: Bundle, folder: Path, entries: int = 3) -> Trained:
    """A run of some entries, one a round, that move every group by about an eighth of its largest value; the even ones state a digest."""
    store = SqliteStore(folder / "run.sqlite", create=True)
    run = store.open_run("run", bundle.folder, bundle.digest)
    generator, replica = np.random.default_rng(0), Replica(bundle.parameters(), run.genesis, bundle.initial_tensors)
    for number in range(1, entries + 1):
        groups = tuple(group.id for group in bundle.manifest.groups)
        terms = (Term(groups, number << 32, generator.integers(-(2**15), 2**15, 4)),)
        replica.parameters.add(terms)
        entry = Entry(number, number, 1, terms, replica.parameters.digest() if number % 2 == 0 else None)
        store.commit(run.id, entry, replica.head, signs(terms, replica.sizes), NOTHING_DONE | {"round": number})
        replica.advance(entry)
    return Trained(store, run, replica)


def batch(bundle: Bundle) -> Batch:
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    return collate([row for example in tiny_models.examples(task, 5, 3) for row in encode(example, task, tokenizer)], task)


def run(out: Path, fields: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(out / MODEL), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {given.name: fields[given.name] for given in session.get_inputs()})[0]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_exported_model_gives_the_engines_logits_after_training(kind: tuple[str, ...], bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles(*kind)
    model, given = trained(bundle, tmp_path), batch(bundle)
    export(bundle, model.replica, "run", tmp_path / "out")
    expected = Engine(bundle, model.parameters).forward(given)[1]
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
    model = trained(bundle, tmp_path, 1)
    export(bundle, model.replica, "run", tmp_path / "out")
    engine, task = Engine(bundle, model.parameters), bundle.manifest.task
    for text in ("ba bee", "ba bee bi " * 4):
        given = collate(encode(Example(text, 0), task, bundle.tokenizer())[:1], task)
        exact = {name: values[:, : given.losses if not task.labels else None] for name, values in given.fields.items() if values.ndim == 2}
        found = run(tmp_path / "out", exact | {name: values for name, values in given.fields.items() if values.ndim == 1})
        assert np.abs(found.reshape(-1, found.shape[-1]) - engine.forward(given)[1]).max() < 1e-4


def test_the_trained_tensors_are_exported_with_their_digest(bert_bundle: Bundle, tmp_path: Path) -> None:
    model = trained(bert_bundle, tmp_path)
    export(bert_bundle, model.replica, "run", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / TRAINED)
    assert tensors.keys() == model.parameters.tensors().keys()
    assert all(np.array_equal(values, model.parameters.tensor(name)) for name, values in tensors.items())
    details = {"run": "run", "entry": "3", "digest": model.parameters.digest().hex()}
    with safe_open(tmp_path / "out" / TRAINED, "np") as opened:
        assert opened.metadata() == details
    task: dict[str, Any] = json.loads((tmp_path / "out/task.json").read_text(encoding="utf-8"))
    assert details.items() <= task.items()
    assert task["labels"] == list(tiny_models.LABELS)


def test_the_folder_is_all_that_is_needed(bert_bundle: Bundle, tmp_path: Path) -> None:
    export(bert_bundle, trained(bert_bundle, tmp_path).replica, "run", tmp_path / "deep/out")
    assert {path.name for path in (tmp_path / "deep/out").iterdir()} == {TRAINED, MODEL, "tokenizer.json", "task.json"}
    assert Tokenizer.from_file(str(tmp_path / "deep/out/tokenizer.json")).get_vocab_size() == tiny_models.VOCABULARY


def test_an_existing_folder_is_refused(bert_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="exists already; choose another folder"):
        export(bert_bundle, trained(bert_bundle, tmp_path).replica, "run", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", [("bert", "lora-fa", "int8"), ("llama-tied", "lora")], ids="-".join)
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_every_prefix_is_a_model_of_its_own(kind: tuple[str, ...], rank: int, bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles(*kind, ranks=(1, 2, 4))
    model, given = trained(bundle, tmp_path), batch(bundle)
    export(bundle, model.replica, "run", tmp_path / "out", rank)
    expected = Engine(bundle, model.parameters, rank=rank).forward(given)[1]
    found = run(tmp_path / "out", given.fields)
    if not bundle.manifest.task.labels:
        found = found.reshape(-1, found.shape[-1])[given.fields["positions"]]
    assert np.abs(found - expected).max() < 1e-4
    held = {values.shape[0] for name, values in load_file(tmp_path / "out" / TRAINED).items() if name.endswith("lora_B")}
    assert held == {rank or 4}
    with pytest.raises(ConfigError, match="has no adapters of rank 3"):
        export(bundle, model.replica, "run", tmp_path / "other", 3)
    assert not (tmp_path / "other").exists()


# --- the command ---


def test_the_command_exports_the_best_entry_or_the_one_that_closed_a_round(
    bert_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = trained(bert_bundle, tmp_path)
    for entry, loss in ((1, 0.5), (3, 0.75)):
        given.store.add_evaluation(given.run.id, entry, "validation", {"balanced_loss": loss})
    for name, at, entry in (("best", [], 1), ("last", ["--at=3"], 3), ("first", ["--at=0"], 0)):
        assert main(["export", "run", str(tmp_path / name), f"--store={tmp_path / 'run.sqlite'}", *at]) == 0
        digest = replay.replica(given.store, given.run, bert_bundle, entry).parameters.digest().hex()
        assert capsys.readouterr().out == f"{tmp_path / name}: entry {entry} of run 'run', digest {digest}\n"
        with safe_open(tmp_path / name / TRAINED, "np") as opened:
            assert opened.metadata() == {"run": "run", "entry": str(entry), "digest": digest}


def test_a_round_that_is_not_closed_cannot_be_exported(bert_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(bert_bundle, tmp_path).store.close()
    out = tmp_path / "out"
    assert main(["export", "run", str(out), f"--store={tmp_path / 'run.sqlite'}", "--at=4"]) == ConfigError.exit_code
    assert capsys.readouterr().err == "edge-coordinator: run 'run' has closed rounds 1 to 3, not 4; 0 is the bundle\n"
    assert not out.exists()
