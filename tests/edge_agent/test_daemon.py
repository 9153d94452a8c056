"""An agent in a thread, from joining to the end of the run, with a real server at the other end."""

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import Bundles, recalibrated
from local_coordinator import LocalCoordinator
from waiting import wait_until

from coordinator import history
from coordinator.bench import tiny_models
from coordinator.config import Round
from coordinator.demo import shares
from coordinator.rounds import Rounds
from coordinator.service import Refusal, Service
from coordinator.sqlite_store import SqliteStore
from coordinator.store import Conflict
from edge_agent.config import AgentConfig
from edge_agent.daemon import Daemon
from edge_agent.flash import cost
from zo import wire
from zo.address import free_port
from zo.bundle import Bundle
from zo.checkpoint import GroupValues
from zo.disk import Disk
from zo.errors import BundleError, ConfigError, ConnectionFailed, DataError, RunRefused
from zo.ledger import Entry
from zo.messages import (
    PROTOCOL,
    CatchUpReply,
    CatchUpRequest,
    CheckpointRequest,
    FileChunk,
    FileRequest,
    JoinRequest,
    Profile,
    Report,
    ReportReply,
    Verdict,
    Way,
    WorkReply,
    WorkRequest,
)
from zo.plan import Shape
from zo.recipe import Split
from zo.terms import Term

Make = Callable[..., Daemon]


class Eager(Daemon):
    """Saves its position after every reply that brings entries."""

    SAVE_EVERY = 0.0


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """make(address, name="a", kind=Daemon, disk=None, **settings): an agent with data and a state folder of its own.

    It uses the bundle's folder where one is named. What still runs at the end of the test is stopped.
    """
    made: list[Daemon] = []

    def daemon(address: str, name: str = "a", kind: type[Daemon] = Daemon, disk: Disk | None = None, **changed: Any) -> Daemon:
        data = tmp_path / name / "data"
        shares.write(data / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30, seed=len(name)))
        settings = {"data": str(data), "coordinator": address, "state": str(tmp_path / name / "state"), "insecure_loopback": True}
        made.append(kind(AgentConfig(**settings | changed), threading.Event(), disk))
        return made[-1]

    yield daemon
    for each in made:
        each._stop.set()
        each.state.close()


def told(daemon: Daemon) -> dict[str, Any]:
    return json.loads((daemon.state.folder / "status.json").read_text())


