"""Bundles with adapters in rank slices: what they hold, and what cannot be built."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles

from coordinator.bench import tiny_models
from coordinator.build.build import build, exact_twin
from coordinator.build.layers import Training
from coordinator.cli import main
from zo.bundle import open_bundle
from zo.errors import BundleError

RANKS = (1, 2, 4)
QUERY = "encoder.layer.0.attention.self.query"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("trainable", ["lora", "lora-fa"])
def test_every_block_has_a_group_a_slice(trainable: str, bundles: Bundles) -> None:
    manifest = bundles("bert", trainable, ranks=RANKS).manifest
    assert manifest.ranks == RANKS
    assert (manifest.rank, manifest.alpha / manifest.rank) == (4, 2.0)
    assert [group.kind for group in manifest.groups] == ["body"] * 9 + ["head"]
    for group, dimensions in zip(manifest.groups, (1, 1, 2) * 3, strict=False):
        assert {tensor.shape for tensor in group.tensors} == {(dimensions, 32)}
        assert len(group.tensors) == (4 if trainable == "lora" else 2)
    assert f"{QUERY}.lora_B.0" in {tensor.name for tensor in manifest.groups[0].tensors}


def test_slices_of_a_start_as_its_dimensions_and_those_of_b_at_zero(bundles: Bundles) -> None:
    tensors = bundles("bert", "lora", ranks=RANKS).initial_tensors()
    alone = bundles("bert", "lora", ranks=(2,)).initial_tensors()
    np.testing.assert_array_equal(np.concatenate([tensors[f"{QUERY}.lora_A.0"], tensors[f"{QUERY}.lora_A.1"]]), alone[f"{QUERY}.lora_A.0"])
    assert not any(values.any() for name, values in tensors.items() if ".lora_B." in name)


def test_a_bundle_without_ranks_says_nothing_of_them(bundles: Bundles) -> None:
    plain = json.loads((bundles("bert").folder / "manifest.json").read_text())
    assert "ranks" not in plain
    assert json.loads((bundles("bert", ranks=RANKS).folder / "manifest.json").read_text())["ranks"] == [1, 2, 4]


def test_bases_of_several_precisions_have_the_same_slices(bundles: Bundles) -> None:
    assert set(bundles("bert", precision="int8,fp32", ranks=RANKS).manifest.bases) == {"int8", "fp32"}


def test_it_can_be_calibrated_against_its_model_again(bundles: Bundles, folders: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = bundles("bert", precision="int8", ranks=RANKS)
    twin = exact_twin(bundle, folders("bert"), tmp_path / "twin")
    assert twin.manifest.groups == bundle.manifest.groups


@pytest.mark.parametrize(
    ("ranks", "trainable", "said"),
    [
        ((4, 2), "lora-fa", "--ranks = [4, 2] must grow"),
        ((2, 2), "lora-fa", "--ranks = [2, 2] must grow"),
        ((0, 2), "lora-fa", "--ranks = [0, 2] must be at least 1 each"),
        ((2, 64), "lora-fa", f"rank 64 is larger than layer '{QUERY}' of 32 x 32; give smaller --ranks"),
        ((2, 4), "norms", "trainable 'norms' has no adapters; --ranks needs 'lora-fa' or 'lora'"),
    ],
)
def test_ranks_that_cannot_be_are_refused_by_name(
    ranks: tuple[int, ...], trainable: str, said: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    training = Training(trainable, ranks=ranks)  # type: ignore[arg-type]
    found = refusal(lambda: build(folders("bert"), tmp_path / "out", tiny_models.CLASSIFICATION, training, ()))
    assert found == said


def test_ranks_of_the_head_alone_are_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    training = Training(top_blocks=0, ranks=(2, 4))
    found = refusal(lambda: build(folders("bert"), tmp_path / "out", tiny_models.CLASSIFICATION, training, ()))
    assert found == "the head alone has no adapters; --ranks needs a block that is trained"


def test_the_command_builds_it(folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(tiny_models.LABELS))
    command = [
        "bundle",
        "build",
        str(folders("bert")),
        str(tmp_path / "out"),
        "--task",
        str(tmp_path / "labels.json"),
        "--max-tokens",
        "32",
    ]
    assert main([*command, "--ranks", "1,2,4", "--run-key", "7"]) == 0
    assert "ranks: 1, 2, 4, scale 4" in capsys.readouterr().out
    assert open_bundle(tmp_path / "out").manifest.ranks == RANKS
    with pytest.raises(SystemExit):
        main([*command, "--ranks", "2,four"])
    assert "'2,four' must be whole numbers with commas between" in capsys.readouterr().err
