"""What a device tells of itself: its own times, the memory that is left, and nothing else; and what becomes of a budget that falls."""

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_coordinator import LocalCoordinator
from tiny_walks import batch_of

from coordinator.allocation import Asked, Base
from coordinator.bench import tiny_models
from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.config import Round
from coordinator.demo import shares
from edge_agent import memory
from edge_agent.config import AgentConfig, PrefixSettings
from edge_agent.daemon import Daemon
from edge_agent.guest_config import Memory
from edge_agent.profile import FASTEST, Profiler
from zo import wire
from zo.bundle import Bundle, open_bundle
from zo.engine import Engine
from zo.memory.engine import Device
from zo.messages import Profile

Make = Callable[..., Profiler]


@pytest.fixture
def make(bert_bundle: Bundle) -> Make:
    """make(**settings): of a process that takes 100 MB itself."""

    def profiler(bundle: Bundle = bert_bundle, **changed: Any) -> Profiler:
        return Profiler(Engine(bundle, bundle.parameters()), batch_of(bundle), AgentConfig("data", **changed), Device(100_000_000))

    return profiler


def test_times_are_of_every_stage_and_the_line_is_the_owners_word(make: Make, bert_bundle: Bundle) -> None:
    found = make(link_speed=77_000.0).now()
    assert len(found.stage_ns) == len(found.single_ns) == len(bert_bundle.manifest.stages)
    assert min(*found.stage_ns, *found.single_ns) > 0
    assert found.bytes_per_second == 77_000
    assert 10**6 < found.signs_per_second < 10**13
    assert make(link_speed=1e12).now().bytes_per_second == FASTEST


def test_the_memory_told_is_what_the_budget_leaves_beside_the_process(make: Make) -> None:
    soft = Memory().soft
    for megabytes in (300, 900):
        left = soft * megabytes * 1e6 - 100e6
        assert abs(make(memory=Memory(budget=f"{megabytes}MB")).now().memory_mib - left / 2**20) <= 1
    assert make(memory=Memory(budget="90MB")).now().memory_mib == 1  # none would say that it is not known


def test_outputs_that_are_kept_of_stages_that_are_never_trained_are_not_the_models(bundles: Any) -> None:
    top = bundles("bert", top_blocks=1)
    told = {
        room: memory.left(top.manifest, AgentConfig("data", memory=Memory(budget="500MB"), prefix=PrefixSettings(memory=room)), Device(0))
        for room in (0.0, 5e6)
    }
    assert abs(told[0.0] - told[5e6] - 5e6) < 1e5


def test_memory_that_others_take_is_not_left(make: Make, bert_bundle: Bundle) -> None:
    everything = AgentConfig("data", memory=Memory(budget="100%", leave="1MB"))
    held = AgentConfig("data", memory=Memory(budget="100%", leave="60%"))
    assert memory.left(bert_bundle.manifest, held, Device(0)) < memory.left(bert_bundle.manifest, everything, Device(0))


def test_no_memory_is_told_where_it_cannot_be_planned(make: Make, bert_bundle: Bundle) -> None:
    older = dataclasses.replace(bert_bundle, manifest=dataclasses.replace(bert_bundle.manifest, model=None))
    assert make(older).now().memory_mib == 0


def test_a_profile_is_small_on_the_wire() -> None:
    each = (50_000_000,) * 13
    assert len(wire.encode(Profile(4000, each, each, 10**9, 10**6))) < 150


WIDER = {32: 160, 64: 640}  # so that a block takes mebibytes


@pytest.fixture
def wide(tmp_path: Path) -> Bundle:
    """BERT of three blocks whose weights are trained, 160 wide."""
    weights = {
        name: np.resize(values, [WIDER.get(each, each) for each in values.shape]) / np.float32(2.2 if values.ndim == 2 else 1)
        for name, values in tiny_models.bert_weights().items()
    }
    model = tiny_models.save(tmp_path / "model", tiny_models.BERT | {"hidden_size": 160, "intermediate_size": 640}, weights)
    build(
        model,
        tmp_path / "bundle",
        tiny_models.CLASSIFICATION,
        Training("full", "w4", run_key=7),
        tiny_models.examples(tiny_models.CLASSIFICATION),
    )
    return open_bundle(tmp_path / "bundle")


class Shrinking(Profiler):
    """Has room for one block less than all from the second request on."""

    asked = 0

    def now(self) -> Profile:
        self.asked += 1
        left = Base(self._manifest, Asked()).needed(2) if self.asked > 1 else 2**32
        return dataclasses.replace(super().now(), memory_mib=-(-left >> 20))


class Small(Daemon):
    PROFILER = Shrinking


def test_a_budget_that_falls_gives_a_smaller_plan_in_the_next_round(wide: Bundle, tmp_path: Path) -> None:
    shares.write(tmp_path / "data" / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30))
    config = AgentConfig(str(tmp_path / "data"), state=str(tmp_path / "state"), insecure_loopback=True)
    wanted = {"round": Round(1, 1, 30.0), "rounds": 6, "digest_every": 1}
    with LocalCoordinator(wide, tmp_path / "run.sqlite", **wanted) as coordinator:
        daemon = Small(dataclasses.replace(config, coordinator=coordinator.address), threading.Event())
        daemon.run()
        entries = coordinator.call(lambda s: s.rounds.store.entries(1))
        events = coordinator.call(lambda s: s.rounds.store.events(1))
        digest = coordinator.call(lambda s: s.rounds.ledger.digest().hex())
    tried = [{group for term in entry.terms for group in term.groups} for entry in entries]
    every = {group.id for group in wide.manifest.groups}
    assert tried[0] == every
    assert [len(each) for each in tried[1:]] == [len(every) - 1] * 5
    assert set.union(*tried[1:]) == every
    assert events == []
    assert json.loads((daemon.state.folder / "status.json").read_text())["digest"] == digest
