"""Adapters in rank slices: what is bound and tried is what the plain definition says of the first dimensions."""

from collections.abc import Callable

import numpy as np
import pytest
from conftest import Bundles
from hypothesis import given, settings
from hypothesis import strategies as st
from nested_models import nested_model
from tiny_walks import SIZES, batch_of, moved, plan, tree_of

from zo import ranks
from zo.batches import Batch
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import ConfigError
from zo.plan import Node, Shape
from zo.planning import one_level
from zo.reference import probe
from zo.terms import Term

RANKS = (1, 2, 4)
EXACT = 2e-5  # nats: float32 against float64
CASES = [("bert", "lora-fa"), ("bert", "lora"), ("llama", "lora-fa"), ("llama-tied", "lora")]


@pytest.fixture
def nested(bundles: Bundles) -> Callable[..., Bundle]:
    return lambda model="bert", trainable="lora-fa": bundles(model, trainable, ranks=RANKS)


@pytest.mark.parametrize("rank", [0, *RANKS])
@pytest.mark.parametrize(("model", "trainable"), CASES)
def test_a_prefix_is_the_plain_model_of_its_dimensions(model: str, trainable: str, rank: int, nested: Callable[..., Bundle]) -> None:
    bundle = nested(model, trainable)
    parameters, batch, plain = moved(bundle), batch_of(bundle), nested_model(model, bundle, rank)
    loss, logits = Engine(bundle, parameters, rank=rank).forward(batch)
    assert loss == pytest.approx(plain.loss(parameters.tensors(), batch.fields), abs=EXACT)
    np.testing.assert_allclose(logits, plain.logits(parameters.tensors(), batch.fields), atol=1e-4)


