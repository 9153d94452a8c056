"""An agent in a thread, from joining to the end of the run, with a real server at the other end."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import tiny_models
from local_coordinator import LocalCoordinator, free_port

from coordinator.config import Round
from coordinator.service import Refusal, Service
from edge_agent.config import AgentConfig
from edge_agent.daemon import Daemon
from zo.bundle import Bundle
from zo.errors import BundleError, ConnectionFailed, DataError, RunRefused, StorageError
from zo.ledger import Entry
from zo.messages import FileChunk, FileRequest, Report, ReportReply, Verdict, WorkReply, WorkRequest
from zo.terms import Term

Make = Callable[..., Daemon]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(address, name="a", **settings): an agent with data and a state folder of its own."""

    def daemon(address: str, name: str = "a", **changed: Any) -> Daemon:
        data = tmp_path / name / "data"
        data.mkdir(parents=True, exist_ok=True)
        found = tiny_models.examples(tiny_models.CLASSIFICATION, 30, seed=len(name))
        (data / "a.jsonl").write_text("".join(json.dumps({"text": e.text, "label": e.label}) + "\n" for e in found))
        settings = {"data": str(data), "coordinator": address, "state": str(tmp_path / name / "state"), "insecure_loopback": True}
        return Daemon(AgentConfig(**settings | changed), threading.Event())

    return daemon


def told(daemon: Daemon) -> dict[str, Any]:
    return json.loads((daemon.state / "status.json").read_text())


def run_all(daemons: list[Daemon]) -> None:
    threads = [threading.Thread(target=daemon.run) for daemon in daemons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_agents_work_until_the_run_is_over_and_hold_the_coordinators_parameters(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", digest_every=2) as coordinator:
        daemons = [make(coordinator.address, name) for name in ("a", "bb")]
        run_all(daemons)
        digest = coordinator.call(lambda s: s.rounds.parameters.digest().hex())
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


def test_a_device_keeps_its_name(make: Make, tmp_path: Path) -> None:
    first, second, other = make("127.0.0.1:1"), make("127.0.0.1:1"), make("127.0.0.1:1", "b")
    assert first._device_id == second._device_id != other._device_id
    assert 0 <= first._device_id < 2**64
    assert {path.name for path in (tmp_path / "a/state").iterdir() if "device_id" in path.name} == {"device_id"}


@pytest.mark.parametrize("content", ["", "no name", "-1", "1" * 17])
def test_a_name_that_is_none_is_refused(content: str, make: Make, tmp_path: Path) -> None:
    (tmp_path / "a/state").mkdir(parents=True)
    (tmp_path / "a/state/device_id").write_text(content)
    with pytest.raises(StorageError, match="remove it to join as a new device"):
        make("127.0.0.1:1")


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
        assert told(daemon)["digest"] == coordinator.call(lambda s: s.rounds.parameters.digest().hex())
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
        while coordinator.call(lambda s: s.rounds.entry) < 5 and time.monotonic() < until:
            time.sleep(0.02)
    port = int(one.address.split(":")[1])
    with LocalCoordinator(bert_bundle, tmp_path / "restored.sqlite", port=port, round=Round(1, 1, 30.0), rounds=2) as coordinator:
        thread.join(30)
        assert not thread.is_alive()
        digest = coordinator.call(lambda s: s.rounds.parameters.digest().hex())
    assert (told(daemon)["state"], told(daemon)["entry"], told(daemon)["digest"]) == ("finished", 2, digest)
