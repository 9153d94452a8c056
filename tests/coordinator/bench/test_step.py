"""The benchmark of steps: what it runs are whole steps and plain runs, and what it tells is what it measured."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bundles
from tiny_walks import CountingStages, rows_of

from coordinator.bench import step
from coordinator.bench.__main__ import main
from zo.batches import collate
from zo.bundle import Bundle
from zo.engine import Engine, Prefix
from zo.errors import ConfigError

FOUND: dict[str, Any] = {
    "milliseconds": {"lora": {"8x32": (31.5, 30.25), "1x16": (3.0, 2.5)}, "full": {"8x32": (45.0, 30.0)}, "int8": {"8x32": (18.125, 30.0)}},
    "lora_over_two_runs": {"8x32": 1.041, "1x16": 1.2},
    "full_over_two_runs": {"8x32": 1.5},
    "int8_over_two_fp32_runs": {"8x32": 0.604},
    "prefix_speedup": 4.56,
}
TORCH = {"torch_mezo_ms": 96.5, "speedup_fp32_full_over_torch_mezo": 2.14, "speedup_int8_over_torch_mezo": 5.32}


# --- what is told ---


def test_the_table_has_a_line_for_every_way_and_shape() -> None:
    head, *lines = step.told(FOUND).splitlines()
    assert head.split() == ["shape", "way", "ms", "two", "plain", "fp32", "runs,", "ms", "ratio"]
    assert [line.split() for line in lines[:4]] == [
        ["8x32", "lora", "31.50", "30.25", "1.041"],
        ["1x16", "lora", "3.00", "2.50", "1.200"],
        ["8x32", "full", "45.00", "30.00", "1.500"],
        ["8x32", "int8", "18.12", "30.00", "0.604"],
    ]
    assert lines[4:] == ["the top block trained, a step without a kept prefix over one with it: 4.56"]
    assert len({len(line) for line in lines[:4]}) == 1


def test_figures_against_torch_are_told_where_there_are_any() -> None:
    lines = step.told(FOUND | TORCH).splitlines()
    assert lines[:-3] == step.told(FOUND).splitlines()
    assert lines[-3:] == ["torch mezo ms: 96.5", "speedup fp32 full over torch mezo: 2.14", "speedup int8 over torch mezo: 5.32"]


def test_calls_are_taken_in_turns_and_the_first_turn_does_not_count() -> None:
    called: list[str] = []
    above, below, ratio = step.paired(lambda: called.append("first"), lambda: called.append("second"), 4)
    assert called == ["first", "second"] * 5
    assert min(above, below) >= 0
    assert ratio > 0


@pytest.mark.parametrize(("examples", "tokens"), [(8, 32), (1, 16)])
def test_random_rows_have_the_shape_asked_for_and_are_numbered(examples: int, tokens: int) -> None:
    rows = step.random_rows(examples, tokens)
    batch = collate(rows, step.TASK)
    assert batch.fields["input_ids"].shape == (examples, tokens)
    assert batch.fields["attention_mask"].all()
    assert batch.keys.tolist() == list(range(examples))
    assert {row.label for row in rows} == {*range(min(2, examples))}


# --- what is run ---


def test_two_runs_are_two_runs_of_the_whole_model(bundles: Bundles) -> None:
    bundle = bundles("bert", top_blocks=0)
    batch = collate(rows_of(bundle), bundle.manifest.task)
    twice = step.two_runs(bundle, batch)
    for _ in range(2):
        found = twice()
        assert isinstance(found, list)
        losses = [float(values["loss"].numpy()[0]) for values in found]
        assert losses == [Engine(bundle, bundle.parameters()).loss(batch)] * 2


@pytest.mark.parametrize("top_blocks", [None, 1])
@pytest.mark.parametrize("trainable", ["lora-fa", "full"])
def test_a_step_changes_the_parameters_as_its_entry_says(trainable: str, top_blocks: int | None, bundles: Bundles) -> None:
    bundle = bundles("bert", trainable, top_blocks=top_blocks)
    one, two, rows = step.Device(bundle), step.Device(bundle), rows_of(bundle)
    digests = [one.engine.parameters.digest()]
    for _ in range(3):
        one.step(rows)
        digests.append(one.engine.parameters.digest())
    assert len(set(digests)) == 4
    for _ in range(3):
        two.step(rows)  # without anyone who looks in between
    assert two.engine.parameters.digest() == digests[-1]


def test_a_device_with_a_prefix_takes_the_same_steps_and_runs_no_untrained_stage_twice(bundles: Bundles) -> None:
    bundle = bundles("bert", top_blocks=1)
    plain, keeping, rows = step.Device(bundle), step.Device(bundle, Prefix(1e6)), rows_of(bundle)
    keeping.engine.stages = counted = CountingStages(bundle)
    for _ in range(4):
        plain.step(rows)
        keeping.step(rows)
    assert counted.ran[0] == 1
    assert counted.ran[len(bundle.manifest.stages) - 1] == 4
    assert keeping.engine.parameters.digest() == plain.engine.parameters.digest()


# --- the command ---


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_the_comparison_with_it_is_one_line_and_a_configuration_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["step", "--peer", "mezo-torch"]) == ConfigError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "scripts/bench: --peer mezo-torch needs torch: .venv/bin/python -m pip install torch==2.13.0\n"


def test_another_peer_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["step", "--peer", "sgd"])
    assert ended.value.code == 2
    assert "invalid choice: 'sgd'" in capsys.readouterr().err


# --- PyTorch's MeZO ---


@pytest.fixture
def peer(bundles: Bundles, folders: Callable[[str], Path]) -> tuple[Any, Bundle, Any]:
    """PyTorch's MeZO on a batch of two classes, a bundle of the same model, and the batch."""
    pytest.importorskip("torch")
    from coordinator.bench.mezo_torch import MezoTorch

    bundle = bundles("bert", top_blocks=0)
    batch = collate([replace(row, label=row.label % 2) for row in rows_of(bundle)], bundle.manifest.task)
    return MezoTorch(folders("bert"), batch), bundle, batch


def test_the_peers_loss_is_that_of_the_same_model(peer: tuple[Any, Bundle, Any]) -> None:
    torch_mezo, bundle, batch = peer
    logits = Engine(bundle, bundle.parameters()).head_input(batch).astype(np.float64) @ torch_mezo.weights["head"].numpy().T
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = -np.log(chances[np.arange(len(logits)), batch.fields["labels"]]).mean()
    assert float(torch_mezo.loss()) == pytest.approx(wanted, abs=1e-5)


def test_a_step_of_the_peer_moves_what_is_trained_by_the_slope_along_its_direction(peer: tuple[Any, Bundle, Any]) -> None:
    torch = pytest.importorskip("torch")
    from coordinator.bench.mezo_torch import RATE

    torch_mezo, _, _ = peer
    before = {name: values.clone() for name, values in torch_mezo.weights.items()}
    slope = torch_mezo.step()
    assert np.isfinite(slope)
    assert slope != 0
    torch.manual_seed(torch_mezo.seed)
    for name, values in torch_mezo.weights.items():
        if name in torch_mezo.trained:
            z = torch.normal(mean=0, std=1, size=values.shape)
            np.testing.assert_allclose(values, before[name] - RATE * slope * z, atol=1e-6)
        else:
            assert name.startswith("embeddings.")
    embeddings = [name for name in before if name.startswith("embeddings.")]
    assert embeddings
    assert all(torch.equal(torch_mezo.weights[name], before[name]) for name in embeddings)
