"""The base is the one named, the only one, or the one that measures best here; measuring leaves nothing behind and can be ended."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Bundles

from edge_agent import precision
from edge_agent.config import AgentConfig
from edge_agent.precision import Chooser, held, open_held
from edge_agent.processor import processor
from edge_agent.state import State
from edge_agent.stopping import Stopped
from zo.bundle import Bundle
from zo.errors import BundleError, ConfigError


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "state", 50e6)
    yield made
    made.close()


@pytest.fixture
def several(bundles: Bundles) -> Bundle:
    return bundles("bert", precision="int8,fp32,w4")


class Counting:
    """Lets the model run so many times."""

    def __init__(self, most: int = 10**9) -> None:
        self.runs, self.most = 0, most

    def __call__(self) -> None:
        self.runs += 1
        if self.runs > self.most:
            raise Stopped


def choose(bundle: Bundle, state: State, go_on: Callable[[], None] = lambda: None, **changed: Any) -> tuple[str, dict[Any, float]]:
    chooser = Chooser(AgentConfig("unused", **changed), state, go_on)
    return chooser.choose(bundle.folder, bundle.manifest, list(bundle.manifest.bases)), chooser.signal


def test_the_largest_signal_a_second_wins_and_a_restart_does_not_measure_again(several: Bundle, state: State) -> None:
    runs, none = Counting(), Counting(0)
    chosen, signal = choose(several, state, runs)
    assert signal.keys() == several.manifest.bases.keys()
    assert signal[chosen] == max(signal.values()) > 0  # type: ignore[index]
    assert runs.runs == 3 * (precision.REPEATS + 1) * 2  # eight examples of 32 tokens take two runs within max_rows
    assert choose(several, state, none) == (chosen, signal)
    assert state.comparison()["signal"] == signal
    assert several.digest.hex() in state.comparison()["key"]


@pytest.mark.parametrize("changed", [{"threads": 2}, {"max_rows": 64}])
def test_settings_that_change_the_times_are_measured_anew(changed: dict[str, int], several: Bundle, state: State) -> None:
    choose(several, state)
    runs = Counting()
    choose(several, state, runs, **changed)
    assert runs.runs >= 3 * (precision.REPEATS + 1)


def test_one_base_and_a_name_leave_nothing_to_measure(several: Bundle, bert_bundle: Bundle, state: State) -> None:
    none = Counting(0)
    assert choose(bert_bundle, state, none) == ("fp32", {})
    assert choose(several, state, none, precision="w4") == ("w4", {})
    assert not (state.folder / "comparison").exists()
    with pytest.raises(ConfigError, match="has no base of precision 'w8'; it has int8, fp32, w4"):
        choose(several, state, none, precision="w8")


def test_what_trains_all_weights_is_the_most_exact_base_that_fits_without_measuring(bundles: Bundles, state: State) -> None:
    bundle = bundles("bert", "full", "w4,w8,fp32")
    assert choose(bundle, state, Counting(0)) == ("fp32", {})
    few = Chooser(AgentConfig("unused"), state, Counting(0)).choose(bundle.folder, bundle.manifest, ["w4", "w8"])
    assert few == "w8"
    assert not state.comparison()


@pytest.mark.parametrize("most", [0, 5, 2 * (precision.REPEATS + 1) + 1])
def test_measuring_ends_when_told_to_and_leaves_nothing(most: int, several: Bundle, state: State) -> None:
    with pytest.raises(Stopped):
        choose(several, state, Counting(most))
    assert {path.name for path in state.folder.iterdir()} == {"device_id", "lock"}


def test_measuring_needs_no_weights_and_begins_anew_after_a_crash(several: Bundle, state: State, tmp_path: Path) -> None:
    folder = tmp_path / "light"
    shutil.copytree(several.folder, folder, ignore=shutil.ignore_patterns("int8.saf*", "fp32.saf*", "w4.saf*"))
    (state.folder / precision.SCRATCH).mkdir()
    (state.folder / precision.SCRATCH / "fp32.safetensors").write_bytes(b"torn")
    assert choose(Bundle(folder, several.manifest), state)[1].keys() == several.manifest.bases.keys()
    assert not (state.folder / precision.SCRATCH).exists()
    (folder / "w4.stage_1.onnx").write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"w4\.stage_1\.onnx does not have the digest"):
        choose(Bundle(folder, several.manifest), state, max_rows=64)


def test_a_language_model_can_be_compared_too(bundles: Bundles, state: State) -> None:
    assert choose(bundles("llama-tied", precision="w8,fp32"), state)[0] in ("w8", "fp32")


def test_the_bases_held_are_those_with_all_their_files(several: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(several.folder, tmp_path / "copy"))
    assert held(folder, several.manifest) == ["int8", "fp32", "w4"]
    assert open_held(folder, None).manifest.precision == "int8"
    (folder / "int8.stage_0.onnx").unlink()
    assert held(folder, several.manifest) == ["fp32", "w4"]
    assert open_held(folder, None).manifest.precision == "fp32"
    (folder / "tokenizer.json").unlink()
    assert held(folder, several.manifest) == []
    with pytest.raises(BundleError, match="is missing"):
        open_held(folder, None)


def test_a_processor_keeps_its_name() -> None:
    assert processor() == processor()
    assert len(bytes.fromhex(processor())) == 8


@pytest.mark.parametrize("name", ["int4", "fp16", ""])
def test_a_precision_that_no_bundle_has_is_refused_with_the_settings(name: str) -> None:
    from zo.config import from_texts

    with pytest.raises(ConfigError, match="precision must be one of 'auto', 'fp32', 'w8', 'w4', 'int8'"):
        from_texts(AgentConfig, {"data": "d", "precision": name})
