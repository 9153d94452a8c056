"""What is measured is what the formulas leave open; what is fitted foretells what is run."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles
from hypothesis import given
from hypothesis import strategies as st

from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import BundleError
from zo.inactive import packed_bytes
from zo.manifest import Precision
from zo.memory import calibration, process
from zo.memory.calibration import SHAPES, Point
from zo.memory.engine import Device, need
from zo.memory.shapes import table_bytes
from zo.quantised import BITS


def tables(bundle: Bundle) -> int:
    model = bundle.manifest.dimensions
    return table_bytes(bundle.manifest.precision, model.tables, model.width)


@given(imports=st.integers(10**7, 10**9), hidden=st.floats(1.0, 30.0))
def test_the_fit_finds_what_the_formula_was_given(imports: int, hidden: float, bert_bundle: Bundle) -> None:
    device, manifest = Device(imports, hidden), bert_bundle.manifest
    shapes = [(examples, min(tokens, manifest.task.max_tokens)) for examples, tokens in SHAPES]
    points = [Point(e, t, need(manifest, 2 * e * t, t, device).total - tables(bert_bundle)) for e, t in shapes]
    found = calibration.fit(points, manifest)
    assert found.imports == pytest.approx(imports, rel=0.01)
    assert found.hidden == pytest.approx(hidden, abs=0.05)


def test_nothing_measured_leaves_the_usual_values(bert_bundle: Bundle) -> None:
    assert calibration.fit([], bert_bundle.manifest) == Device()
    single = calibration.fit([Point(1, 16, 10**8)], bert_bundle.manifest)
    assert single.hidden == Device().held("fp32")
    assert single.imports < 10**8


def test_what_is_measured_are_the_shapes_that_fit(bert_bundle: Bundle) -> None:
    engine = Engine(bert_bundle, bert_bundle.parameters(), max_rows=77)
    before, base = engine.parameters.digest(), bert_bundle.folder / bert_bundle.manifest.base.file
    points = calibration.measure(engine, base, lambda rows, tokens: rows <= 300)
    assert [(point.examples, point.tokens) for point in points] == [(1, 16), (4, 32), (2, 32)]
    assert all(point.resident > 10**7 for point in points)
    assert (engine.max_rows, engine.parameters.digest()) == (77, before)


def test_a_bundle_that_states_no_dimensions_cannot_be_planned(bert_bundle: Bundle) -> None:
    bare = dataclasses.replace(bert_bundle.manifest, model=None)
    with pytest.raises(BundleError, match="does not state the model's dimensions"):
        need(bare, 64, 32, Device())


def test_a_built_bundle_states_its_dimensions(bundles: Bundles) -> None:
    bert, llama = bundles("bert").manifest.dimensions, bundles("llama-tied").manifest.dimensions
    assert (bert.blocks, bert.width, bert.heads, bert.feed_forward, bert.encoder) == (3, 32, 4, 64, True)
    assert (llama.kv_heads, llama.gated, llama.tied, llama.vocabulary) == (2, True, True, 60)


def test_trainables_of_a_bundle_are_its_groups(bundles: Bundles) -> None:
    for trainable in ("lora-fa", "full"):
        manifest = bundles("llama-tied", trainable).manifest
        found = need(manifest, 64, 16, Device())
        size = sum(group.size for group in manifest.groups)
        body = sum(group.size for group in manifest.groups if group.kind == "body")
        assert found.trainables == 4 * (size + (body // manifest.dimensions.blocks if trainable == "full" else 2 * body))
        assert found.base > 0


@pytest.mark.parametrize("precision", ["w4", "w8"])
def test_a_block_left_inactive_is_held_in_few_bits(precision: Precision, bundles: Bundles) -> None:
    manifest = bundles("bert", "full", "w4,w8,fp32").manifest.at(precision)
    found = [need(manifest, 64, 16, Device(), active=active) for active in range(4)]
    block, packed = 4 * manifest.groups[0].size, packed_bytes(manifest.groups[0].tensors, BITS[precision])
    assert [more.trainables - less.trainables for less, more in pairwise(found)] == [block] * 3
    assert found[0].base - found[1].base == pytest.approx(packed, rel=0.25)  # norms and biases, which stay as they are, are many here
    assert need(manifest, 64, 16, Device()) == found[3]
    exact = manifest.at("fp32")
    assert need(exact, 64, 16, Device(), active=1) == need(exact, 64, 16, Device())  # it has no graphs for inactive blocks


def test_the_high_water_mark_can_begin_anew_and_the_peak_is_not_forgotten() -> None:
    held = np.ones(40_000_000, np.uint8)
    high = process.peak()
    del held
    process.reset()
    assert process.peak() >= high - (1 << 20)  # the kernel counts in batches
    assert process.since_reset() <= high - 30_000_000
    assert process.resident() <= process.since_reset() + (1 << 20)


def test_what_is_mapped_of_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(bytes(1 << 20))
    assert process.mapped(path) == 0
    mapped = np.memmap(path, np.uint8, "r")
    assert int(mapped.sum()) == 0
    assert process.mapped(path) == 1 << 20
