"""Using what an agent's folder knows: `evaluate` and `predict`, common and personal."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles

from coordinator.bench import tiny_models
from coordinator.demo import shares
from edge_agent.flash import WriteBudget
from edge_agent.journal import NAME, Journal, Opening, read
from edge_agent.overlay import Overlay
from edge_agent.personal import Models, told
from edge_agent.solo import Solo
from edge_agent.solo_config import SoloConfig
from edge_agent.state import POSITION, State
from zo import evaluation
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import BundleError, ConfigError, DataError, StorageError
from zo.lattice import LIMIT
from zo.ledger import Entry, genesis
from zo.parameters import Parameters
from zo.recipe import Probe
from zo.replica import Replica
from zo.terms import Term

EXAMPLES = tiny_models.examples(tiny_models.CLASSIFICATION, 30)


@pytest.fixture(scope="module")
def trained(bert_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.jsonl and a state folder in which a device has trained alone; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    shares.write(folder / "a.jsonl", EXAMPLES)
    probe = Probe(directions=8, examples=8)
    Solo(SoloConfig(str(folder / "a.jsonl"), str(bert_bundle.folder), str(folder / "state"), 20, probe=probe), threading.Event()).run()
    return folder


@pytest.fixture
def overlay(trained: Path, bert_bundle: Bundle) -> Overlay:
    found = read(trained / "state" / NAME, bert_bundle.digest)
    assert found is not None
    return Overlay.of(found.entries)


@pytest.fixture
def state(trained: Path, tmp_path: Path) -> Path:
    """A copy of the state folder."""
    return Path(shutil.copytree(trained / "state", tmp_path / "state"))


def metrics(bundle: Bundle, parameters: Parameters, data: Path) -> dict[str, object]:
    return evaluation.evaluate(Engine(bundle, parameters), evaluation.batches(bundle, data))


def test_both_models_are_measured(trained: Path, overlay: Overlay, bert_bundle: Bundle) -> None:
    found = Models(trained / "state", str(bert_bundle.folder)).evaluate(trained / "a.jsonl")
    parameters = bert_bundle.parameters()
    assert found["common"] == {"entry": 0} | metrics(bert_bundle, parameters, trained / "a.jsonl")
    overlay.add(parameters)
    assert found["personal"] == {"rounds": 20} | metrics(bert_bundle, parameters, trained / "a.jsonl")
    lines = told(found).splitlines()
    assert lines[0].startswith("common model (at the fleet's entry 0): loss ")
    assert lines[1].startswith("personal model (with 20 rounds of its own): loss ")


def test_the_fleets_position_is_under_both(state: Path, trained: Path, overlay: Overlay, bert_bundle: Bundle) -> None:
    fleet = Replica(bert_bundle.parameters(), genesis(bert_bundle.digest, b""), bert_bundle.initial_tensors)
    fleet.apply(Entry(1, 1, 8, overlay.terms))
    agent = State(state, 1e9)
    agent.save_position(fleet.checkpoint())
    found = Models(state, str(bert_bundle.folder)).evaluate(trained / "a.jsonl")  # while an agent holds the folder
    agent.close()
    assert found["common"] == {"entry": 1} | metrics(bert_bundle, fleet.parameters, trained / "a.jsonl")
    overlay.add(fleet.parameters)
    assert found["personal"] == {"rounds": 20} | metrics(bert_bundle, fleet.parameters, trained / "a.jsonl")


def test_without_a_local_ledger_there_is_the_common_model_only(trained: Path, bert_bundle: Bundle, tmp_path: Path) -> None:
    models = Models(tmp_path, str(bert_bundle.folder))
    found = models.evaluate(trained / "a.jsonl")
    assert list(found) == ["common"]
    assert list(models.predict([b"ba"])) == list(models.predict([b"ba"], common=True))


def test_predictions_are_those_of_the_logits(trained: Path, bert_bundle: Bundle) -> None:
    models = Models(trained / "state", str(bert_bundle.folder))
    found = models.evaluate(trained / "a.jsonl")
    for common, name in ((True, "common"), (False, "personal")):
        lines = [json.dumps({"text": each.text}).encode() for each in EXAMPLES]
        answers = list(Models(trained / "state", str(bert_bundle.folder)).predict(lines, common))
        hits = [answer["label"] == each.label for answer, each in zip(answers, EXAMPLES, strict=True)]
        assert sum(hits) / len(hits) == pytest.approx(found[name]["accuracy"])
        for answer in answers:
            assert answer["sentence"] == tiny_models.LABELS[answer["label"]]
            assert 1 / 3 < answer["probability"] <= 1


def test_lines_may_be_plain_or_objects(trained: Path, bert_bundle: Bundle) -> None:
    models = Models(trained / "state", str(bert_bundle.folder))
    lines = ["bo ba", " bo ba \r\n", '{"text": "bo ba", "label": 7}', "\ufeffbo ba", "", " \n", '{"text": "bo ba", "text_pair": null}']
    answers = list(models.predict([line.encode() for line in lines]))
    assert len(answers) == len(lines)
    assert [set(answer.values()) == {None} for answer in answers] == [not line.strip() for line in lines]
    assert all(answer in (answers[0], answers[4]) for answer in answers)
    assert list(models.predict([b"bo ba"])) == answers[:1]  # the overlay is not on twice
    assert list(models.predict([b'{"text": "bo", "text_pair": "ba"}'])) != answers[:1]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "not like"),
        (b"{}", "not like"),
        (b'{"text": 3}', "not like"),
        (b'{"text": " "}', "not like"),
        (b'{"text": "a", "text_pair": 3}', "not like"),
        (b'{"text": "\\ud800"}', "not like"),
        (b"{" * 100_000, "not like"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_line_that_cannot_be_used_is_named(line: bytes, part: str, trained: Path, bert_bundle: Bundle) -> None:
    answers = Models(trained / "state", str(bert_bundle.folder)).predict([b"ba", line])
    assert next(answers)
    with pytest.raises(DataError, match=rf"^line 2 of standard input is {part}"):
        next(answers)


def test_the_newest_bundle_of_the_state_folder_is_used(state: Path, bert_bundle: Bundle, bundles: Bundles) -> None:
    with pytest.raises(BundleError, match=r"holds no bundle.*--bundle"):
        Models(state)
    for bundle, age in ((bundles("bert-classifier"), 10), (bert_bundle, 20), (bundles("llama-tied"), 30)):
        folder = Path(shutil.copytree(bundle.folder, state / "bundles" / str(age)))
        if age == 30:  # still being downloaded
            (folder / "fp32.safetensors").rename(folder / "fp32.safetensors.part")
        os.utime(folder, (age, age))
    assert Models(state).bundle.digest == bert_bundle.digest


def test_the_base_is_the_one_named_the_default_one_or_the_one_there(state: Path, bundles: Bundles) -> None:
    (state / NAME).unlink(missing_ok=True)
    folder = Path(shutil.copytree(bundles("bert", precision="int8,fp32,w4").folder, state / "bundles" / "several"))
    assert Models(state).bundle.manifest.precision == "int8"
    assert Models(state, str(folder), "w4").bundle.manifest.precision == "w4"
    (folder / "int8.safetensors").unlink()
    (folder / "fp32.stage_0.onnx").unlink()
    assert Models(state).bundle.manifest.precision == "w4"
    with pytest.raises(BundleError, match=r"int8\.safetensors is missing"):
        Models(state, "", "int8")
    with pytest.raises(ConfigError, match="it has int8, fp32, w4"):
        Models(state, "", "w8")


def test_a_language_model_is_measured_and_has_no_labels(bundles: Bundles, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_models.sentences(10)))
    models = Models(tmp_path, str(bundles("llama-tied").folder))
    assert models.evaluate(tmp_path / "a.jsonl")["common"]["loss"] > 0
    with pytest.raises(BundleError, match="language model"):
        list(models.predict([b"ba"]))


def test_what_does_not_fit_is_said(state: Path, trained: Path, bert_bundle: Bundle, bundles: Bundles) -> None:
    with pytest.raises(StorageError, match=r"local_ledger was begun with another bundle.*--bundle"):
        Models(state, str(bundles("bert-classifier").folder))
    far = Journal(state / "far", Opening(bytes(32), bert_bundle.digest), WriteBudget(1e9))
    far.append(Entry(1, 1, 1, (Term((0,), 5, np.array([2 * LIMIT])),)))
    far.sync()
    (state / "far").replace(state / NAME)
    with pytest.raises(StorageError, match=r"local_ledger does not fit on the fleet's parameters"):
        Models(state, str(bert_bundle.folder))
    settings = SoloConfig(str(trained / "a.jsonl"), str(bert_bundle.folder), str(state))
    with pytest.raises(StorageError, match=r"local_ledger does not fit on these parameters.*--state"):
        Solo(settings, threading.Event()).run()
    (state / NAME).write_bytes(b"milk and bread")
    with pytest.raises(StorageError, match="local_ledger cannot be used"):
        Models(state, str(bert_bundle.folder))
    (state / POSITION).write_bytes(b"milk and bread")
    with pytest.raises(StorageError, match="position cannot be used"):
        Models(state, str(bert_bundle.folder))
    with pytest.raises(StorageError, match=r"none is not a folder.*--state"):
        Models(state / "none", str(bert_bundle.folder))


# --- as processes ---


@pytest.fixture
def agent(trained: Path, bert_bundle: Bundle) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge_agent.cli", *arguments, "--state=state", f"--bundle={bert_bundle.folder}"]
        return subprocess.run(command, cwd=trained, input=given, capture_output=True, text=True, timeout=20)

    return run


def test_the_commands(agent: Callable[..., subprocess.CompletedProcess[str]], trained: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (trained / "state").iterdir()}
    shown, plain = agent("evaluate", "--data=a.jsonl"), agent("evaluate", "--data=a.jsonl", "--json")
    assert (shown.returncode, plain.returncode) == (0, 0)
    assert shown.stdout == told(json.loads(plain.stdout)) + "\n"
    own, common = agent("predict", given="bo\nba\n"), agent("predict", "--common", given="bo\nba\n")
    assert (own.returncode, common.returncode) == (0, 0)
    assert [set(json.loads(line)) for line in own.stdout.splitlines()] == [{"label", "sentence", "probability"}] * 2
    assert own.stdout != common.stdout
    wrong = agent("predict", given="bo\n{\n")
    assert (wrong.returncode, len(wrong.stdout.splitlines()), len(wrong.stderr.splitlines())) == (4, 1, 1)
    assert before == {path.name: path.stat().st_mtime_ns for path in (trained / "state").iterdir()}
