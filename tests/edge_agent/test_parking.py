"""Which probes a device leaves out as noise, and when it looks at them again."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles
from tiny_walks import batch_of

from edge_agent.guest import Guest
from edge_agent.parking import AGAIN, Parking
from edge_agent.state import State
from edge_agent.status import Status, told
from zo.batches import Batch
from zo.bundle import Bundle
from zo.engine import Engine
from zo.plan import Node


class Noisy(Engine):
    """Its losses of probes of some groups are noise."""

    noisy: tuple[int, ...] = ()
    generator = np.random.default_rng(0)

    def probe(self, root: Node, batch: Batch, go_on: Callable[[], None] = lambda: None) -> np.ndarray:
        losses = super().probe(root, batch, go_on)
        tried = {group for size in root.probe_sizes for group in size.groups}
        return self.generator.normal(0, 1, losses.shape) if tried.intersection(self.noisy) else losses


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path, 1e9)


def test_what_is_noise_is_parked_and_looked_at_again_after_some_reports(bert_bundle: Bundle, state: State) -> None:
    *body, head = (group.id for group in bert_bundle.manifest.groups)
    engine = Noisy(bert_bundle, bert_bundle.parameters())
    status = Status(state)
    parking = Parking(engine, lambda: batch_of(bert_bundle), status, Guest(threading.Event()).go_on)
    assert parking.groups == ()
    assert status.facts["parked"] == []
    engine.noisy = tuple(body)
    parking.reported(1.0)
    parking.reported(0.51)
    assert parking.groups == ()
    parking.reported(0.49)  # the loss has halved
    assert parking.groups == tuple(body)
    status.write()
    assert "left out for now, as its probes are mostly noise here: body" in told({**status.facts, "alive": True})
    engine.noisy = (head,)
    for _ in range(AGAIN - 1):
        parking.reported(None)
    assert parking.groups == tuple(body)
    parking.reported(None)
    assert parking.groups == (head,)
    engine.noisy = ()
    parking.reported(0.2)
    assert parking.groups == ()
    assert status.facts["parked"] == []


def test_a_check_restores_the_parameters(bert_bundle: Bundle, state: State) -> None:
    engine = Noisy(bert_bundle, bert_bundle.parameters())
    engine.noisy = tuple(group.id for group in bert_bundle.manifest.groups)
    before = [engine.parameters.flat(group.id) for group in bert_bundle.manifest.groups]
    assert Parking(engine, lambda: batch_of(bert_bundle), Status(state), lambda: None).groups == engine.noisy
    for group, values in zip(bert_bundle.manifest.groups, before, strict=True):
        np.testing.assert_array_equal(engine.parameters.flat(group.id), values)


@pytest.mark.parametrize(("precision", "advised"), [("fp32", False), ("int8", True)])
def test_another_base_is_advised_unless_it_is_float32(
    precision: str, advised: bool, bundles: Bundles, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bundles("bert", precision=precision)
    engine = Noisy(bundle, bundle.parameters())
    engine.noisy = tuple(group.id for group in bundle.manifest.groups)
    Parking(engine, lambda: batch_of(bundle), Status(state), lambda: None)
    assert all(("Take another base" in each) == advised for each in caplog.messages)
    assert caplog.messages
