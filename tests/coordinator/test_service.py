"""A real server on a loopback port and a real channel to it."""

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from local_coordinator import LocalCoordinator, report
from store_faults import FailingSync, NoSync, PowerCut

from coordinator import history, offers, service
from coordinator.config import Round
from coordinator.rounds import Rounds
from coordinator.service import Service
from coordinator.sqlite_store import SqliteStore
from coordinator.summary import NOTHING_DONE
from edge_agent.link import Link, Rejoin, Unreachable
from zo import manifest as manifest_file
from zo import wire
from zo.bundle import Bundle
from zo.checkpoint import Checkpoint, signs
from zo.disk import Disk
from zo.errors import RunRefused, StorageError
from zo.ledger import Entry, rollback, short
from zo.messages import (
    PROTOCOL,
    CatchUpRequest,
    CheckpointRequest,
    FileRequest,
    JoinReply,
    JoinRequest,
    Offer,
    Profile,
    Report,
    ReportReply,
    Verdict,
    Way,
    WorkReply,
    WorkRequest,
)
from zo.plan import Shape
from zo.replica import Replica
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


def work(coordinator: LocalCoordinator, device: int, entry: int) -> WorkRequest:
    """As a device asks that stands at an entry of the ledger."""
    return WorkRequest(1, device, entry, coordinator.call(lambda s: short(s.rounds.store.head(1, entry)[1])), "fp32")


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


