"""The comparison of precisions: signal per second is what the figures beside it say, and the best is the largest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Bundles

from coordinator.bench import precisions, tiny_models
from coordinator.build.build import calibration_batches
from zo.bundle import Bundle
from zo.engine import Engine
from zo.manifest import PRECISIONS, Precision


@pytest.fixture(scope="module")
def found(bundles: Bundles) -> dict[str, Any]:
    """Measured on a tiny bundle with two bases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precisions, "SHAPES", ((2, 8), (1, 16)))
        return precisions.measure(bundles("bert", precision="fp32,w4"), tiny_models.examples(tiny_models.CLASSIFICATION, seed=5), 1, 8)


def test_every_precision_has_its_figures(found: dict[str, Any]) -> None:
    exact, coarse = (found["precisions"][each] for each in ("fp32", "w4"))
    for row in (exact, coarse):
        assert row["ms"].keys() == {"2x8", "1x16"}
        assert 20 < row["loaded_mb"] <= row["resident_mb"] + 1
    assert coarse["bundle_mb"] < exact["bundle_mb"]
    assert exact["correlation"] > 0.99
    assert -1 <= coarse["correlation"] < exact["correlation"]


def test_signal_is_squared_correlation_over_seconds(found: dict[str, Any]) -> None:
    for shape, by_precision in found["signal_per_second"].items():
        for name, signal in by_precision.items():
            row = found["precisions"][name]
            assert signal == pytest.approx(row["correlation"] ** 2 * 1000 / row["ms"][shape], rel=1e-2)
        assert by_precision[found["best"][shape]] == max(by_precision.values())


def test_a_table_for_a_person_stars_the_best(found: dict[str, Any]) -> None:
    told = precisions.told(found).splitlines()
    assert len(told) == 7
    assert sum(line.count("*") - line.count("**") * 2 for line in told[5:]) == 2
    assert all(line.startswith(name) for line, name in zip(told[1:3], ("fp32", "w4"), strict=True))


def test_a_model_correlates_with_itself_and_not_with_a_model_of_other_weights(bundles: Bundles) -> None:
    exact = bundles("bert")
    batches = calibration_batches(exact, tiny_models.examples(tiny_models.CLASSIFICATION))
    others: dict[Precision, Bundle] = {"fp32": exact, "w4": bundles("bert-classifier")}
    engines = {each: Engine(bundle, bundle.parameters()) for each, bundle in others.items()}
    correlations = precisions.correlations(engines, batches, 8)
    assert correlations["fp32"] > 0.99
    assert abs(correlations["w4"]) < 0.9


def test_all_precisions_are_bases_of_one_bundle(folders: Callable[[str], Path], tmp_path: Path) -> None:
    task = tiny_models.CLASSIFICATION
    bundle = precisions.build_all(folders("bert"), tmp_path / "bundle", task, "lora-fa", tiny_models.examples(task))
    assert tuple(bundle.manifest.bases) == PRECISIONS
    assert bundle.manifest.precision == "fp32"
