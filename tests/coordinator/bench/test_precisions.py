"""The comparison of precisions: signal per second is what the figures beside it say, and the best is the largest."""

from typing import Any

import pytest
from conftest import Bundles

from coordinator.bench import precisions, tiny_models
from coordinator.build.build import calibration_batches
from zo.bundle import Bundle
from zo.engine import Engine
from zo.manifest import Precision


@pytest.fixture(scope="module")
def found(bundles: Bundles) -> dict[str, Any]:
    """Measured on tiny bundles in two precisions."""
    given: tuple[Precision, ...] = ("fp32", "w4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precisions, "SHAPES", ((2, 8), (1, 16)))
        held = {each: bundles("bert", precision=each) for each in given}
        return precisions.measure(held, tiny_models.examples(tiny_models.CLASSIFICATION, seed=5), 1, 8)


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
    rows = {"a": {"correlation": 0.5, "ms": {"1x1": 10.0}}, "b": {"correlation": -0.5, "ms": {"1x1": 1.0}}}
    assert precisions.signal_per_second(rows, "1x1") == {"a": 25.0, "b": 0.0}


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


@pytest.mark.parametrize(("model", "examples", "tokens"), [("bert", 3, 8), ("llama-tied", 2, 16)])
def test_random_batches_have_the_shape_asked_for(model: str, examples: int, tokens: int, bundles: Bundles) -> None:
    batch = precisions.random_batch(bundles(model), examples, tokens)
    assert batch.fields["input_ids"].shape == (examples, tokens)
    assert batch.losses == (examples if model == "bert" else examples * tokens)
