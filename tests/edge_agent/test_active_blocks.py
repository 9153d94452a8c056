"""Blocks that come and go on a device: exact at every change, in few bits meanwhile, and within what may be written."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles
from hypothesis import given, settings
from hypothesis import strategies as st
from local_coordinator import LocalCoordinator
from waiting import wait_until

from coordinator.allocation import Asking
from coordinator.bench import tiny_models
from coordinator.blocks import Blocks as AllocatedBlocks
from coordinator.config import Round
from coordinator.demo import shares
from coordinator.service import Service
from edge_agent import memory
from edge_agent.blocks import IN_MEMORY, SCRATCH, Blocks
from edge_agent.config import AgentConfig
from edge_agent.daemon import Daemon
from edge_agent.guest_config import Memory
from edge_agent.state import State
from zo import wire
from zo.bundle import Bundle
from zo.checkpoint import Checkpoint, GroupValues
from zo.engine import Engine
from zo.errors import DoesNotFit, StorageError
from zo.inactive import packed_bytes
from zo.ledger import Entry, genesis
from zo.memory.engine import Device as MemoryDevice
from zo.replica import Diverged, Replica
from zo.terms import Term
from zo.timing import random_batch


@pytest.fixture(scope="module")
def bundle(bundles: Bundles) -> Bundle:
    return bundles("bert", "full", "w4,w8,fp32").at("w8")


class Device:
    """A replica that holds the head alone at first, and an engine over it."""

    def __init__(self, bundle: Bundle, folder: Path, every: int = 4, daily: float = 1e9, kind: type[Blocks] = Blocks) -> None:
        manifest = bundle.manifest
        parameters = bundle.parameters(among={group.id for group in manifest.groups} - manifest.optional)
        optional = [group for group in manifest.groups if group.id in manifest.optional]
        self.bundle, self.state = bundle, State(folder, daily)
        self.replica = Replica(parameters, genesis(bundle.digest, b""), bundle.initial_tensors, optional)
        self.engine = Engine(bundle, parameters)
        self.room = 3  # blocks
        self.blocks = kind(bundle, self.engine, self.replica, self.state, every, self.govern, lambda: None)
        self.blocks.refresh()

    def govern(self, active: int) -> None:
        if active > self.room:
            raise DoesNotFit(f"{active} of {self.room}")

    def loss(self) -> float:
        return self.engine.loss(random_batch(self.bundle.manifest.task, 60, 4, 8))


def whole(bundle: Bundle) -> Replica:
    return Replica(bundle.parameters(), genesis(bundle.digest, b""), bundle.initial_tensors)


def entry(number: int, groups: Sequence[int], steps: Sequence[int] = (400, -300), digest: bytes | None = None) -> Entry:
    return Entry(number, number, 1, (Term(tuple(groups), 10 * number, np.array(steps, np.int64)),), digest)


@pytest.fixture
def device(bundle: Bundle, tmp_path: Path) -> Device:
    return Device(bundle, tmp_path / "state")


subsets = st.sets(st.integers(0, 2))


@settings(max_examples=15, deadline=None)
@given(rounds=st.lists(st.tuples(subsets, st.sets(st.integers(0, 3), min_size=1)), min_size=1, max_size=6))
def test_whatever_is_active_the_parameters_are_the_fleets(
    rounds: list[tuple[set[int], set[int]]], bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    device, fleet = Device(bundle, tmp_path_factory.mktemp("blocks")), whole(bundle)
    for number, (active, moved) in enumerate(rounds, 1):
        device.blocks.activate(active)
        assert set(device.blocks.active) == active
        for replica in (device.replica, fleet):
            replica.apply(entry(number, sorted(moved)))
        device.blocks.follow(entry(number, sorted(moved), digest=fleet.digest()))
        assert device.replica.digest() == fleet.digest()
        assert np.isfinite(device.loss())
    device.blocks.activate({0, 1, 2})
    assert device.replica.parameters.digest() == fleet.parameters.digest()
    assert device.loss() == Engine(bundle, fleet.parameters).loss(random_batch(bundle.manifest.task, 60, 4, 8))
    device.state.close()


def test_inactive_blocks_are_stale_until_they_are_refreshed(device: Device, bundle: Bundle) -> None:
    fleet, before = whole(bundle), device.loss()
    for number in range(1, 5):
        each = entry(number, [0, 1, 2], (9000, -7000))
        for replica in (device.replica, fleet):
            replica.apply(each)
        if number < 4:
            device.blocks.follow(each)
            assert device.loss() == before
    device.blocks.follow(entry(4, [0, 1, 2], digest=fleet.digest()))
    exact = Engine(bundle, fleet.parameters).loss(random_batch(bundle.manifest.task, 60, 4, 8))
    assert abs(device.loss() - exact) < abs(before - exact) / 3


def test_a_digest_is_waited_for_but_not_for_ever(device: Device) -> None:
    seen = []
    for number in range(1, 9):
        each = entry(number, [1], (9000,))
        device.replica.apply(each)
        device.blocks.follow(each)
        seen.append(device.loss())
    assert len(set(seen[:7])) == 1
    assert seen[7] != seen[6]


def test_another_digest_than_stated_is_noticed_at_a_refresh(device: Device) -> None:
    for number in range(1, 5):
        device.replica.apply(entry(number, [1], digest=bytes(range(32))))  # of all groups, which are not all held
        if number < 4:
            device.blocks.follow(entry(number, [1], digest=bytes(range(32))))
    with pytest.raises(Diverged, match="entry 4"):
        device.blocks.follow(entry(4, [1], digest=bytes(range(32))))


def test_a_device_goes_on_where_it_was_with_other_blocks(device: Device, bundle: Bundle, tmp_path: Path) -> None:
    fleet = whole(bundle)
    device.blocks.activate({1})
    for number in range(1, 4):
        for replica in (device.replica, fleet):
            replica.apply(entry(number, [number % 3, 3]))
    saved = wire.decoder(Checkpoint)(wire.encode(device.replica.checkpoint()))
    again = Device(bundle, tmp_path / "again")
    again.replica.restore(saved)
    again.blocks.caught_up()
    again.blocks.activate({0, 2})
    assert (again.replica.entry, again.replica.head, again.replica.digest()) == (3, fleet.head, fleet.digest())
    again.replica.restore(fleet.checkpoint())  # as the coordinator hands it out
    assert again.replica.digest() == fleet.digest()


def test_back_at_the_bundle_inactive_blocks_are_too(device: Device, bundle: Bundle) -> None:
    before = device.loss()
    for number in range(1, 6):
        device.replica.apply(entry(number, [0, 1, 2, 3], (9000,)))
    device.blocks.follow(entry(5, [0], digest=device.replica.digest()))
    assert device.loss() != before
    device.replica.reset()
    device.blocks.caught_up()
    assert device.loss() == before
    assert device.replica.digest() == whole(bundle).digest()


def test_values_in_place_of_steps_are_refused(device: Device, bundle: Bundle) -> None:
    values = GroupValues(1, whole(bundle).parameters.flat(1).tobytes())
    with pytest.raises(DoesNotFit, match="--precision"):
        device.replica.restore(Checkpoint(device.replica.genesis, 3, bytes(32), bytes(32), (), (values,)))
    assert device.replica.entry == 0


def test_more_active_blocks_than_fit_are_refused_before_they_are_held(bundle: Bundle) -> None:
    device, rows = MemoryDevice(1_000_000), 2 * bundle.manifest.task.max_tokens
    one, two = (memory.predicted(bundle.manifest, rows, AgentConfig("unused"), device, active).total for active in (1, 2))
    config = AgentConfig("unused", memory=Memory(budget=f"{(one + two) / 2 / 0.85:.0f}"))
    assert memory.plan(bundle.manifest, config, device, 1).need.total <= memory.room(config).allowed
    with pytest.raises(DoesNotFit, match=r"--memory\.budget"):
        memory.plan(bundle.manifest, config, device, 2)


def test_a_plan_for_more_than_fits_changes_nothing_and_the_next_one_counts(device: Device) -> None:
    assert device.blocks.take_on((0, 1, 3)) == ""
    device.room = 1
    assert device.blocks.take_on((0, 1, 3)) == ""  # they are held already, and the governor sheds what it can
    assert device.blocks.take_on(()) == "3 of 1"
    assert device.blocks.active == (0, 1)
    assert device.blocks.take_on((2, 3)) == ""
    assert device.blocks.active == (2,)


class Impatient(Blocks):
    NO_ROOM = 0.0


def test_plans_that_never_fit_end_it(bundle: Bundle, tmp_path: Path) -> None:
    device = Device(bundle, tmp_path / "state", kind=Impatient)
    device.room = 1
    assert device.blocks.take_on((0, 1)) == "2 of 1"
    with pytest.raises(DoesNotFit):
        device.blocks.take_on((0, 1))


# --- what is written ---


def test_no_more_is_written_than_may_be_and_nothing_is_left(bundle: Bundle, tmp_path: Path) -> None:
    size = max(packed_bytes(group.tensors, 8) for group in bundle.manifest.groups[:3])
    device = Device(bundle, tmp_path / "state", daily=20 * size)
    for number in range(1, 41):
        device.blocks.activate({number % 3})
        device.replica.apply(entry(number, [0, 1, 2]))
        device.blocks.refresh()
        assert not list(tmp_path.glob(f"state/{SCRATCH}/*"))
    assert size < device.state.budget.spent <= 5 * size + 1  # half of what may be written at once, which is half of a day's
    assert np.isfinite(device.loss())


def test_what_a_dead_process_left_is_removed(bundle: Bundle, tmp_path: Path) -> None:
    device = Device(bundle, tmp_path / "state", daily=0)
    in_memory = device.blocks._scratch(1000)
    assert in_memory.parent == IN_MEMORY
    device.state.close()
    lefts = [folder / "inactive.codes" for folder in (tmp_path / "state" / SCRATCH, in_memory)]
    for left in lefts:
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(bytes(1000))
    Device(bundle, tmp_path / "state")
    assert not any(left.exists() for left in lefts)


class Nowhere(Blocks):
    """Where it would write is no folder."""

    def _scratch(self, size: int) -> Path:
        return Path("/dev/null")


def test_no_room_anywhere_is_told(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="needs room"):
        Device(bundle, tmp_path / "state", kind=Nowhere)


# --- a fleet ---


class ByTurns(AllocatedBlocks):
    """Every device has one block, another in each round."""

    def among(self, device: int, asking: Asking, round_number: int, slopes: Mapping[int, float]) -> tuple[int, ...]:
        return ((round_number + device) % 3, 3)


def take_turns(service: Service) -> None:
    rounds = service.rounds
    rounds.blocks = ByTurns(rounds.config, rounds.bundle.manifest, (), rounds.note)


@pytest.mark.parametrize("precisions", [("w4", "w8"), ("w4", "fp32")])
def test_agents_with_other_blocks_in_each_round_end_alike(precisions: tuple[str, str], bundle: Bundle, tmp_path: Path) -> None:
    daemons = []
    with LocalCoordinator(bundle.at("w4"), tmp_path / "run.sqlite", rounds=7, digest_every=3, round=Round(2, 2, 60.0)) as coordinator:
        coordinator.call(take_turns)
        for place, precision in enumerate(precisions):
            folder = tmp_path / str(place)
            shares.write(folder / "data" / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 20, seed=place))
            settings = {"data": str(folder / "data"), "state": str(folder / "state"), "bundle": str(bundle.folder), "refresh": 2}
            given = AgentConfig(coordinator=coordinator.address, insecure_loopback=True, precision=precision, **settings)  # type: ignore[arg-type]
            daemons.append(Daemon(given, threading.Event()))
        threads = [threading.Thread(target=daemon.run) for daemon in daemons]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        digest = coordinator.call(lambda service: service.rounds.ledger.digest()).hex()
    assert [daemon.status.facts["digest"] for daemon in daemons] == [digest, digest]
    assert len(daemons[0].trainer.blocks.active) == 1
    assert digest != bundle.parameters().digest().hex()


class Eager(Daemon):
    """Saves its position after every reply that brings entries."""

    SAVE_EVERY = 0.0


def test_an_agent_that_was_stopped_goes_on_with_what_it_saved(bundle: Bundle, tmp_path: Path) -> None:
    shares.write(tmp_path / "data" / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 20))
    given = {"data": str(tmp_path / "data"), "state": str(tmp_path / "state"), "bundle": str(bundle.folder), "refresh": 2}
    with LocalCoordinator(bundle.at("w4"), tmp_path / "run.sqlite", rounds=8, digest_every=2, round=Round(1, 1, 60.0)) as coordinator:
        coordinator.call(take_turns)
        settings = AgentConfig(coordinator=coordinator.address, insecure_loopback=True, precision="w4", **given)  # type: ignore[arg-type]
        first = Eager(settings, threading.Event())
        thread = threading.Thread(target=first.run)
        thread.start()
        wait_until(lambda: first.follower is not None and first.follower.replica.entry >= 3)
        first._stop.set()
        thread.join(60)
        saved = first.state.position()
        assert saved is not None
        assert saved.entry >= 3
        again = Daemon(settings, threading.Event())
        again.run()
        digest = coordinator.call(lambda service: service.rounds.ledger.digest()).hex()
    assert again.status.facts["digest"] == digest
    assert again._following.replica.entry == 8