def test_a_device_that_joins_again_and_again_is_told_of_once(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for device in (77, 77, 78, 77):
        link.ask(JoinRequest(PROTOCOL, device))
    assert [line for line in caplog.messages if "joined" in line] == ["device 0 joined", "device 1 joined"]


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
    asked = link.ask(work(coordinator, 0, 0))
    assert asked.plan.round == 1
    assert asked.plan.grid == coordinator.call(lambda s: s.rounds.plans.grid)
    assert asked.plan.id == coordinator.call(lambda s: s.rounds.plan_id(0, "fp32"))
    assert (asked.entries, asked.finished) == ((), False)
    commit_by_reports(coordinator, link)
    assert link.ask(coordinator.answer(0, 1)).verdict is Verdict.LATE
    reply = link.ask(work(coordinator, 2, 0))
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
        waiting = pool.submit(link.ask, work(coordinator, 0, 0))
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
    reply = link.ask(work(coordinator, 0, 2))
    assert ([entry.number for entry in reply.entries], reply.plan, reply.finished) == ([3, 4], None, True)
    assert link.ask(work(coordinator, 1, 4)) == WorkReply(finished=True)


def commit_large(rounds: Rounds, entries: int, steps: int) -> None:
    """Entries as a fleet of many devices makes them."""
    for number in range(1, entries + 1):
        entry = Entry(number, number, 9, (Term((99,), number << 32, np.full(steps, 2**40)),))
        rounds.store.commit(rounds.run.id, entry, rounds.ledger.replica.head, 0, NOTHING_DONE | {"round": number})
        rounds.ledger.replica.advance(entry)


def test_a_late_joiner_catches_up_with_a_ledger_larger_than_a_message(coordinator: LocalCoordinator, link: Link) -> None:
    link.ask(JoinRequest(PROTOCOL, 77))
    entries, steps = 30, 150_000
    assert entries * steps * 6 > wire.MAX_MESSAGE
    coordinator.call(lambda s: commit_large(s.rounds, entries, steps))
    got = 0
    while got < entries:
        reply = link.ask(work(coordinator, 0, got))
        assert [entry.number for entry in reply.entries] == list(range(got + 1, got + 1 + len(reply.entries)))
        assert reply.entries
        assert reply.plan is None or got + len(reply.entries) == entries
        got += len(reply.entries)


# --- catching up ---


def joined(coordinator: LocalCoordinator, link: Link, rounds: int) -> JoinReply:
    """Two devices that have made some entries."""
    made, _ = [link.ask(JoinRequest(PROTOCOL, name)) for name in (77, 78)]
    for number in range(1, rounds + 1):
        commit_by_reports(coordinator, link, number)
    return made


def ways(coordinator: LocalCoordinator, link: Link, entry: int) -> dict[Way, Offer]:
    found = link.ask(CatchUpRequest(1, 0, entry, work(coordinator, 0, entry).chain)).offers
    assert len({offer.way for offer in found}) == len(found)
    return {offer.way: offer for offer in found}


def fetched(link: Link, offer: Offer, piece: int = 1000) -> bytes:
    """The checkpoint of an offer, as the server cuts it or in pieces of the test's own."""
    content = b""
    while True:
        chunk = link.ask(CheckpointRequest(1, offer.way, offer.entry, len(content)))
        content += chunk.content[:piece]
        if len(content) >= chunk.size:
            assert len(content) == chunk.size
            return content


def followed(coordinator: LocalCoordinator, link: Link, replica: Replica) -> tuple[int, int]:
    """Bring a replica to the last entry by entries; gives the bytes of those, and the signs they took."""
    size = made = 0
    while entries := link.ask(work(coordinator, 0, replica.entry)).entries:
        for entry in entries:
            replica.apply(entry)
            size, made = size + len(wire.encode(entry)), made + signs(entry.terms, replica.sizes)
    return size, made


def test_who_lacks_nothing_is_offered_nothing(coordinator: LocalCoordinator, link: Link) -> None:
    joined(coordinator, link, 2)
    assert ways(coordinator, link, 2) == {}


@pytest.mark.parametrize("more", [0, 2])
def test_every_way_leads_to_the_fleets_parameters_and_costs_what_was_said(more: int, bert_bundle: Bundle, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", rounds=9) as coordinator:
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        genesis = joined(coordinator, link, 3).genesis
        first = ways(coordinator, link, 0)  # checkpoints at entry 3
        for number in range(4, 4 + more):
            commit_by_reports(coordinator, link, number)
        found = ways(coordinator, link, 0)
        assert found.keys() == {Way.ENTRIES, Way.FOLD, Way.SNAPSHOT} == first.keys()
        last = coordinator.call(lambda s: (s.rounds.ledger.entry, s.rounds.ledger.replica.head, s.rounds.ledger.parameters.digest()))
        for way, offer in found.items():
            replica = Replica(bert_bundle.parameters(), genesis, bert_bundle.initial_tensors)
            size = made = 0
            if way is not Way.ENTRIES:
                body = fetched(link, offer)
                checkpoint = wire.decoder(Checkpoint)(body)
                size, made = len(body), signs(checkpoint.terms, replica.sizes)
                replica.restore(checkpoint)
                assert (offer.entry, offer.digest) == (3, replica.parameters.digest()) == (first[way].entry, first[way].digest)
                assert (first[way].size, first[way].signs) == (size, made)
            else:
                assert (offer.entry, offer.digest) == (last[0], last[2])
            size_after, made_after = followed(coordinator, link, replica)
            assert (offer.size, offer.signs) == (size + size_after, made + made_after)
            assert (replica.entry, replica.head, replica.parameters.digest()) == last
        link.close()


def test_the_generation_before_is_still_served_and_the_one_before_that_is_not(bert_bundle: Bundle, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", rounds=999) as coordinator:
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        joined(coordinator, link, 1)
        made = []
        for _ in range(3):
            made.append(ways(coordinator, link, 0)[Way.SNAPSHOT])
            coordinator.call(lambda s: commit_small(s.rounds, offers.RENEWED_AFTER + 1))
        assert [offer.entry for offer in made] == [1, 66, 131]
        for offer in made[1:]:
            assert wire.decoder(Checkpoint)(fetched(link, offer)).entry == offer.entry
        with pytest.raises(Rejoin, match="not offered any more; join again"):
            fetched(link, made[0])
        link.close()


def commit_small(rounds: Rounds, entries: int) -> None:
    for _ in range(entries):
        entry = Entry(rounds.ledger.entry + 1, rounds.round, 0, (Term((0,), rounds.ledger.entry << 32, np.array([3])),))
        rounds.ledger.parameters.add(entry.terms)
        rounds.store.commit(1, entry, rounds.ledger.replica.head, 0, NOTHING_DONE | {"round": rounds.round})
        rounds.ledger.replica.advance(entry)
        rounds.open.number += 1


def test_a_checkpoint_larger_than_a_piece_takes_several(coordinator: LocalCoordinator, link: Link) -> None:
    joined(coordinator, link, 2)
    offer = ways(coordinator, link, 0)[Way.SNAPSHOT]
    for offset in (0, 1, offer.size - 1, offer.size, offer.size + 9, 2**63):
        chunk = link.ask(CheckpointRequest(1, Way.SNAPSHOT, 2, offset))
        assert chunk.size == offer.size
        assert len(chunk.content) == min(service.CHUNK, max(0, offer.size - offset))


def test_who_stands_on_another_history_is_refused(coordinator: LocalCoordinator, link: Link) -> None:
    joined(coordinator, link, 2)
    good = work(coordinator, 0, 1)
    for entry, chain in ((1, good.chain ^ 1), (2, good.chain), (0, good.chain)):
        for request in (WorkRequest(1, 0, entry, chain, "fp32"), CatchUpRequest(1, 0, entry, chain)):
            with pytest.raises(Rejoin, match=f"the device's entry {entry} is of another history"):
                link.ask(request)
    for request in (WorkRequest(1, 0, 3, good.chain, "fp32"), CatchUpRequest(1, 0, 3, good.chain)):
        with pytest.raises(Rejoin, match="the ledger ends at entry 2, the device is at 3"):
            link.ask(request)


def test_who_lacks_compacted_entries_is_sent_to_a_checkpoint(coordinator: LocalCoordinator, link: Link, bert_bundle: Bundle) -> None:
    genesis = joined(coordinator, link, 3).genesis
    coordinator.call(lambda s: history.compact_all_but(s.rounds.store, s.rounds.run, bert_bundle, 1))
    with pytest.raises(Rejoin, match="the entries after 1 have been folded; join again"):
        link.ask(work(coordinator, 0, 1))
    assert ways(coordinator, link, 1).keys() == {Way.FOLD, Way.SNAPSHOT}
    assert ways(coordinator, link, 2).keys() == {Way.ENTRIES, Way.FOLD, Way.SNAPSHOT}
    replica = Replica(bert_bundle.parameters(), genesis, bert_bundle.initial_tensors)
    replica.restore(wire.decoder(Checkpoint)(fetched(link, ways(coordinator, link, 0)[Way.FOLD])))
    followed(coordinator, link, replica)
    assert replica.parameters.digest() == coordinator.call(lambda s: s.rounds.ledger.parameters.digest())


# --- somebody else appends ---


def append_rollback(path: Path, disk: NoSync | None = None) -> SqliteStore:
    """As `edge-coordinator rollback --to 0` in another process; the store is still open."""
    store = SqliteStore(path, disk=disk)
    (entry, head), rounds = store.head(1), store.summaries(1)[-1]["round"]
    store.commit(1, Entry(entry + 1, rounds + 1, 0, rollback(store.entries(1))), head, 0, NOTHING_DONE | {"round": rounds + 1})
    return store


def test_an_entry_of_another_process_is_told_once_it_is_followed(
    coordinator: LocalCoordinator, link: Link, bert_bundle: Bundle, tmp_path: Path
) -> None:
    joined(coordinator, link, 1)
    append_rollback(tmp_path / "run.sqlite")
    reply = link.ask(work(coordinator, 0, 0))
    assert ([entry.number for entry in reply.entries], reply.plan.entry) == ([1], 1)
    with ThreadPoolExecutor(1) as pool:
        link.ask(coordinator.answer(0))
        waiting = pool.submit(link.ask, work(coordinator, 0, 1))
        time.sleep(0.2)
        assert not waiting.done()
        coordinator.call(lambda s: s.follow())
        reply = waiting.result(5)
    assert ([entry.number for entry in reply.entries], reply.plan.round, reply.plan.entry) == ([2], 3, 2)
    assert coordinator.call(lambda s: s.rounds.ledger.parameters.digest()) == bert_bundle.parameters().digest()


# --- durable before told ---


class PowerCutAtEveryReply(Service):
    """Looks, before each reply, whether what it says would outlive a power cut at this instant."""

    disk: PowerCut
    folder: Path
    checked: list[str]

    async def join(self, request: JoinRequest) -> JoinReply:
        reply = await super().join(request)
        with self._left("join") as store:
            assert store.device_count(1) > reply.device
            assert store.run("run").genesis == reply.genesis
        return reply

    async def request_work(self, request: WorkRequest) -> WorkReply:
        reply = await super().request_work(request)
        with self._left("entries" if reply.entries else "plan") as store:
            assert store.entries(1, request.entry, len(reply.entries)) == list(reply.entries)
            assert reply.plan is None or store.head(1)[0] >= reply.plan.entry
            assert not reply.finished or store.head(1)[0] == 4
        return reply

    async def send_report(self, report: Report) -> ReportReply:
        reply = await super().send_report(report)
        with self._left(reply.verdict.name) as store:
            kept = [each.device for each in store.reports(1, report.round)]
            if reply.verdict in (Verdict.ACCEPTED, Verdict.DUPLICATE):
                assert report.device in kept or report.round <= store.summaries(1)[-1]["round"]
        return reply

    @contextlib.contextmanager
    def _left(self, what: str) -> Iterator[SqliteStore]:
        store = self.disk.left(self.rounds.store.path, self.folder / f"left {len(self.checked)}")
        yield store
        store.close()
        self.checked.append(what)


def test_sync_precedes_every_reply_that_promises_durability(bert_bundle: Bundle, tmp_path: Path) -> None:
    path, disk, checked = tmp_path / "run.sqlite", PowerCut(), []

    def watching(rounds: Rounds) -> Service:
        made = PowerCutAtEveryReply(rounds)
        made.disk, made.folder, made.checked = disk, tmp_path, checked
        return made

    with LocalCoordinator(bert_bundle, path, watching, disk=disk) as coordinator:
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        joined(coordinator, link, 1)
        assert link.ask(work(coordinator, 0, 0)).plan.round == 2
        assert link.ask(coordinator.answer(0)).verdict is Verdict.ACCEPTED
        assert link.ask(coordinator.answer(0)).verdict is Verdict.DUPLICATE
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(link.ask, work(coordinator, 0, 1))
            time.sleep(0.1)
            link.ask(coordinator.answer(1))
            assert [entry.number for entry in waiting.result(10).entries] == [2]
        other = append_rollback(path, NoSync())  # it has written, and not synced yet
        coordinator.call(lambda s: s.follow())
        assert [entry.number for entry in link.ask(work(coordinator, 0, 2)).entries] == [3]
        other.close()
        together = [coordinator.answer(device) for device in (0, 1)]
        assert coordinator.call(lambda s: at_once(s, [*together, together[0]])) == [Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.DUPLICATE]
        assert link.ask(work(coordinator, 0, 3)).finished
        link.close()
    assert [name for name in ("join", "entries", "ACCEPTED", "DUPLICATE") if name not in checked] == []
    assert len(checked) == 14


# --- many reports at once ---


async def at_once(served: Service, reports: Sequence[Report]) -> list[Verdict | str]:
    """The verdicts on reports that arrive together; what is raised, as text."""
    found = await asyncio.gather(*(served.send_report(each) for each in reports), return_exceptions=True)
    return [str(each) if isinstance(each, BaseException) else each.verdict for each in found]


@contextlib.contextmanager
def fleet(bundle: Bundle, store: Path, devices: int, disk: Disk | None = None, **changed: Any) -> Iterator[LocalCoordinator]:
    """A coordinator that so many devices have joined."""
    with LocalCoordinator(bundle, store, disk=disk, **changed) as coordinator:
        coordinator.call(lambda s: [s.rounds.enrol(1000 + device) for device in range(devices)])
        yield coordinator


def test_reports_that_arrive_together_are_written_with_one_sync_and_answered_each_for_itself(bert_bundle: Bundle, tmp_path: Path) -> None:
    disk = PowerCut()
    with fleet(bert_bundle, tmp_path / "run.sqlite", 20, disk, round=Round(99, 1, 30.0)) as coordinator:
        sent = [coordinator.answer(device) for device in range(20)]
        before = disk.syncs
        verdicts = coordinator.call(lambda s: at_once(s, [*sent, sent[3], dataclasses.replace(sent[4], round=7)]))
        assert verdicts == [Verdict.ACCEPTED] * 20 + [Verdict.DUPLICATE, Verdict.UNKNOWN_ROUND]
        assert disk.syncs == before + 1
        wrong = coordinator.answer(0, scalars=(1,))
        assert coordinator.call(lambda s: at_once(s, [sent[0], wrong])) == [
            Verdict.DUPLICATE,
            "a report of this plan holds 3 scalars, not 1",
        ]
        assert len(coordinator.call(lambda s: s.rounds.store.reports(1, 1))) == 20


def test_reports_beyond_the_goal_that_arrive_together_count_in_the_round_that_they_close(bert_bundle: Bundle, tmp_path: Path) -> None:
    with fleet(bert_bundle, tmp_path / "run.sqlite", 5) as coordinator:
        sent = [coordinator.answer(device) for device in range(5)]
        assert coordinator.call(lambda s: at_once(s, sent)) == [Verdict.ACCEPTED] * 5
        assert coordinator.call(lambda s: [each.contributors for each in s.rounds.store.entries(1)]) == [5]
        assert coordinator.call(lambda s: at_once(s, sent)) == [Verdict.LATE] * 5


def test_a_report_whose_round_closes_before_it_is_written_is_late(bert_bundle: Bundle, tmp_path: Path) -> None:
    async def overtaken(served: Service, last: Report) -> list[Verdict | str]:
        waiting = asyncio.create_task(at_once(served, [last]))
        await asyncio.sleep(0)
        served.rounds.commit()
        return await waiting

    with fleet(bert_bundle, tmp_path / "run.sqlite", 2) as coordinator:
        first, last = coordinator.answer(0), coordinator.answer(1)
        coordinator.call(lambda s: s.rounds.accept(first))
        assert coordinator.call(lambda s: overtaken(s, last)) == [Verdict.LATE]
        assert coordinator.call(lambda s: (s.rounds.store.entries(1)[0].contributors, s.rounds.store.reports(1, 1))) == (1, [])


def test_a_sync_that_fails_is_told_to_all_who_wait_and_nothing_is_counted(bert_bundle: Bundle, tmp_path: Path) -> None:
    disk = FailingSync()
    with fleet(bert_bundle, tmp_path / "run.sqlite", 3, disk) as coordinator:
        sent = [coordinator.answer(device) for device in range(3)]
        disk.failing = True
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(link.ask, each) for each in sent]
            for each in asked:
                with pytest.raises(Unreachable, match="cannot write its store"):
                    each.result(10)
        assert coordinator.call(lambda s: (s.rounds.reports, s.rounds.ledger.entry, s.rounds.store.unsafe)) == ({}, 0, True)
        disk.failing = False
        assert all("could not be synced" in said for said in coordinator.call(lambda s: at_once(s, sent)))
        link.close()


class NoCommit(SqliteStore):
    """Has room for reports, and none for an entry, while `failing`."""

    failing = True

    def commit(self, run: int, entry: Entry, previous: bytes, signs: int, summary: dict[str, Any]) -> bytes:
        if self.failing:
            raise StorageError("disk full")
        return super().commit(run, entry, previous, signs, summary)


def test_reports_that_are_kept_are_accepted_although_their_round_cannot_be_committed(bert_bundle: Bundle, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", over=NoCommit) as coordinator:
        coordinator.call(lambda s: [s.rounds.enrol(name) for name in (77, 78)])
        sent = [coordinator.answer(device) for device in (0, 1)]
        assert coordinator.call(lambda s: at_once(s, sent)) == [Verdict.ACCEPTED] * 2
        assert coordinator.call(lambda s: (s.rounds.ledger.entry, sorted(s.rounds.reports))) == (0, [0, 1])
        coordinator.call(lambda s: setattr(s.rounds.store, "failing", False))
        coordinator.call(lambda s: s.close_if_due())
        assert coordinator.call(lambda s: (s.rounds.ledger.entry, s.rounds.store.entries(1)[0].contributors)) == (1, 2)


# --- refusals ---


def test_another_protocol_is_refused_with_the_fix(link: Link) -> None:
    with pytest.raises(RunRefused, match=r"speaks protocol 1, the agent 2; install the same release on both"):
        link.ask(JoinRequest(2, 77))


@pytest.mark.parametrize(
    "request_",
    [
        WorkRequest(2, 0, 0, 0, "fp32"),
        WorkRequest(1, 1, 0, 0, "fp32"),
        WorkRequest(1, 0, 5, 0, "fp32"),
        WorkRequest(1, 0, 0, 0, "fp32"),
        CatchUpRequest(2, 0, 0, 0),
        CatchUpRequest(1, 1, 0, 0),
        CatchUpRequest(1, 0, 5, 0),
        CatchUpRequest(1, 0, 0, 0),
        CheckpointRequest(2, Way.FOLD, 0, 0),
        CheckpointRequest(1, Way.FOLD, 0, 0),
        FileRequest(2, 0, 0),
        report(1),
        report(0, run=2),
    ],
    ids=str,
)
def test_what_the_coordinator_does_not_know_any_more_makes_the_device_join_again(request_: object, link: Link) -> None:
    link.ask(JoinRequest(PROTOCOL, 77))
    with pytest.raises(Rejoin):
        link.ask(request_)


def test_a_device_that_never_joined_gets_no_work(coordinator: LocalCoordinator, link: Link) -> None:
    with pytest.raises(Rejoin, match="device 0 has not joined"):
        link.ask(work(coordinator, 0, 0))


def test_there_is_no_file_beyond_those_of_the_bundle(link: Link) -> None:
    files = len(link.ask(JoinRequest(PROTOCOL, 77)).bundle_files)
    with pytest.raises(Rejoin, match=f"there is no file {files}"):
        link.ask(FileRequest(1, files, 0))


def test_a_report_that_answers_no_plan_is_refused_and_noted(coordinator: LocalCoordinator, link: Link) -> None:
    link.ask(JoinRequest(PROTOCOL, 77))
    with pytest.raises(RunRefused, match=r"a report of this plan holds 3 scalars, not 1 \(invalid argument\)"):
        link.ask(coordinator.answer(0, scalars=(1,)))
    events = coordinator.call(lambda s: s.rounds.store.events(1))
    assert [(kind, text) for _, kind, text in events] == [("bad-report", "a device: a report of this plan holds 3 scalars, not 1")]


@pytest.mark.parametrize("method", [method.name for method in wire.METHODS])
def test_bytes_that_are_no_message_are_refused_by_name(method: str, coordinator: LocalCoordinator, link: Link) -> None:
    error = raw(coordinator, method, b"\xff" * 9)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no valid" in error.details()
    assert link.ask(JoinRequest(PROTOCOL, 77)).device == 0


def test_a_message_larger_than_any_report_is_refused(coordinator: LocalCoordinator, link: Link) -> None:
    assert raw(coordinator, "SendReport", bytes(2 << 20)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert link.ask(JoinRequest(PROTOCOL, 77)).device == 0


class FullStore(SqliteStore):
    """Takes no reports."""

    def add_reports(self, reports: Sequence[Report]) -> list[bool]:
        raise StorageError("disk full")


def test_a_store_that_cannot_be_written_makes_the_device_try_later(bert_bundle: Bundle, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", over=FullStore) as coordinator:
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        link.ask(JoinRequest(PROTOCOL, 77))
        with pytest.raises(Unreachable, match="cannot write its store"):
            link.ask(coordinator.answer(0))
        assert coordinator.call(lambda s: s.rounds.reports) == {}
        link.close()


def test_a_deadline_wakes_who_waits(bert_bundle: Bundle, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", round=Round(2, 1, 0.2)) as coordinator, ThreadPoolExecutor(1) as pool:
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        link.ask(JoinRequest(PROTOCOL, 77))
        link.ask(coordinator.answer(0))
        waiting = pool.submit(link.ask, work(coordinator, 0, 0))
        time.sleep(0.3)
        coordinator.call(lambda s: s.close_if_due())
        assert waiting.result(10).plan.round == 2
        link.close()


def test_a_base_that_the_bundle_has_not_gets_no_work_and_is_named(coordinator: LocalCoordinator, link: Link) -> None:
    link.ask(JoinRequest(PROTOCOL, 77))
    with pytest.raises(RunRefused, match="has no base of precision 'int8'; it has fp32"):
        link.ask(dataclasses.replace(work(coordinator, 0, 0), precision="int8"))
    with pytest.raises(RunRefused, match="no base of precision 'int8'"):
        link.ask(coordinator.answer(0, precision="int8", plan=1))
    assert link.ask(coordinator.answer(0)).verdict is Verdict.ACCEPTED


# --- parts tried apart (FedSPZO) ---


@pytest.fixture
def planning(bert_bundle: Bundle, tmp_path: Path) -> Iterator[LocalCoordinator]:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", algorithm="fedspzo") as running:
        yield running


def test_a_device_that_tells_what_its_stages_cost_gets_a_tree_and_its_report_is_taken(planning: LocalCoordinator) -> None:
    link = Link(planning.address, threading.Event(), insecure_loopback=True)
    shapes = []
    for device, stage_ns in enumerate(((500_000, 500_000, 100), (100, 100, 2**32 - 1))):
        link.ask(JoinRequest(PROTOCOL, 77 + device))
        plan = link.ask(dataclasses.replace(work(planning, device, 0), profile=Profile(stage_ns=stage_ns))).plan
        shapes.append(plan.root.shape)
        assert shapes[-1] == planning.call(lambda s, stage_ns=stage_ns: s.rounds.course.planner.shape("fp32", stage_ns))
        scalars = np.arange(plan.root.scalars) - 5
        assert link.ask(Report(1, device, 1, scalars, 4, "fp32", plan=plan.id, shape=shapes[-1])).verdict is Verdict.ACCEPTED
    assert shapes[0] != shapes[1]
    (entry,) = planning.call(lambda s: s.rounds.store.entries(1))
    assert entry.contributors == 2
    link.close()


def test_a_base_that_the_bundle_has_not_is_named_where_trees_are_planned(planning: LocalCoordinator) -> None:
    link = Link(planning.address, threading.Event(), insecure_loopback=True)
    link.ask(JoinRequest(PROTOCOL, 77))
    with pytest.raises(RunRefused, match="no base of precision 'int8'"):
        link.ask(dataclasses.replace(work(planning, 0, 0), precision="int8", profile=Profile(stage_ns=(1, 2, 3))))
    link.close()


def test_a_tree_that_the_run_does_not_ask_for_is_late_and_not_refused(planning: LocalCoordinator) -> None:
    link = Link(planning.address, threading.Event(), insecure_loopback=True)
    link.ask(JoinRequest(PROTOCOL, 77))
    for shape in (Shape((2,)), Shape((3, 4), (2,), joint=True)):
        assert link.ask(Report(1, 0, 1, np.zeros(shape.scalars, np.int64), 4, "fp32", plan=5, shape=shape)).verdict is Verdict.LATE
    assert planning.call(lambda s: s.rounds.store.events(1)) == []
    link.close()