@pytest.mark.parametrize(
    "shape",
    [
        Shape((3,), rank=1),
        Shape((2,), rank=2),
        Shape((2,), clean=True, rank=2),
        Shape((2, 3), (2,), rank=1),
        Shape((2, 2), (1,), joint=True, rank=2),
        Shape((2,), groups=(0, 1, 4), rank=2),  # some slices of some blocks
        Shape((2,), groups=(2, 3, 9)),
    ],
    ids=str,
)
def test_probes_of_a_prefix_are_those_of_the_plain_definition(shape: Shape, nested: Callable[..., Bundle]) -> None:
    bundle = nested()
    parameters, batch, plain = moved(bundle), batch_of(bundle), nested_model("bert", bundle, shape.rank)
    node = tree_of(bundle, shape)
    expected = probe(parameters, node, lambda tensors: plain.loss(tensors, batch.fields))
    assert np.ptp(expected) > 100 * EXACT
    np.testing.assert_allclose(Engine(bundle, parameters).probe(node, batch), expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("trainable", ["lora-fa", "lora"])
@pytest.mark.parametrize("rank", RANKS)
def test_a_prefix_is_a_bundle_built_at_that_rank(trainable: str, rank: int, bundles: Bundles) -> None:
    nested, alone = bundles("bert", trainable, ranks=RANKS), bundles("bert", trainable, ranks=tuple(each for each in RANKS if each <= rank))
    parameters = moved(nested)
    values = parameters.tensors()
    small = alone.parameters()
    for group in alone.manifest.groups:
        small.load(group.id, np.concatenate([values[tensor.name].reshape(-1) for tensor in group.tensors]))
    one, other = Engine(nested, parameters, rank=rank), Engine(alone, small)
    batch = batch_of(nested)
    assert one.loss(batch) == other.loss(batch)
    np.testing.assert_array_equal(one.forward(batch)[1], other.forward(batch)[1])


@given(
    count=st.integers(1, 5),
    rank=st.sampled_from((0, *RANKS)),
    groups=st.sets(st.integers(0, 8), min_size=1),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=30, deadline=None)
def test_branches_of_slices_have_the_bits_that_their_groups_say(
    count: int, rank: int, groups: set[int], seed: int, bundles: Bundles
) -> None:
    bundle = bundles("bert", "lora", ranks=RANKS)
    parameters = moved(bundle)
    engine = Engine(bundle, parameters, rank=rank)
    names = [tensor.name for group in sorted(groups) for tensor in parameters.groups[group].tensors]
    out, bound = engine.inputs.branches(names, 2 * count, rank)
    within = sorted(groups & ranks.prefix(bundle.manifest, rank))
    assert set(out) == {tensor.name for group in within for tensor in parameters.groups[group].tensors}
    parameters.probes(within, seed, count, (64, -64), out)
    expected = {name: np.empty((2 * count, *parameters.tensor(name).shape), np.float32) for name in out}
    steps = [(seed + place, sign) for place in range(count) for sign in (64, -64)]
    parameters.branches([[Term(tuple(within), each, np.array([step]))] for each, step in steps], expected)
    rows = rank or RANKS[-1]
    for name, pieces in ranks.pieces(bundle.manifest).items():
        if name not in bound:
            continue
        for piece in pieces:
            if piece.stop <= rows:
                live = parameters.tensor(piece.tensor)
                found = bound[name].numpy()[:, piece.start : piece.stop]
                np.testing.assert_array_equal(found, expected.get(piece.tensor, np.broadcast_to(live, found.shape)))
        assert bound[name].shape()[1] == rows


def test_what_is_added_is_seen_at_the_next_call(nested: Callable[..., Bundle]) -> None:
    bundle = nested()
    engine, batch = Engine(bundle, bundle.parameters()), batch_of(bundle)
    before, node = engine.loss(batch), plan(bundle)
    probed = engine.probe(node, batch)
    change = [Term((group,), 5, np.array([2**14])) for group in range(9)]
    changed = engine.losses(batch, [change])[0]
    assert engine.loss(batch) == before
    engine.parameters.add(change)
    assert engine.loss(batch) == changed != before
    again = engine.probe(node, batch)
    assert not np.array_equal(again, probed)
    np.testing.assert_array_equal(again, Engine(bundle, engine.parameters).probe(node, batch))


def test_probing_leaves_the_rank_and_the_parameters_as_they_were(nested: Callable[..., Bundle]) -> None:
    bundle = nested()
    engine = Engine(bundle, moved(bundle), rank=2)
    digest = engine.parameters.digest()
    engine.probe(one_level(bundle.manifest, SIZES, 3, 2, rank=1), batch_of(bundle))
    assert engine.rank == 2
    assert engine.parameters.digest() == digest
    with pytest.raises(ZeroDivisionError):
        engine.probe(one_level(bundle.manifest, SIZES, 3, 2, rank=1), batch_of(bundle), lambda: 1 // 0)
    assert engine.rank == 2


def test_a_smaller_rank_binds_less(nested: Callable[..., Bundle]) -> None:
    def bound(rank: int) -> int:
        bundle = nested()
        names = [tensor.name for group in bundle.manifest.groups if group.kind == "body" for tensor in group.tensors]
        return sum(value.numpy().nbytes for value in Engine(bundle, bundle.parameters()).inputs.branches(names, 2, rank)[1].values())

    assert bound(1) * 4 == bound(2) * 2 == bound(4) == bound(0)


def test_a_rank_that_the_bundle_has_not_is_refused(nested: Callable[..., Bundle]) -> None:
    bundle = nested()
    with pytest.raises(ConfigError, match="no adapters of rank 3"):
        Engine(bundle, bundle.parameters(), rank=3)
    with pytest.raises(ConfigError, match="no adapters of rank 3"):
        tree_of(bundle, Shape((1,), rank=3))
    batch: Batch = batch_of(bundle)
    with pytest.raises(ConfigError, match="no adapters of rank 5"):
        Engine(bundle, bundle.parameters()).probe(Node(0, 0, 1, plan(bundle).probe_sizes, rank=5), batch)
