"""Rates and probe sizes: what the settings state, what calibration found, and how rates fall."""

import dataclasses

import numpy as np
import pytest
from small_rounds import two_groups

from zo.bundle import Bundle
from zo.errors import BundleError, ConfigError
from zo.manifest import Calibration, Manifest, Task
from zo.planning import one_level, sizes
from zo.rates import Rates, decay, default_rate
from zo.recipe import Probe, Rate


@pytest.fixture
def manifest(bert_bundle: Bundle) -> Manifest:
    return two_groups(bert_bundle)


def test_the_rate_falls_linearly_to_its_share() -> None:
    falling = [decay(Rate(final=0.1), number, 10) for number in range(1, 11)]
    assert falling[0] == 1
    assert np.allclose(np.diff(falling), -0.09)
    assert decay(Rate(final=0.1), 11, 10) == pytest.approx(0.1)
    assert decay(Rate(final=1.0), 7, 10) == 1


def test_rates_and_probe_sizes_are_the_bundles_where_nothing_is_stated(manifest: Manifest) -> None:
    found = Rates.of(Probe(), Rate(), manifest)
    assert found.log2_eps == {"body": -4, "head": -4}
    assert set(found.by_kind.values()) == {default_rate(manifest.task)}
    assert found.signal == {"body": 0.3, "head": 0.3}


def test_what_is_stated_counts_and_the_signal_follows_the_probe_size(manifest: Manifest) -> None:
    found = Rates.of(Probe(log2_eps_head=-2), Rate(body=0.0, head=2.0), manifest)
    assert (found.log2_eps, found.by_kind) == ({"body": -4, "head": -2}, {"body": 0.0, "head": 2.0})
    assert found.signal == pytest.approx({"body": 0.3, "head": 1.2})


@pytest.mark.parametrize(("log2_eps", "step"), [(-8, -8), (-5, -5), (-2, -4)])
def test_a_head_alone_moves_by_its_own_probe_up_to_a_bound(log2_eps: int, step: int, manifest: Manifest) -> None:
    alone = tuple(dataclasses.replace(each, log2_eps_apart=log2_eps) for each in manifest.calibration)
    calibrated = dataclasses.replace(manifest, bases={"fp32": dataclasses.replace(manifest.base, calibration=alone)})
    level = one_level(manifest, {"head": -4}, 0, 1)
    assert Rates.of(Probe(), Rate(), calibrated).log2_step("head", level, level, manifest) == step
    assert Rates.of(Probe(log2_eps_head=log2_eps), Rate(), manifest).log2_step("head", level, level, manifest) == step


@pytest.mark.parametrize(
    ("head", "curvature", "step"),
    [
        ("linear", 8.0, -13),
        ("label-words", 8.0, -13),
        ("linear", 2.0, -11),
        ("linear", 1e-9, -4),
        ("linear", -8.0, -4),
        ("linear", None, -4),
    ],
)
def test_a_head_that_nothing_bounds_moves_no_further_than_its_curvature_allows(
    head: str, curvature: float | None, step: int, manifest: Manifest
) -> None:
    task = dataclasses.replace(manifest.task, head=head, labels=("a", "b", "c", "d"))  # a rate of 0.1
    measured = tuple(dataclasses.replace(each, signal=0.5, curvature_apart=curvature) for each in manifest.calibration)
    given = dataclasses.replace(manifest, task=task, bases={"fp32": dataclasses.replace(manifest.base, calibration=measured)})
    level = one_level(manifest, {"head": -4}, 0, 1)
    found = Rates.of(Probe(), Rate(), given)
    assert found.log2_step("head", level, level, given) == step
    assert found.log2_step("body", level, level, given) == -4
    if step < -4:
        sum_of_steps = 256 * 0.1 * 2.0**step
        assert sum_of_steps <= 0.5 / 2.0**-4 / (curvature / 4.0**-4) < 2 * sum_of_steps
        bounded = dataclasses.replace(given, task=dataclasses.replace(task, head="prototypes"))
        assert Rates.of(Probe(), Rate(), bounded).log2_step("head", level, level, bounded) == -4


