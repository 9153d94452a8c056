"""A real server on a loopback port and a real channel to it."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from local_coordinator import LocalCoordinator, free_port, report, settings

from coordinator import service
from coordinator.config import Round
from coordinator.rounds import Rounds
from coordinator.service import Service
from coordinator.store import Store
from edge_agent.link import Link, Rejoin, Unreachable
from zo import manifest as manifest_file
from zo import wire
from zo.bundle import Bundle
from zo.errors import ConfigError, ConnectionFailed, RunRefused, StorageError
from zo.ledger import Entry, chain
from zo.messages import PROTOCOL, FileRequest, JoinRequest, Report, Verdict, WorkReply, WorkRequest
from zo.terms import Term


@pytest.fixture
def coordinator(bert_bundle: Bundle, tmp_path: Path) -> Iterator[LocalCoordinator]:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite") as running:
        yield running


@pytest.fixture
def link(coordinator: LocalCoordinator) -> Iterator[Link]:
    made = Link(coordinator.address, threading.Event(), insecure_loopback=True)
    yield made
    made.close()


def raw(coordinator: LocalCoordinator, method: str, data: bytes) -> grpc.RpcError:
    """The error that the server answers to any bytes."""
    with grpc.insecure_channel(coordinator.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{wire.SERVICE}/{method}")(data, timeout=10)
    return caught.value


def commit_by_reports(coordinator: LocalCoordinator, link: Link, number: int = 1) -> None:
    for each in [coordinator.answer(device, number) for device in (0, 1)]:
        assert link.ask(each).verdict is Verdict.ACCEPTED


# --- joining and files ---


def test_a_device_joins_and_is_told_the_run(link: Link, bert_bundle: Bundle) -> None:
    joined = link.ask(JoinRequest(PROTOCOL, 77))
    assert (joined.run, joined.device, joined.run_name, joined.bundle_digest) == (1, 0, "run", bert_bundle.digest)
    assert joined.bundle_files[0] == manifest_file.FILE
    assert set(joined.bundle_files[1:]) == set(bert_bundle.manifest.files)
    assert link.ask(JoinRequest(PROTOCOL, 78)).device == 1
    assert link.ask(JoinRequest(PROTOCOL, 77)) == joined


def test_every_file_of_the_bundle_can_be_fetched_in_pieces(link: Link, bert_bundle: Bundle) -> None:
    joined = link.ask(JoinRequest(PROTOCOL, 77))
    for number, name in enumerate(joined.bundle_files):
        content = (bert_bundle.folder / name).read_bytes()
        for offset in (0, 1, len(content) // 2, len(content) - 1, len(content), len(content) + 10, 2**64 - 1):
            chunk = link.ask(FileRequest(joined.run, number, offset))
            assert chunk.size == len(content)
            assert chunk.content == content[offset : offset + service.CHUNK]


def test_a_large_file_takes_several_pieces(tmp_path: Path) -> None:
    content = bytes(range(256)) * (service.CHUNK // 256) + b"end"
    (tmp_path / "large").write_bytes(content)
    first = service._piece(tmp_path / "large", 0)
    second = service._piece(tmp_path / "large", len(first.content))
    assert (len(first.content), second.content, first.size) == (service.CHUNK, b"end", len(content))
    assert len(wire.encode(first)) < wire.MAX_MESSAGE


# --- work ---


def test_a_report_round_trip_ends_in_an_entry_for_everyone(coordinator: LocalCoordinator, link: Link) -> None:
    for name in (77, 78, 79):
        link.ask(JoinRequest(PROTOCOL, name))
    asked = link.ask(WorkRequest(1, 0, 0))
    assert asked.plan.round == 1
    assert asked.plan.grid == coordinator.call(lambda s: s.rounds.grid)
    assert asked.plan.id == coordinator.call(lambda s: s.rounds.plan_id(0))
    assert (asked.entries, asked.finished) == ((), False)
    commit_by_reports(coordinator, link)
    assert link.ask(coordinator.answer(0, 1)).verdict is Verdict.LATE
    reply = link.ask(WorkRequest(1, 2, 0))
    assert [entry.number for entry in reply.entries] == [1]
    assert (reply.plan.round, reply.plan.entry) == (2, 1)
    assert link.ask(coordinator.answer(0, 2)).verdict is Verdict.ACCEPTED
    assert link.ask(coordinator.answer(0, 2)).verdict is Verdict.DUPLICATE
    assert link.ask(coordinator.answer(1, 2, digest=bytes(32))).verdict is Verdict.DIVERGED


def test_a_long_poll_wakes_at_the_commit(coordinator: LocalCoordinator, link: Link) -> None:
    for name in (77, 78):
        link.ask(JoinRequest(PROTOCOL, name))
    link.ask(coordinator.answer(0))
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        waiting = pool.submit(link.ask, WorkRequest(1, 0, 0))
        time.sleep(0.3)
        assert not waiting.done()
        link.ask(coordinator.answer(1))
        reply = waiting.result(10)
    assert [entry.number for entry in reply.entries] == [1]
    assert reply.plan.round == 2
    assert time.monotonic() - began < service.LONG_POLL / 2


def test_the_end_is_told_with_the_last_entries(coordinator: LocalCoordinator, link: Link) -> None:
    for name in (77, 78):
        link.ask(JoinRequest(PROTOCOL, name))
    for number in range(1, 5):
        commit_by_reports(coordinator, link, number)
    reply = link.ask(WorkRequest(1, 0, 2))
    assert ([entry.number for entry in reply.entries], reply.plan, reply.finished) == ([3, 4], None, True)
    assert link.ask(WorkRequest(1, 1, 4)) == WorkReply(finished=True)


def commit_large(rounds: Rounds, entries: int, steps: int) -> None:
    """Entries as a fleet of many devices makes them."""
    for number in range(1, entries + 1):
        entry = Entry(number, number, 9, (Term((99,), number << 32, np.full(steps, 2**40)),))
        rounds.head = chain(rounds.head, entry)
        rounds.store.commit(rounds.run.id, entry, rounds.head, {"round": number})
        rounds.entry = number


def test_a_late_joiner_catches_up_with_a_ledger_larger_than_a_message(coordinator: LocalCoordinator, link: Link) -> None:
    link.ask(JoinRequest(PROTOCOL, 77))
    entries, steps = 30, 150_000
    assert entries * steps * 6 > wire.MAX_MESSAGE
    coordinator.call(lambda s: commit_large(s.rounds, entries, steps))
    got = 0
    while got < entries:
        reply = link.ask(WorkRequest(1, 0, got))
        assert [entry.number for entry in reply.entries] == list(range(got + 1, got + 1 + len(reply.entries)))
        assert reply.entries
        assert reply.plan is None or got + len(reply.entries) == entries
        got += len(reply.entries)


# --- refusals ---


def test_another_protocol_is_refused_with_the_fix(link: Link) -> None:
    with pytest.raises(RunRefused, match=r"speaks protocol 1, the agent 2; install the same release on both"):
        link.ask(JoinRequest(2, 77))


@pytest.mark.parametrize(
    "request_",
    [WorkRequest(2, 0, 0), WorkRequest(1, 1, 0), WorkRequest(1, 0, 5), FileRequest(2, 0, 0), report(1), report(0, run=2)],
    ids=["run", "device", "entry", "run of a file", "reporting device", "run of a report"],
)
def test_what_the_coordinator_does_not_know_any_more_makes_the_device_join_again(request_: object, link: Link) -> None:
    link.ask(JoinRequest(PROTOCOL, 77))
    with pytest.raises(Rejoin):
        link.ask(request_)


def test_a_device_that_never_joined_gets_no_work(link: Link) -> None:
    with pytest.raises(Rejoin, match="device 0 has not joined"):
        link.ask(WorkRequest(1, 0, 0))


def test_there_is_no_file_beyond_those_of_the_bundle(link: Link) -> None:
    files = len(link.ask(JoinRequest(PROTOCOL, 77)).bundle_files)
    with pytest.raises(Rejoin, match=f"there is no file {files}"):
        link.ask(FileRequest(1, files, 0))


def test_a_report_that_answers_no_plan_is_refused_and_noted(coordinator: LocalCoordinator, link: Link) -> None:
    link.ask(JoinRequest(PROTOCOL, 77))
    with pytest.raises(RunRefused, match=r"a report holds 3 scalars, not 1 \(invalid argument\)"):
        link.ask(coordinator.answer(0, scalars=(1,)))
    events = coordinator.call(lambda s: s.rounds.store.events(1))
    assert [(kind, text) for _, kind, text in events] == [("bad report", "device 0: a report holds 3 scalars, not 1")]


@pytest.mark.parametrize("method", [method.name for method in wire.METHODS])
def test_bytes_that_are_no_message_are_refused_by_name(method: str, coordinator: LocalCoordinator, link: Link) -> None:
    error = raw(coordinator, method, b"\xff" * 9)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no valid" in error.details()
    assert link.ask(JoinRequest(PROTOCOL, 77)).device == 0


def test_a_message_larger_than_any_report_is_refused(coordinator: LocalCoordinator, link: Link) -> None:
    assert raw(coordinator, "SendReport", bytes(2 << 20)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert link.ask(JoinRequest(PROTOCOL, 77)).device == 0


class FullStore(Store):
    """Takes no reports."""

    def add_report(self, report: Report) -> bool:
        raise StorageError("disk full")


class OnFullStore(Service):
    """Over a store that takes no reports."""

    def __init__(self, rounds: Rounds) -> None:
        rounds.store = FullStore(rounds.store.path)
        super().__init__(rounds)


def test_a_store_that_cannot_be_written_makes_the_device_try_later(bert_bundle: Bundle, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", OnFullStore) as coordinator:
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        link.ask(JoinRequest(PROTOCOL, 77))
        with pytest.raises(Unreachable, match="cannot write its store"):
            link.ask(coordinator.answer(0))
        assert coordinator.call(lambda s: s.rounds.reports) == {}
        link.close()


# --- listening ---


def start(bundle: Bundle, tmp_path: Path, listen: str, insecure_loopback: bool = True) -> None:
    async def go() -> None:
        store = Store(tmp_path / "run.sqlite", create=True)
        run = store.open_run("run", bundle.folder, bundle.digest)
        server = await service.start(Service(Rounds(store, run, bundle, settings(bundle))), listen, insecure_loopback)
        await server.stop(0)

    asyncio.run(go())


@pytest.mark.parametrize("listen", ["0.0.0.0:7600", "192.168.1.2:7600", "[::]:7600", "example.org:7600", "7600", ":7600"])
def test_plaintext_beyond_loopback_is_refused(listen: str, bert_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no loopback address"):
        start(bert_bundle, tmp_path, listen)


def test_plaintext_has_to_be_asked_for(bert_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--insecure-loopback"):
        start(bert_bundle, tmp_path, "127.0.0.1:0", insecure_loopback=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.3.2.1"])
def test_loopback_addresses_are_served(host: str, bert_bundle: Bundle, tmp_path: Path) -> None:
    start(bert_bundle, tmp_path, f"{host}:{free_port()}")


def test_a_port_in_use_is_refused(coordinator: LocalCoordinator, bert_bundle: Bundle, tmp_path: Path) -> None:
    other = LocalCoordinator(bert_bundle, tmp_path / "other.sqlite", port=int(coordinator.address.split(":")[1]))
    with pytest.raises(ConnectionFailed, match=r"the port is in use or not allowed; choose another with --listen"), other:
        pass


def test_a_deadline_wakes_who_waits(bert_bundle: Bundle, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", round=Round(2, 1, 0.2)) as coordinator, ThreadPoolExecutor(1) as pool:
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        link.ask(JoinRequest(PROTOCOL, 77))
        link.ask(coordinator.answer(0))
        waiting = pool.submit(link.ask, WorkRequest(1, 0, 0))
        time.sleep(0.3)
        coordinator.call(lambda s: s.close_if_due())
        assert waiting.result(10).plan.round == 2
        link.close()
