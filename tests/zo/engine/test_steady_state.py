"""What a step costs once warm: no fresh memory, and over weights that are perturbed in place no pass more than it must."""

import resource

import numpy as np
import pytest
from conftest import Bundles
from passing import Passing
from tiny_walks import batch_of, moved, plan

from zo.bundle import Bundle
from zo.engine import Engine, Prefix
from zo.ledger import Entry
from zo.replica import Replica
from zo.terms import Term

WARM, PROBES = 5, 20
LARGE = 100  # examples: activations of hundreds of kilobytes, which malloc alone would map anew each time
MOST_FAULTS = 50  # in all probes; what Python itself takes now and then


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def passing(bundle: Bundle) -> Passing:
    return Passing(bundle.manifest.run_key, bundle.manifest.groups, moved(bundle).tensors())


def update(bundle: Bundle, number: int) -> Entry:
    """An entry on all groups."""
    terms = tuple(Term((group.id,), 7000 + number, np.array([1 << (-9 - group.log2_unit)])) for group in bundle.manifest.groups)
    return Entry(number, number, 1, terms)


@pytest.mark.parametrize("prefix", [False, True], ids=["nothing kept", "prefix kept"])
@pytest.mark.parametrize("top_blocks", [None, 1, 0])
@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("llama", "norms"), ("bert", "full")])
def test_a_probe_takes_no_fresh_memory_once_warm(
    model: str, trainable: str, top_blocks: int | None, prefix: bool, bundles: Bundles
) -> None:
    bundle = bundles(model, trainable, top_blocks=top_blocks)
    engine = Engine(bundle, moved(bundle), max_rows=4000, prefix=Prefix(1e7) if prefix else None)
    batch, node = batch_of(bundle, LARGE), plan(bundle)
    for _ in range(WARM):
        engine.probe(node, batch)
    buffers, before = list(engine.inputs._buffers), faults()
    for _ in range(PROBES):
        engine.probe(node, batch)
    assert faults() - before < MOST_FAULTS
    assert list(engine.inputs._buffers) == buffers


@pytest.mark.parametrize(("trainable", "branched"), [("lora-fa", True), ("full", False)])
def test_branch_buffers_are_as_many_as_the_sizes_of_walks(trainable: str, branched: bool, bundles: Bundles) -> None:
    bundle = bundles("bert", trainable)
    engine, batch = Engine(bundle, moved(bundle), max_rows=200), batch_of(bundle)
    tensors = sum(len(group.tensors) for group in bundle.manifest.groups)
    together = 200 // (2 * batch.examples * batch.tokens)
    assert together == 1
    for count in (1, 2, 5):  # one direction at a time, whatever their count
        engine.probe(plan(bundle, count), batch)
        assert len(engine.inputs._buffers) == tensors * branched


@pytest.mark.parametrize("directions", [1, 3])
def test_in_place_restoring_updating_and_perturbing_again_is_one_pass(directions: int, bundles: Bundles) -> None:
    bundle = bundles("bert", "full")
    parameters = passing(bundle)
    engine, replica = Engine(bundle, parameters), Replica(parameters, bytes(32), bundle.initial_tensors)
    batch, node, groups = batch_of(bundle), plan(bundle, directions), [group.id for group in bundle.manifest.groups]
    for number in range(1, 6):
        engine.probe(node, batch)
        replica.apply(update(bundle, number))
        assert parameters.passes == dict.fromkeys(groups, 2 * directions * number)  # one each for +E and -E of every direction
    parameters.settle()
    assert parameters.passes == dict.fromkeys(groups, 2 * directions * 5 + 1)
    alone = Replica(Passing(bundle.manifest.run_key, bundle.manifest.groups, moved(bundle).tensors()), bytes(32), bundle.initial_tensors)
    for number in range(1, 6):
        alone.apply(update(bundle, number))
    assert parameters.digest() == alone.parameters.digest()


def test_side_by_side_an_update_is_one_pass_and_probes_take_none(bert_bundle: Bundle) -> None:
    parameters = passing(bert_bundle)
    engine, replica = Engine(bert_bundle, parameters), Replica(parameters, bytes(32), bert_bundle.initial_tensors)
    for number in range(1, 4):
        engine.probe(plan(bert_bundle), batch_of(bert_bundle))
        assert set(parameters.passes.values()) <= {number - 1}
        replica.apply(update(bert_bundle, number))
    parameters.settle()
    assert set(parameters.passes.values()) == {3}


def test_a_walk_that_is_ended_owes_its_way_back_and_no_more(bundles: Bundles) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    bundle = bundles("llama", "full")
    parameters = passing(bundle)
    before = parameters.digest()
    with pytest.raises(Stop):
        Engine(bundle, parameters).probe(plan(bundle), batch_of(bundle), stop)
    assert set(parameters.passes.values()) == {1}
    assert parameters.digest() == before
    assert set(parameters.passes.values()) == {2}