@pytest.mark.parametrize("signal", [5e-324, 1.0, 1e100])
@pytest.mark.parametrize("curvature", [5e-324, 1.0, 1e100])
@pytest.mark.parametrize("apart", [-64, 64])
def test_whatever_a_manifest_may_state_gives_steps(signal: float, curvature: float, apart: int, manifest: Manifest) -> None:
    task = dataclasses.replace(manifest.task, head="linear")
    extreme = {"signal": signal, "curvature_apart": curvature, "log2_eps_apart": apart}
    stated = tuple(dataclasses.replace(each, **(extreme if each.kind == "head" else {})) for each in manifest.calibration)
    given = dataclasses.replace(manifest, task=task, bases={"fp32": dataclasses.replace(manifest.base, calibration=stated)})
    level = one_level(manifest, {"head": -4}, 0, 1)
    assert 2.0 ** Rates.of(Probe(log2_eps_head=-4), Rate(), given).log2_step("head", level, level, given) <= 2.0**-4


def test_settings_hold_for_every_base_and_rates_are_of_the_one_looked_through(manifest: Manifest) -> None:
    coarse = tuple(Calibration(kind, -2, 0.9, 0.0, 0.0, 0.0, 1.0) for kind in ("body", "head"))
    both = dataclasses.replace(manifest, bases=manifest.bases | {"int8": dataclasses.replace(manifest.base, calibration=coarse)})
    assert Rates.of(Probe(), Rate(), both) == Rates.of(Probe(), Rate(), manifest)
    assert Rates.of(Probe(), Rate(), both.at("int8")).signal == {"body": 0.9, "head": 0.9}
    assert sizes(Probe(), both.at("int8")) == {"body": -2, "head": -2}
    assert [sizes(Probe(log2_eps_body=-7), both.at(each))["body"] for each in both.bases] == [-7, -7]


def test_a_bundle_that_was_never_calibrated_is_refused(manifest: Manifest) -> None:
    bare = dataclasses.replace(manifest, bases={"fp32": dataclasses.replace(manifest.base, calibration=())})
    with pytest.raises(BundleError, match="bundle calibrate"):
        Rates.of(Probe(), Rate(), bare)
    with pytest.raises(BundleError, match="calibrat"):
        Rates.of(Probe(log2_eps_body=-4, log2_eps_head=-4), Rate(), bare)


@pytest.mark.parametrize(("kind", "log2"), [("body", -21), ("body", 4), ("head", -19), ("head", 6)])
def test_a_probe_below_a_unit_or_beyond_the_lattice_is_refused_by_its_name(manifest: Manifest, kind: str, log2: int) -> None:
    inwards = log2 + (1 if log2 < 0 else -1)
    assert Rates.of(Probe(**{f"log2_eps_{kind}": inwards}), Rate(), manifest).log2_eps[kind] == inwards
    with pytest.raises(ConfigError, match=f"log2_eps_{kind} = {log2}"):
        Rates.of(Probe(**{f"log2_eps_{kind}": log2}), Rate(), manifest)


@pytest.mark.parametrize("bad", [{"directions": 0}, {"directions": 4097}, {"examples": 0}, {"examples": 4097}])
def test_probes_without_directions_or_examples_are_refused(bad: dict[str, int]) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=name):
        Probe(**bad)


@pytest.mark.parametrize("bad", [{"body": -0.1}, {"head": float("nan")}, {"final": 1.5}, {"body": 1e7}])
def test_rates_that_are_no_positive_numbers_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Rate(**bad)


def test_more_classes_have_a_smaller_default_rate() -> None:
    two, eight = (Task("classification", 16, "linear", tuple(map(str, range(classes)))) for classes in (2, 8))
    assert default_rate(two) == pytest.approx(2 * default_rate(eight))
    assert default_rate(Task("language-modelling", 16, "vocabulary")) == 0.3
