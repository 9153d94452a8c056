"""Losses along a stride are those of the parameters moved by hand, and nothing moves in the end."""

from collections.abc import Callable

import numpy as np
import pytest
from conftest import Bundles
from tiny_walks import batch_of

from zo.bundle import Bundle
from zo.engine import Engine
from zo.ledger import fold
from zo.stride import changes, losses
from zo.terms import Term, negated


def stride_of(bundle: Bundle) -> tuple[Term, ...]:
    groups = bundle.manifest.groups
    return tuple(Term((group.id,), 3, np.array([1 << max(0, -8 - group.log2_unit), -1])) for group in groups)


@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("bert", "norms"), ("llama-tied", "full")])
def test_they_are_those_of_the_parameters_moved_by_hand(model: str, trainable: str, bundles: Bundles) -> None:
    bundle = bundles(model, trainable)
    engine, batch, stride = Engine(bundle, bundle.parameters()), batch_of(bundle), stride_of(bundle)
    before, wanted = engine.parameters.digest(), []
    for change in changes(bundle.manifest, stride):
        engine.parameters.add(change)
        wanted.append(engine.loss(batch))
        engine.parameters.add(negated(change))
    found = losses(engine, [[batch]], stride)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert len(set(found)) == len(found) == 1 + 2 * len({group.kind for group in bundle.manifest.groups})
    assert engine.parameters.digest() == before


def test_the_changes_are_the_stride_kind_by_kind_forth_and_back(bert_bundle: Bundle) -> None:
    stride = stride_of(bert_bundle)
    none, body, body_back, head, head_back = changes(bert_bundle.manifest, stride)
    assert none == ()
    assert fold((*body, *head)) == fold(stride)
    assert (body_back, head_back) == (negated(body), negated(head))


def test_classes_count_evenly(bert_bundle: Bundle) -> None:
    engine, batch = Engine(bert_bundle, bert_bundle.parameters()), batch_of(bert_bundle)
    parts = batch.split(2)
    each = [losses(engine, [[part]])[0] for part in parts]
    assert losses(engine, [[part] for part in parts]) == [pytest.approx(np.mean(each))]
    assert losses(engine, []) == []


def test_a_stride_that_would_leave_the_lattice_is_not_measured(bert_bundle: Bundle) -> None:
    engine, batch = Engine(bert_bundle, bert_bundle.parameters()), batch_of(bert_bundle)
    before = engine.parameters.digest()
    far = (Term((bert_bundle.manifest.groups[0].id,), 0, np.array([1 << 25])),)
    assert losses(engine, [[batch]], far) == losses(engine, [[batch]])
    assert engine.parameters.digest() == before


def test_what_is_raised_between_batches_ends_it_with_the_parameters_restored(bert_bundle: Bundle) -> None:
    engine, batch = Engine(bert_bundle, bert_bundle.parameters()), batch_of(bert_bundle)
    before = engine.parameters.digest()
    with pytest.raises(InterruptedError):
        losses(engine, [[batch, batch]], stride_of(bert_bundle), stopping_at(2))
    assert engine.parameters.digest() == before


def stopping_at(call: int) -> Callable[[], None]:
    calls = 0

    def go_on() -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise InterruptedError

    return go_on