def run_all(daemons: list[Daemon]) -> None:
    threads = [threading.Thread(target=daemon.run) for daemon in daemons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def working(daemon: Daemon) -> Iterator[threading.Thread]:
    """The agent runs meanwhile, in that thread; at the end it is told to stop."""
    thread = threading.Thread(target=daemon.run)
    thread.start()
    try:
        yield thread
    finally:
        daemon._stop.set()
        thread.join(30)
    assert not thread.is_alive()


class Told(Daemon):
    """Keeps what is told of progress."""

    def __init__(self, config: AgentConfig, stop: threading.Event, disk: Disk | None) -> None:
        self.states: list[str] = []
        super().__init__(config, stop, disk, lambda facts: self.states.append(facts["state"]))
        self.guest.TURN = 0.02


class Listening(Service):
    """Keeps what devices say of themselves, and their reports' shapes."""

    def __init__(self, rounds: Rounds) -> None:
        super().__init__(rounds)
        self.told: dict[int, set[Profile]] = {}
        self.shapes: set[Shape | None] = set()

    async def request_work(self, request: WorkRequest) -> WorkReply:
        self.told.setdefault(request.device, set()).add(request.profile)
        return await super().request_work(request)

    async def send_report(self, report: Report) -> ReportReply:
        self.shapes.add(report.shape)
        return await super().send_report(report)


def test_agents_of_unequal_rank_train_prefixes_of_one_adapter(bundles: Bundles, make: Make, tmp_path: Path) -> None:
    bundle, settings = bundles("bert", ranks=(1, 2, 4)), {"digest_every": 2, "rounds": 8, "round": Round(3, 3, 60.0)}
    with LocalCoordinator(bundle, tmp_path / "run.sqlite", Listening, **settings) as coordinator:
        daemons = [make(coordinator.address, name, rank=rank) for name, rank in (("a", 1), ("bb", 2), ("ccc", "auto"))]
        run_all(daemons)
        digest, shapes = coordinator.call(lambda s: (s.rounds.ledger.digest(), s.shapes))
        summaries = coordinator.call(lambda s: s.rounds.store.summaries(1))
    assert [told(daemon)["digest"] for daemon in daemons] == [digest.hex()] * 3
    assert [daemon.trainer.engine.rank for daemon in daemons] == [1, 2, 4]
    assert [told(daemon)["rank"] for daemon in daemons] == [1, 2, 4]
    assert {shape.rank for shape in shapes if shape} == {1, 2, 4}
    assert all(sum(summary["ranks"].values()) == 3 for summary in summaries)


def test_a_rank_that_the_bundle_has_not_ends_the_agent_with_those_that_it_has(bundles: Bundles, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bundles("bert", ranks=(1, 2, 4)), tmp_path / "run.sqlite") as coordinator:
        daemon = make(coordinator.address, rank=3)
        with pytest.raises(ConfigError, match="has no adapters of rank 3; it has 1, 2, 4"):
            daemon.run()


@pytest.mark.parametrize(
    ("split", "shapes"),
    [
        (Split((2,), (4,)), {Shape((3, 4), (2,))}),
        (Split((1,), (2,), joint=True), {Shape((3, 2), (1,), joint=True)}),
        (Split((1, 2), (1, 2), clean=True), {Shape((3, 1, 2), (1, 2), clean=True)}),
        (Split(), None),
    ],
)
def test_agents_try_parts_apart_and_tell_what_their_stages_cost(
    split: Split, shapes: set[Shape] | None, bert_bundle: Bundle, make: Make, tmp_path: Path
) -> None:
    settings = {"algorithm": "fedspzo", "split": split, "digest_every": 2, "rounds": 6}
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", Listening, **settings) as coordinator:
        daemons = [make(coordinator.address, name) for name in ("a", "bb")]
        run_all(daemons)
        digest, entry = coordinator.call(lambda s: (s.rounds.ledger.digest(), s.rounds.ledger.entry))
        heard, found = coordinator.call(lambda s: (s.told, s.shapes))
    assert entry == 6
    assert [told(daemon)["digest"] for daemon in daemons] == [digest.hex()] * 2
    assert all(daemon.trainer.engine.parameters.digest() == digest for daemon in daemons)
    measured = [{dataclasses.replace(each, memory_mib=0) for each in profiles} for profiles in heard.values()]
    assert all({daemon.trainer.profiler.measured} in measured for daemon in daemons)
    for profile in set.union(*heard.values()):
        assert len(profile.stage_ns) == len(profile.single_ns) == 3
        assert min(*profile.stage_ns, *profile.single_ns, profile.memory_mib, profile.signs_per_second) > 0
        assert profile.bytes_per_second == 125_000
    assert None not in found
    assert shapes is None or found == shapes


def test_agents_work_until_the_run_is_over_and_hold_the_coordinators_parameters(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", digest_every=2) as coordinator:
        daemons = [make(coordinator.address, name) for name in ("a", "bb")]
        run_all(daemons)
        digest = coordinator.call(lambda s: s.rounds.ledger.parameters.digest().hex())
        events = coordinator.call(lambda s: s.rounds.store.events(1))
    assert digest != bert_bundle.parameters().digest().hex()
    assert [told(daemon)["digest"] for daemon in daemons] == [digest, digest]
    assert [(told(d)["state"], told(d)["entry"], told(d)["reports"]) for d in daemons] == [("finished", 4, 4)] * 2
    assert events == []


def test_an_agent_that_comes_after_the_end_still_gets_the_model(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", round=Round(1, 1, 30.0)) as coordinator:
        first, late = make(coordinator.address), make(coordinator.address, "late", bundle=str(bert_bundle.folder))
        first.run()
        late.run()
    assert told(late)["digest"] == told(first)["digest"]
    assert told(late).get("reports", 0) == 0


def test_a_stop_ends_an_agent_that_waits_for_others(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite") as coordinator:
        daemon = make(coordinator.address, bundle=str(bert_bundle.folder))
        thread = threading.Thread(target=daemon.run)
        thread.start()
        until = time.monotonic() + 30
        while not coordinator.call(lambda s: s.rounds.reports) and time.monotonic() < until:
            time.sleep(0.05)
        began = time.monotonic()
        daemon._stop.set()
        thread.join(20)
    assert time.monotonic() - began < 10
    assert (told(daemon)["state"], told(daemon)["reason"]) == ("stopped", "told to stop")


def test_a_stop_ends_an_agent_that_finds_nobody(make: Make) -> None:
    daemon = make(f"127.0.0.1:{free_port()}")
    threading.Timer(0.5, daemon._stop.set).start()
    daemon.run()
    assert told(daemon)["state"] == "stopped"


def test_patience_has_an_end(make: Make) -> None:
    daemon = make(f"127.0.0.1:{free_port()}", patience=0.5)
    with pytest.raises(ConnectionFailed, match="did not answer"):
        daemon.run()
    assert told(daemon)["state"] == "failed"


# --- a coordinator that has forgotten, or says strange things ---


class Faulty(Service):
    """One fault, once, then all is well."""

    done = False

    def once(self) -> bool:
        first, self.done = not self.done, True
        return first


class Forgets(Faulty):
    async def request_work(self, request: WorkRequest) -> WorkReply:
        if self.once():
            raise Refusal(grpc.StatusCode.NOT_FOUND, "run 1 is not served here; join again")
        return await super().request_work(request)


class ForgetsWhileFetching(Faulty):
    async def fetch_file(self, request: FileRequest) -> FileChunk:
        if self.once():
            raise Refusal(grpc.StatusCode.NOT_FOUND, "run 1 is not served here; join again")
        return await super().fetch_file(request)


class SaysDiverged(Faulty):
    async def send_report(self, report: Report) -> ReportReply:
        return ReportReply(Verdict.DIVERGED) if self.once() else await super().send_report(report)


class Skips(Faulty):
    async def request_work(self, request: WorkRequest) -> WorkReply:
        return WorkReply((Entry(7, 7, 1, ()),)) if self.once() else await super().request_work(request)


class LeavesTheLattice(Faulty):
    async def request_work(self, request: WorkRequest) -> WorkReply:
        far = Entry(1, 1, 1, (Term((0,), 0, [2**40]),))  # type: ignore[arg-type]
        return WorkReply((far,)) if self.once() else await super().request_work(request)


class IsBusy(Faulty):
    async def send_report(self, report: Report) -> ReportReply:
        if self.once():
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "ask again later")
        return await super().send_report(report)


class LosesTheAnswer(Faulty):
    async def send_report(self, report: Report) -> ReportReply:
        reply = await super().send_report(report)
        if self.once():
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "line cut")
        return reply


@pytest.mark.parametrize("fault", [Forgets, ForgetsWhileFetching, SaysDiverged, Skips, LeavesTheLattice, IsBusy, LosesTheAnswer])
def test_an_agent_gets_over_it(fault: type[Service], bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", fault, round=Round(1, 1, 30.0), rounds=2) as coordinator:
        daemon = make(coordinator.address)
        daemon.run()
        assert coordinator.call(lambda s: s.done)
        assert told(daemon)["digest"] == coordinator.call(lambda s: s.rounds.ledger.parameters.digest().hex())
    assert told(daemon)["state"] == "finished"


class Refuses(Service):
    async def send_report(self, report: Report) -> ReportReply:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "this is no answer")


def test_a_refusal_ends_the_agent_with_its_reason(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", Refuses) as coordinator:
        daemon = make(coordinator.address)
        with pytest.raises(RunRefused, match="this is no answer"):
            daemon.run()
    assert told(daemon)["state"] == "failed"
    assert "this is no answer" in told(daemon)["reason"]


def test_examples_that_are_not_there_end_the_agent_before_it_asks_anybody(make: Make) -> None:
    daemon = make(f"127.0.0.1:{free_port()}", data="nope")
    with pytest.raises(DataError, match="nope does not exist"):
        daemon.run()
    assert told(daemon)["state"] == "failed"
    assert not (daemon.state.folder / "bundles").exists()


def test_a_folder_of_tiles_that_is_not_there_is_told_and_lived_with(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionFailed):
        make(f"127.0.0.1:{free_port()}", tiles="nope", patience=0.1).run()
    assert "tiles = 'nope' is no folder, or not there yet" in caplog.text


@pytest.mark.parametrize("tiles", ["ftp://x", "://"])
def test_tiles_by_another_protocol_are_refused(tiles: str, make: Make) -> None:
    with pytest.raises(ValueError, match="must be an http:// or https:// address, or a folder"):
        make("127.0.0.1:1", tiles=tiles)


def test_wrong_data_or_bundle_end_the_agent_by_name(bert_bundle: Bundle, llama_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite") as coordinator:
        with pytest.raises(DataError, match="does not exist"):
            make(coordinator.address, data=str(tmp_path / "none")).run()
        with pytest.raises(BundleError, match="is not the bundle that the coordinator announced"):
            make(coordinator.address, bundle=str(llama_bundle.folder)).run()


def test_a_coordinator_that_lost_its_last_entries_is_joined_again(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    one = LocalCoordinator(bert_bundle, tmp_path / "old.sqlite", round=Round(1, 1, 30.0), rounds=10**6)
    with one as coordinator:
        daemon = make(coordinator.address, bundle=str(bert_bundle.folder))
        thread = threading.Thread(target=daemon.run)
        thread.start()
        until = time.monotonic() + 30
        while coordinator.call(lambda s: s.rounds.ledger.entry) < 5 and time.monotonic() < until:
            time.sleep(0.02)
    port = int(one.address.split(":")[1])
    with LocalCoordinator(bert_bundle, tmp_path / "restored.sqlite", port=port, round=Round(1, 1, 30.0), rounds=2) as coordinator:
        thread.join(30)
        assert not thread.is_alive()
        digest = coordinator.call(lambda s: s.rounds.ledger.parameters.digest().hex())
    assert (told(daemon)["state"], told(daemon)["entry"], told(daemon)["digest"]) == ("finished", 2, digest)


# --- restarts ---

PAIR = Round(2, 2, 30.0)
ROUNDS = 12


class Noting(Service):
    """Notes what it is asked for and what it sends. offered: the only ways it offers."""

    offered: tuple[Way, ...] = tuple(Way)

    def __init__(self, rounds: Rounds) -> None:
        super().__init__(rounds)
        self.asked = 0
        self.sent: list[int] = []  # entries
        self.fetched: list[Way] = []
        self.reports: list[Report] = []

    async def catch_up(self, request: CatchUpRequest) -> CatchUpReply:
        offers = (await super().catch_up(request)).offers
        return CatchUpReply(tuple(offer for offer in offers if offer.way in self.offered))

    async def fetch_checkpoint(self, request: CheckpointRequest) -> FileChunk:
        self.fetched.append(request.way)
        return await super().fetch_checkpoint(request)

    async def request_work(self, request: WorkRequest) -> WorkReply:
        self.asked += 1
        reply = await super().request_work(request)
        self.sent += [entry.number for entry in reply.entries]
        return reply

    async def send_report(self, report: Report) -> ReportReply:
        self.reports.append(report)
        return await super().send_report(report)


class EntriesOnly(Noting):
    offered = (Way.ENTRIES,)


class FoldOnly(Noting):
    offered = (Way.FOLD,)


class SnapshotOnly(Noting):
    offered = (Way.SNAPSHOT,)


def advance(coordinator: LocalCoordinator, entry: int) -> None:
    """Two devices of the test's own bring the ledger to an entry."""

    async def work(service: Service) -> None:
        devices = [(await service.join(JoinRequest(PROTOCOL, 2**60 + place))).device for place in range(2)]
        while service.rounds.ledger.entry < entry:
            for device in devices:
                if service.rounds.ledger.entry < entry and device not in service.rounds.reports:
                    rounds = service.rounds
                    scalars = np.random.default_rng(100 * rounds.round + device).integers(-3000, 3000, 3)
                    await Service.send_report(
                        service, Report(1, device, rounds.round, scalars, 4, "fp32", plan=rounds.plan_id(device, "fp32"))
                    )

    coordinator.call(work)


def digest(coordinator: LocalCoordinator) -> str:
    return coordinator.call(lambda s: s.rounds.ledger.parameters.digest().hex())


def has_reported(coordinator: LocalCoordinator, count: int = 1) -> bool:
    return coordinator.call(lambda s: len(s.rounds.reports)) >= count


class Fleet:
    """A coordinator with entries to catch up to, and one agent that is away and comes back."""

    def __init__(self, bundle: Bundle, make: Make, folder: Path) -> None:
        self.bundle, self._make, self.folder = bundle, make, folder

    def coordinator(self, kind: Callable[[Rounds], Service] = Noting, **changed: Any) -> LocalCoordinator:
        settings = {"round": PAIR, "rounds": ROUNDS, "digest_every": 4} | changed
        return LocalCoordinator(self.bundle, self.folder / "run.sqlite", kind, **settings)

    def agent(self, coordinator: LocalCoordinator, **changed: Any) -> Daemon:
        return self._make(coordinator.address, **{"kind": Eager, "bundle": str(self.bundle.folder)} | changed)

    def away_at(self, coordinator: LocalCoordinator, entry: int, **changed: Any) -> Daemon:
        """An agent that has come to an entry, saved its position there, and reported, and is gone."""
        advance(coordinator, entry)
        daemon = self.agent(coordinator, **changed)
        with working(daemon):
            wait_until(lambda: has_reported(coordinator))
        assert daemon._following.replica.entry == entry
        return daemon

    def store(self) -> SqliteStore:
        return SqliteStore(self.folder / "run.sqlite")


@pytest.fixture
def fleet(bert_bundle: Bundle, make: Make, tmp_path: Path) -> Fleet:
    return Fleet(bert_bundle, make, tmp_path)


def ends_equal(daemon: Daemon, coordinator: LocalCoordinator, entry: int = ROUNDS) -> None:
    advance(coordinator, entry)
    run_all([daemon])
    assert (told(daemon)["state"], told(daemon)["digest"]) == ("finished", digest(coordinator))
    assert daemon._following.replica.entry == entry


def messages(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


def test_after_a_restart_only_what_is_missing_is_replayed(fleet: Fleet) -> None:
    with fleet.coordinator(EntriesOnly) as coordinator:
        first = fleet.away_at(coordinator, 5)
        assert coordinator.call(lambda s: s.sent) == [1, 2, 3, 4, 5]
        coordinator.call(lambda s: s.sent.clear())
        second = fleet.agent(coordinator)
        assert second.state.device_id == first.state.device_id
        ends_equal(second, coordinator)
        assert coordinator.call(lambda s: s.sent) == [6, 7, 8, 9, 10, 11, 12]
        assert coordinator.call(lambda s: s.rounds.store.events(1)) == []


def test_a_restart_where_nothing_is_missing_fetches_nothing(fleet: Fleet) -> None:
    with fleet.coordinator() as coordinator:
        ends_equal(fleet.agent(coordinator), coordinator)
        coordinator.call(lambda s: (s.sent.clear(), s.fetched.clear()))
        ends_equal(fleet.agent(coordinator), coordinator)
        assert coordinator.call(lambda s: (s.sent, s.fetched)) == ([], [])


def test_a_stop_saves_the_position_though_it_was_not_due(fleet: Fleet) -> None:
    with fleet.coordinator(EntriesOnly) as coordinator:
        assert Daemon.SAVE_EVERY >= 60
        fleet.away_at(coordinator, 5, kind=Daemon)
        coordinator.call(lambda s: s.sent.clear())
        ends_equal(fleet.agent(coordinator), coordinator)
        assert coordinator.call(lambda s: s.sent[0]) == 6


@pytest.mark.parametrize("place", [0, 200])
def test_a_position_that_is_altered_is_made_again(place: int, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    with fleet.coordinator(EntriesOnly) as coordinator:
        path = fleet.away_at(coordinator, 5).state.folder / "position"
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        coordinator.call(lambda s: s.sent.clear())
        ends_equal(fleet.agent(coordinator), coordinator)
        assert coordinator.call(lambda s: s.sent) == list(range(1, 13))
    assert len(messages(caplog, "position is not used (it is torn or altered)")) == 1
    assert path.with_name("position.corrupt").read_bytes() == content


@pytest.mark.parametrize("wrong", ["digest", "head", "terms", "values"])
def test_a_position_that_was_wrong_when_it_was_saved_is_made_again(wrong: str, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    with fleet.coordinator(EntriesOnly) as coordinator:
        before = fleet.away_at(coordinator, 5)
        saved = before.state.position()
        assert saved is not None
        change: dict[str, Any] = {
            "digest": {"digest": bytes(32)},
            "head": {"head": bytes(32)},
            "terms": {"terms": (Term((0,), 7, np.array([1])),)},
            "values": {"values": (GroupValues(0, b"abcd"),)},
        }
        before.state.save_position(dataclasses.replace(saved, **change[wrong]))
        ends_equal(fleet.agent(coordinator), coordinator)
    assert len(messages(caplog, "position is not used (")) == 1


def test_a_position_of_another_run_is_set_aside(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    with fleet.coordinator() as coordinator:
        fleet.away_at(coordinator, 5)
    (fleet.folder / "run.sqlite").rename(fleet.folder / "lost.sqlite")
    with fleet.coordinator(EntriesOnly) as coordinator:
        ends_equal(fleet.agent(coordinator), coordinator)
        assert coordinator.call(lambda s: s.sent[0]) == 1
    assert len(messages(caplog, "position is not used (it is of another run)")) == 1


@pytest.mark.parametrize("goes_on_to", [0, 4, 9], ids=["lost entries", "too short", "forked"])
def test_a_position_that_a_restored_coordinator_does_not_know_is_set_aside(
    goes_on_to: int, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with fleet.coordinator() as coordinator:
        advance(coordinator, 3)
    shutil.copy(fleet.folder / "run.sqlite", fleet.folder / "backup.sqlite")
    with fleet.coordinator() as coordinator:
        coordinator.call(lambda s: s.rounds.store.set_state(1, "running"))
        other = coordinator.answer(0, scalars=np.array([5, 6, 7]))
        coordinator.call(lambda s: s.send_report(other))
        fleet.away_at(coordinator, 7)
    shutil.copy(fleet.folder / "backup.sqlite", fleet.folder / "run.sqlite")
    with fleet.coordinator(EntriesOnly) as coordinator:
        advance(coordinator, goes_on_to)
        daemon = fleet.agent(coordinator)
        with working(daemon):
            wait_until(lambda: has_reported(coordinator))
            assert daemon._following.replica.entry == max(3, goes_on_to)
        ends_equal(fleet.agent(coordinator), coordinator)
    assert len(messages(caplog, "position is not used (entry 7 is not of the coordinator's history)")) == 1


# --- reports ---


class LineCut(Noting):
    """While `cut`, no answer to a report arrives. accepts: the report itself does."""

    cut, accepts = True, False

    async def send_report(self, report: Report) -> ReportReply:
        if not self.cut:
            return await super().send_report(report)
        self.reports.append(report)
        if self.accepts:
            await Service.send_report(self, report)
        raise Refusal(grpc.StatusCode.UNAVAILABLE, "line cut")


class AnswersLost(LineCut):
    accepts = True


def test_a_report_that_was_not_delivered_is_sent_again_as_it_was(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with fleet.coordinator(LineCut, round=Round(1, 1, 30.0), rounds=1) as coordinator:
        with working(fleet.agent(coordinator)):
            wait_until(lambda: coordinator.call(lambda s: s.reports))
        coordinator.call(lambda s: setattr(s, "cut", False))
        run_all([fleet.agent(coordinator)])
        received = coordinator.call(lambda s: [wire.encode(report) for report in s.reports])
        assert len(received) >= 2
        assert set(received) == {received[0]}
        assert coordinator.call(lambda s: [row["reports"] for row in s.rounds.store.summaries(1)]) == [1]
    assert len(messages(caplog, "round 1: sending the report that was made before the restart")) == 1


def test_a_report_whose_answer_was_lost_counts_once(fleet: Fleet) -> None:
    with fleet.coordinator(AnswersLost, rounds=1) as coordinator:
        with working(fleet.agent(coordinator)):
            wait_until(lambda: has_reported(coordinator))
        before = coordinator.call(lambda s: (setattr(s, "cut", False), s.asked)[1])
        with working(fleet.agent(coordinator)):
            wait_until(lambda: coordinator.call(lambda s: s.asked) > before)
            assert coordinator.call(lambda s: list(s.rounds.reports)) == [0]
            assert coordinator.call(lambda s: s.rounds.store.reports(1, 1)[0].device) == 0
        ends_equal(fleet.agent(coordinator), coordinator, 1)
        assert coordinator.call(lambda s: [row["reports"] for row in s.rounds.store.summaries(1)]) == [2]


def test_a_report_of_a_round_that_is_over_is_not_sent_again(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with fleet.coordinator(LineCut) as coordinator:
        with working(fleet.agent(coordinator)):
            wait_until(lambda: coordinator.call(lambda s: s.reports))
        coordinator.call(lambda s: setattr(s, "cut", False))
        advance(coordinator, 1)
        with working(fleet.agent(coordinator)):
            wait_until(lambda: has_reported(coordinator))
        assert coordinator.call(lambda s: s.reports[-1].round) == 2
    assert messages(caplog, "made before the restart") == []


# --- every way of catching up ---


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize(("kind", "way"), [(EntriesOnly, Way.ENTRIES), (FoldOnly, Way.FOLD), (SnapshotOnly, Way.SNAPSHOT)])
def test_every_way_leads_to_the_same_parameters(
    kind: type[Noting], way: Way, start: int, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    if start:
        with fleet.coordinator() as coordinator:
            fleet.away_at(coordinator, start)
    caplog.set_level("INFO")
    caplog.clear()
    with fleet.coordinator(kind) as coordinator:
        ends_equal(fleet.agent(coordinator), coordinator)
        sent, fetched = coordinator.call(lambda s: (s.sent, s.fetched))
    assert sent == (list(range(start + 1, ROUNDS + 1)) if way is Way.ENTRIES else [])
    assert fetched == ([] if way is Way.ENTRIES else [way])
    assert len(messages(caplog, f"catching up from entry {start} to {ROUNDS} by {way.name.lower()} ")) == 1
    assert len(messages(caplog, f"caught up: entry {ROUNDS}")) == 1


@pytest.mark.parametrize(("speed", "fetched"), [(1.0, [Way.FOLD]), (1e15, [Way.SNAPSHOT])])
def test_the_line_decides_which_way_is_taken(speed: float, fetched: list[Way], fleet: Fleet) -> None:
    with fleet.coordinator() as coordinator:
        advance(coordinator, ROUNDS)
        smallest = coordinator.call(lambda s: s._offers.after(0, s.rounds.ledger.digest()))
        assert min(smallest, key=lambda offer: offer.size).way is Way.FOLD
        ends_equal(fleet.agent(coordinator, link_speed=speed), coordinator)
        assert coordinator.call(lambda s: s.fetched) == fetched


@pytest.mark.parametrize("kind", [EntriesOnly, FoldOnly, SnapshotOnly])
def test_an_agent_goes_on_working_after_it_has_caught_up(kind: type[Noting], fleet: Fleet) -> None:
    with fleet.coordinator(kind, round=Round(1, 1, 30.0)) as coordinator:
        advance(coordinator, 6)
        daemon = fleet.agent(coordinator)
        run_all([daemon])
        assert (told(daemon)["digest"], told(daemon)["reports"]) == (digest(coordinator), 6)
        assert coordinator.call(lambda s: s.rounds.store.events(1)) == []


def test_the_status_tells_the_entry_that_a_checkpoint_led_to(fleet: Fleet) -> None:
    with fleet.coordinator(FoldOnly) as coordinator:
        daemon = fleet.agent(coordinator)
        ends_equal(daemon, coordinator)
    assert told(daemon)["entry"] == ROUNDS


class PromisesOtherwise(Noting):
    """States a digest, once, that nothing leads to."""

    told = False

    async def catch_up(self, request: CatchUpRequest) -> CatchUpReply:
        reply = await super().catch_up(request)
        if self.told or not reply.offers:
            return reply
        self.told = True
        return CatchUpReply(tuple(dataclasses.replace(offer, digest=bytes(32)) for offer in reply.offers))


class EntriesOtherwise(PromisesOtherwise, EntriesOnly):
    pass


class FoldOtherwise(PromisesOtherwise, FoldOnly):
    pass


class SnapshotOtherwise(PromisesOtherwise, SnapshotOnly):
    pass


@pytest.mark.parametrize("kind", [EntriesOtherwise, FoldOtherwise, SnapshotOtherwise])
def test_a_digest_that_is_not_reached_makes_an_agent_begin_again(
    kind: type[Noting], fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with fleet.coordinator(kind) as coordinator:
        ends_equal(fleet.agent(coordinator), coordinator)
        assert coordinator.call(lambda s: s.told)
    assert len(messages(caplog, "; rebuilding the parameters from the bundle")) == 1


class Garbles(FoldOnly):
    """Changes one byte of the first checkpoint that is fetched."""

    place = 0

    async def fetch_checkpoint(self, request: CheckpointRequest) -> FileChunk:
        first = not self.fetched
        chunk = await super().fetch_checkpoint(request)
        content = bytearray(chunk.content)
        if first:
            content[int(self.place * (len(content) - 1))] ^= 0x11
        return FileChunk(bytes(content), chunk.size)


class GarblesValues(Garbles):
    offered = (Way.SNAPSHOT,)


@pytest.mark.parametrize("kind", [Garbles, GarblesValues])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_garbled_checkpoint_makes_an_agent_begin_again(
    kind: type[Garbles], place: float, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with fleet.coordinator(type("Here", (kind,), {"place": place})) as coordinator:
        ends_equal(fleet.agent(coordinator), coordinator)
        assert len(coordinator.call(lambda s: s.fetched)) == 2
    assert len(messages(caplog, "; rebuilding the parameters from the bundle")) == 1


class ForgetsItsOffers(Noting):
    """The first checkpoint asked for is not held any more."""

    offered = (Way.FOLD, Way.SNAPSHOT)

    async def fetch_checkpoint(self, request: CheckpointRequest) -> FileChunk:
        if not self.fetched:
            self.fetched.append(request.way)
            raise Refusal(grpc.StatusCode.NOT_FOUND, "that checkpoint is not offered any more; join again")
        return await super().fetch_checkpoint(request)


class CompactsMeanwhile(EntriesOnly):
    """The entries that were offered are folded before they are asked for."""

    async def request_work(self, request: WorkRequest) -> WorkReply:
        if self.offered == (Way.ENTRIES,):
            self.offered = tuple(Way)
            history.compact_all_but(self.rounds.store, self.rounds.run, self.rounds.bundle, 1)
        return await super().request_work(request)


@pytest.mark.parametrize("kind", [ForgetsItsOffers, CompactsMeanwhile])
def test_what_was_offered_may_be_gone_when_it_is_asked_for(kind: type[Noting], fleet: Fleet) -> None:
    with fleet.coordinator(kind) as coordinator:
        ends_equal(fleet.agent(coordinator), coordinator)


@pytest.mark.parametrize("keep", [0, 3])
def test_an_agent_comes_back_after_the_entries_that_it_lacks_have_been_folded(keep: int, fleet: Fleet) -> None:
    with fleet.coordinator() as coordinator:
        fleet.away_at(coordinator, 5)
        advance(coordinator, ROUNDS)
        store = fleet.store()
        assert history.compact_all_but(store, store.run("run"), fleet.bundle, keep) == ROUNDS - keep
        store.close()
        coordinator.call(lambda s: (s.sent.clear(), s.fetched.clear()))
        ends_equal(fleet.agent(coordinator), coordinator)
        sent, fetched = coordinator.call(lambda s: (s.sent, s.fetched))
    assert (sent, len(fetched)) == ([], 1)


# --- divergence ---


class Rotting(Eager):
    """One value in memory changes when the agent has come to an entry."""

    at, group = 3, 0
    rotten = False

    def _apply(self, reply: WorkReply) -> None:
        super()._apply(reply)
        replica = self._following.replica
        if replica.entry == self.at and not self.rotten:
            self.rotten = True
            group = replica.parameters.groups[self.group]
            replica.parameters.flat(self.group)[group.size // 2] += np.float32(group.unit)


@pytest.mark.parametrize("at", [0, 3, 7])
def test_bit_rot_is_found_at_the_next_digest_and_mended(at: int, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    kind = type("RottingHere", (Rotting,), {"at": at})
    with fleet.coordinator(round=Round(1, 1, 30.0), rounds=8) as coordinator:
        daemon = fleet.agent(coordinator, kind=kind)
        run_all([daemon])
        assert daemon.rotten
        assert (told(daemon)["state"], told(daemon)["digest"]) == ("finished", digest(coordinator))
        events = coordinator.call(lambda s: s.rounds.store.events(1))
        found_at = 4 if at <= 3 else 8  # the round whose plan asks for a digest
        assert [(kind, text) for _, kind, text in events] == [
            ("diverged", f"device 0 holds other parameters at entry {found_at - 1}; it was told to rebuild them")
        ]
        assert coordinator.call(lambda s: [row["reports"] for row in s.rounds.store.summaries(1)]) == [1] * 8
    assert len(messages(caplog, "the parameters here are not the fleet's any more; rebuilding the parameters from the bundle")) == 1


def test_bit_rot_that_was_saved_is_found_at_the_restart(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    with fleet.coordinator() as coordinator:
        daemon = fleet.away_at(coordinator, 5, kind=type("RottingHere", (Rotting,), {"at": 5}))
        assert daemon.rotten
        ends_equal(fleet.agent(coordinator), coordinator)
    assert len(messages(caplog, "position is not used (the parameters at entry 5 do not have the digest stated)")) == 1


class StatesAnotherDigest(EntriesOnly):
    """An entry arrives, once, with a digest that it does not lead to."""

    done = False

    async def request_work(self, request: WorkRequest) -> WorkReply:
        reply = await super().request_work(request)
        if self.done or not reply.entries:
            return reply
        self.done = True
        return dataclasses.replace(reply, entries=(*reply.entries[:-1], dataclasses.replace(reply.entries[-1], digest=bytes(32))))


class ChangesATerm(EntriesOnly):
    """The steps of an entry arrive, once, changed."""

    done = False

    async def request_work(self, request: WorkRequest) -> WorkReply:
        reply = await super().request_work(request)
        if self.done or not reply.entries:
            return reply
        self.done = True
        changed = dataclasses.replace(reply.entries[0], terms=(-reply.entries[0].terms[0], *reply.entries[0].terms[1:]))
        return dataclasses.replace(reply, entries=(changed, *reply.entries[1:]))


@pytest.mark.parametrize("kind", [StatesAnotherDigest, ChangesATerm])
def test_entries_that_do_not_lead_where_they_should_make_an_agent_begin_again(
    kind: type[Noting], fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with fleet.coordinator(kind) as coordinator:
        ends_equal(fleet.agent(coordinator), coordinator)
        assert coordinator.call(lambda s: s.done)
    assert len(messages(caplog, "; rebuilding the parameters from the bundle")) == 1


# --- the operator goes back ---


def rollback(fleet: Fleet, to: int) -> Entry:
    store = fleet.store()
    try:
        while True:
            try:
                return history.rollback(store, store.run("run"), fleet.bundle, to)
            except Conflict:
                pass
    finally:
        store.close()


def test_agents_follow_a_rollback_while_they_work(fleet: Fleet, make: Make) -> None:
    with fleet.coordinator(digest_every=2, rounds=16) as coordinator:
        daemons = [fleet.agent(coordinator, name=name) for name in ("a", "bb")]
        threads = [threading.Thread(target=daemon.run) for daemon in daemons]
        for thread in threads:
            thread.start()
        wait_until(lambda: coordinator.call(lambda s: s.rounds.ledger.entry) >= 4)
        entry = rollback(fleet, 2)
        coordinator.call(lambda s: s.follow())
        for thread in threads:
            thread.join(60)
        assert [(told(daemon)["state"], told(daemon)["digest"]) for daemon in daemons] == [("finished", digest(coordinator))] * 2
        summaries = coordinator.call(lambda s: s.rounds.store.summaries(1))
        kinds = [kind for _, kind, _ in coordinator.call(lambda s: s.rounds.store.events(1))]
    assert entry.number < 16
    assert [summary.get("rolled_back_to") for summary in summaries] == [2 if number == entry.number else None for number in range(1, 17)]
    assert "rolled back" in kinds
    assert "diverged" not in kinds


def test_an_agent_comes_back_after_a_rollback(fleet: Fleet) -> None:
    with fleet.coordinator(EntriesOnly) as coordinator:
        fleet.away_at(coordinator, 5)
        assert rollback(fleet, 3).number == 6
        coordinator.call(lambda s: s.follow())
        coordinator.call(lambda s: s.sent.clear())
        ends_equal(fleet.agent(coordinator), coordinator)
        assert coordinator.call(lambda s: s.sent[0]) == 6


# --- what is written to the disk ---


class Counting(Disk):
    """Adds up what is written."""

    def __init__(self) -> None:
        self.bytes = self.files = 0

    def write(self, path: Path, content: bytes) -> None:
        self.bytes += cost(len(content))
        self.files += 1
        super().write(path, content)


def test_an_agent_without_a_write_budget_trains_and_leaves_only_its_name_and_what_it_has_sent(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Counting()
    with fleet.coordinator(round=Round(1, 1, 30.0), rounds=6) as coordinator:
        daemon = fleet.agent(coordinator, disk=disk, disk_bytes_per_day=0)
        run_all([daemon])
        assert daemon._following.replica.parameters.digest().hex() == digest(coordinator)
    assert {path.name for path in daemon.state.folder.iterdir()} == {"device_id", "lock", "sent"}
    assert disk.files == 1
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_whole_run_writes_less_than_its_budget(fleet: Fleet) -> None:
    daily, disk = 400_000.0, Counting()
    with fleet.coordinator(round=Round(1, 1, 30.0), rounds=30) as coordinator:
        first = fleet.agent(coordinator, disk=disk, disk_bytes_per_day=daily)
        with working(first):
            wait_until(lambda: coordinator.call(lambda s: s.rounds.ledger.entry) >= 15)
        second = fleet.agent(coordinator, disk=disk, disk_bytes_per_day=daily)
        run_all([second])
        assert second._following.replica.parameters.digest().hex() == digest(coordinator)
    assert disk.files > 10
    assert daily / 3 < disk.bytes - cost(17) <= daily / 2 + 1000  # the device's name is not counted


def test_a_disk_that_fills_up_does_not_end_the_training(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Disk):
        calls = 0

        def write(self, path: Path, content: bytes) -> None:
            self.calls += 1
            if 5 < self.calls <= 20:
                raise OSError(28, "No space left on device")
            super().write(path, content)

    disk = Full()
    with fleet.coordinator(round=Round(1, 1, 30.0)) as coordinator:
        daemon = fleet.agent(coordinator, disk=disk)
        run_all([daemon])
        assert told(daemon)["digest"] == digest(coordinator)
    assert disk.calls > 20
    assert len(messages(caplog, "No space left on device; training goes on")) == 1


# --- several bases ---


def test_agents_with_different_bases_end_with_the_same_parameters(bundles: Bundles, make: Make, tmp_path: Path) -> None:
    bundle = bundles("bert", precision="int8,fp32,w4")
    with LocalCoordinator(bundle, tmp_path / "run.sqlite", round=Round(3, 3, 30.0), digest_every=2) as coordinator:
        daemons = [make(coordinator.address, name, precision=name) for name in ("int8", "fp32")] + [make(coordinator.address, "auto")]
        run_all(daemons)
        digest = coordinator.call(lambda s: s.rounds.ledger.parameters.digest().hex())
        events = coordinator.call(lambda s: s.rounds.store.events(1))
    assert digest != bundle.parameters().digest().hex()
    assert [told(daemon)["digest"] for daemon in daemons] == [digest] * 3
    assert [told(daemon)["reports"] for daemon in daemons] == [4] * 3
    assert [told(daemon)["precision"] for daemon in daemons[:2]] == ["int8", "fp32"]
    assert [told(daemon)["signal_per_second"] for daemon in daemons[:2]] == [{}, {}]
    signal = told(daemons[2])["signal_per_second"]
    assert signal.keys() == bundle.manifest.bases.keys()
    assert signal[told(daemons[2])["precision"]] == max(signal.values())
    assert events == []


def test_a_base_that_the_bundle_has_not_ends_the_agent(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite") as coordinator:
        daemon = make(coordinator.address, precision="int8")
        with pytest.raises(ConfigError, match="has no base of precision 'int8'; it has fp32"):
            daemon.run()
    assert told(daemon)["state"] == "failed"


def test_a_report_made_before_a_restart_with_another_base_is_not_sent_for_it(bundles: Bundles, make: Make, tmp_path: Path) -> None:
    bundle = recalibrated(bundles("bert", precision="int8,fp32,w4"), tmp_path / "bundle", "int8", log2_eps=-2)
    with LocalCoordinator(bundle, tmp_path / "run.sqlite") as coordinator:
        first = make(coordinator.address, precision="int8")
        with working(first):
            wait_until(lambda: coordinator.call(lambda s: len(s.rounds.reports)) == 1)
        coordinator.call(lambda s: s.rounds.store.drop_reports(1, {0}))
        coordinator.call(lambda s: s.rounds.reports.clear())
        second = make(coordinator.address, precision="fp32")
        with working(second):
            wait_until(lambda: coordinator.call(lambda s: len(s.rounds.reports)) == 1)
        assert coordinator.call(lambda s: s.rounds.reports[0].precision) == "fp32"


def test_progress_is_told_between_probes_pieces_and_tries_and_in_pauses(make: Make, bert_bundle: Bundle, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", round=Round(1, 1, 30.0), rounds=2) as coordinator:
        agent = make(coordinator.address, kind=Told)
        agent.run()
    joining, working = agent.states.count("joining"), agent.states.count("working")
    assert joining >= len(list(bert_bundle.folder.iterdir()))  # each file is a piece at least
    assert working >= 2 * 3  # directions
    before = len(agent.states)
    agent.guest.wait(0.2)
    assert len(agent.states) >= before + 3


def test_an_agent_that_finds_nobody_tells_progress_too(make: Make) -> None:
    agent = make(f"127.0.0.1:{free_port()}", kind=Told)
    with working(agent):
        wait_until(lambda: agent.states.count("unreachable") > 10)
