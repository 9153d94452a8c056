"""An engine that holds some blocks in float32 and computes the others in few bits."""

import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles

from zo import inactive
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import BundleError
from zo.ledger import genesis
from zo.manifest import Precision
from zo.plan import Node, Shape
from zo.planning import tree
from zo.quantised import BITS
from zo.replica import Replica
from zo.terms import Term
from zo.timing import random_batch

SIZES = {"body": -10, "head": -10}
CHANGES = (Term((0, 1, 2, 3), 5, np.array([900, -700])), Term((1, 3), 9, np.array([2500])))


def rested(bundle: Bundle, folder: Path, active: Collection[int] = ()) -> tuple[Engine, Replica]:
    """An engine with these blocks active after CHANGES, the others made inactive as they are then."""
    manifest = bundle.manifest
    optional = [group for group in manifest.groups if group.id in manifest.optional]
    parameters = bundle.parameters(among={group.id for group in manifest.groups} - manifest.optional)
    replica = Replica(parameters, genesis(bundle.digest, b""), bundle.initial_tensors, optional)
    parameters.add(CHANGES)
    replica.folding.add(CHANGES)
    engine = Engine(bundle, parameters)
    for group in optional:
        number = next(place for place, stage in enumerate(manifest.stages) if group.id in stage.groups)
        if group.id in active:
            replica.hold(group)
            engine.activate(number)
            continue
        folder.mkdir(exist_ok=True)
        inactive.write(folder, group.tensors, BITS[manifest.precision], replica.exact(group))
        shutil.copyfile(bundle.folder / manifest.stages[number].inactive, folder / manifest.stages[number].inactive)
        engine.rest(number, folder)
        shutil.rmtree(folder)  # nothing of it is needed any more
    return engine, replica


def whole(bundle: Bundle) -> Engine:
    """All blocks in float32, after CHANGES."""
    parameters = bundle.parameters()
    parameters.add(CHANGES)
    return Engine(bundle, parameters)


def plan(bundle: Bundle, groups: tuple[int, ...], directions: int = 8) -> Node:
    return tree(bundle.manifest, SIZES, Shape((directions,), groups=groups))


@pytest.mark.parametrize("model", ["bert", "llama"])
@pytest.mark.parametrize(("precision", "near"), [("w8", 0.02), ("w4", 0.3)])
def test_losses_are_near_those_of_float32(model: str, precision: Precision, near: float, bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles(model, "full", "w4,w8,fp32").at(precision)
    batch = random_batch(bundle.manifest.task, 60, 6, 12)
    exact = whole(bundle).loss(batch)
    resting = rested(bundle, tmp_path / "x")[0].loss(batch)
    assert resting != exact
    assert resting == pytest.approx(exact, abs=near)
    assert rested(bundle, tmp_path / "x", {0, 1, 2})[0].loss(batch) == exact


def test_slopes_of_active_blocks_are_near_those_of_float32(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("bert", "full", "w4,w8,fp32").at("w8")
    batch = random_batch(bundle.manifest.task, 60, 6, 12)
    losses = [engine.probe(plan(bundle, (1,)), batch) for engine in (whole(bundle), rested(bundle, tmp_path / "x", {1})[0])]
    exact, found = ((each[::2] - each[1::2]) / 2 for each in losses)
    assert np.corrcoef(exact, found)[0, 1] > 0.99


def test_a_probe_of_some_blocks_leaves_them_as_they_were(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("bert", "full", "w4,w8,fp32").at("w4")
    engine, replica = rested(bundle, tmp_path / "x", {1, 2})
    engine.probe(plan(bundle, (1, 2, 3)), random_batch(bundle.manifest.task, 60, 4, 8))
    assert [group.id for group in replica.missing] == [0]
    assert replica.digest() == whole(bundle).parameters.digest()


def test_stages_below_the_lowest_active_block_run_once_a_batch(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("bert", "full", "w4,w8,fp32").at("w4")
    engine, _ = rested(bundle, tmp_path / "x", {2})
    ran, run = list[int](), engine.stages.run

    def noting(values: object, first: int, stop: int, *others: object) -> object:
        ran.extend(range(first, stop))
        return run(values, first, stop, *others)  # type: ignore[arg-type]

    engine.stages.run = noting  # type: ignore[method-assign, assignment]
    engine.probe(plan(bundle, (2,), 4), random_batch(bundle.manifest.task, 60, 4, 8))
    assert [ran.count(stage) for stage in range(5)] == [1, 1, 1, 8, 8]


def test_a_base_without_inactive_graphs_needs_all_blocks(bundles: Bundles) -> None:
    bundle = bundles("bert", "full", "w4,w8,fp32").at("fp32")
    with pytest.raises(ValueError, match="stage 1 has no graph"):
        Engine(bundle, bundle.parameters(among={3}))


def test_an_inactive_graph_may_read_nothing_but_its_weights(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("bert", "full", "w4,w8,fp32").at("w4")
    engine = Engine(bundle, bundle.parameters(among={3}))
    stage = bundle.manifest.stages[1]
    content = (bundle.folder / stage.inactive).read_bytes().replace(b"inactive.codes", b"/etc/hostname!")
    (tmp_path / stage.inactive).write_bytes(content)
    with pytest.raises(BundleError, match="do not use this bundle"):
        engine.rest(1, tmp_path)
