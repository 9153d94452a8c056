"""Rounds of a tiny bundle over a file, told what happens by hand."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bundles, recalibrated
from local_coordinator import PROBE, answer, settings

from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from coordinator.summary import NOTHING_DONE
from zo.bundle import Bundle
from zo.checkpoint import Checkpoint
from zo.errors import StorageError
from zo.ledger import Entry, rollback
from zo.messages import Report, Verdict
from zo.plan import Shape
from zo.recipe import Split
from zo.seeds import MOST_DEVICES
from zo.terms import Term

Make = Callable[..., Rounds]

CHANGED_SETTINGS: list[dict[str, Any]] = [
    {"probe": dataclasses.replace(PROBE, directions=4)},
    {"probe": dataclasses.replace(PROBE, log2_eps_body=-9)},
    {"log2_levels": 15},
    {"clip": 1.0},
]
PLANNED: dict[str, Any] = {"algorithm": "fedspzo"}
CUT: dict[str, Any] = {"algorithm": "fedspzo", "split": Split((2,), (4,))}
CHEAP_HEAD, DEAR_HEAD = (500_000, 500_000, 100), (100, 100, 500_000)
SHAPES = (Shape((3,)), Shape((3, 4), (2,)), Shape((3, 2), (1,)), Shape((3, 1, 5), (1, 2)))


class Clock:
    """Seconds, moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class FailingStore(SqliteStore):
    """Its disk is full while `failing` names the method that is called."""

    failing = ""

    def enrol(self, run: int, device_id: int) -> int:
        return MOST_DEVICES if self.failing == "enrol" else super().enrol(run, device_id)

    def commit(self, run: int, entry: Entry, previous: bytes, signs: int, summary: dict[str, Any]) -> bytes:
        if self.failing == "commit" or (self.failing == "roll back" and not entry.contributors):
            raise StorageError("disk full")
        head = super().commit(run, entry, previous, signs, summary)
        if self.failing == "after commit":
            raise StorageError("disk ill")
        return head

    def add_checkpoint(self, run: int, checkpoint: Checkpoint) -> None:
        if self.failing == "add_checkpoint":
            raise StorageError("disk full")
        super().add_checkpoint(run, checkpoint)

    def add_reports(self, reports: Sequence[Report]) -> list[bool]:
        if self.failing == "add_reports":
            raise StorageError("disk full")
        kept = super().add_reports(reports)
        if self.failing == "after add_reports":
            raise StorageError("disk ill")
        return kept

    def add_evaluation(self, run: int, entry: int, split: str, metrics: dict[str, Any]) -> None:
        if self.failing == "add_evaluation":
            raise StorageError("disk full")
        super().add_evaluation(run, entry, split, metrics)

    def add_event(self, run: int, kind: str, text: str) -> None:
        if self.failing == "add_event":
            raise StorageError("disk full")
        super().add_event(run, kind, text)

    def set_state(self, run: int, state: str) -> None:
        if self.failing == "set_state":
            raise StorageError("disk full")
        super().set_state(run, state)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_rounds(bert_bundle: Bundle, tmp_path: Path, clock: Clock) -> Make:
    return maker(bert_bundle, tmp_path, clock)


@pytest.fixture
def several(bundles: Bundles, tmp_path: Path) -> Bundle:
    return several_bases(bundles, tmp_path)


@pytest.fixture
def make_several(several: Bundle, tmp_path: Path, clock: Clock) -> Make:
    return maker(several, tmp_path, clock)


def maker(bundle: Bundle, folder: Path, clock: Clock) -> Make:
    """make(devices=3, **settings): rounds over the same file at each call."""

    def rounds(devices: int = 3, **changed: Any) -> Rounds:
        store = FailingStore(folder / "run.sqlite", create=True)
        run = store.open_run("run", bundle.folder, bundle.digest)
        made = Rounds(store, run, bundle, settings(bundle, **changed), clock)
        for device in range(devices):
            assert made.enrol(1000 + device) == device
        return made

    return rounds


def several_bases(bundles: Bundles, folder: Path) -> Bundle:
    """With the bases fp32, int8, which needs larger probes, and w4."""
    return recalibrated(bundles("bert", precision="fp32,int8,w4"), folder / "several", "int8", log2_eps=-2)


def state(rounds: Rounds) -> tuple[int, int, bytes, bytes, int]:
    return rounds.ledger.entry, rounds.round, rounds.ledger.replica.head, rounds.ledger.parameters.digest(), len(rounds.reports)


def comes_to(rounds: Rounds, reports: list[Report]) -> tuple[Term, ...]:
    return rounds.aggregator.terms(rounds.aggregator.answers(reports))


def kinds(rounds: Rounds) -> list[str]:
    return [kind for _, kind, _ in rounds.store.events(rounds.run.id)]


def close(rounds: Rounds, devices: int = 1) -> None:
    """One round of that many reports, other ones every round."""
    for device in range(devices):
        scalars = (300 + 7 * rounds.round, -200, 100 * device)
        assert rounds.accept(answer(rounds, device, scalars=scalars)) is Verdict.ACCEPTED
    assert rounds.close_if_due()


def append_rollback(rounds: Rounds) -> Entry:
    """As `edge-coordinator rollback --to 0` does in another process."""
    store, run = FailingStore(rounds.store.path), rounds.run.id
    terms = rollback(store.entries(run))
    entry = Entry(rounds.ledger.entry + 1, rounds.round, 0, terms, rounds.bundle.parameters().digest())
    store.commit(run, entry, rounds.ledger.replica.head, 0, NOTHING_DONE | {"round": entry.round})
    return entry


def shaped(rounds: Rounds, device: int, shape: Shape | None = None, **changed: Any) -> Report:
    """As `answer`, of a tree of that shape, or of what the device is asked for."""
    if shape is None:
        plan = rounds.plan(device, "fp32")
        assert plan is not None
        shape = plan.root.shape
    draw = np.random.default_rng([rounds.round, device])
    scalars = tuple(draw.integers(-900, 900, shape.scalars).tolist())
    return answer(rounds, device, **{"scalars": scalars, "shape": shape, "plan": rounds.plan_id(device, "fp32", shape)} | changed)
