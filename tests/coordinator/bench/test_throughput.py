"""The benchmarks of the coordinator drive a real one, count what it has committed, and say so when something fails."""

import asyncio
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_coordinator import LocalCoordinator

from coordinator.bench import reports, throughput
from coordinator.bench.lean_agent import CallFailed, LeanAgent, connect
from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from zo import manifest as manifest_file
from zo import wire
from zo.bundle import Bundle
from zo.errors import UserError
from zo.messages import PROTOCOL, FileChunk, FileRequest, JoinReply, JoinRequest


@pytest.fixture
def coordinator(bert_bundle: Bundle, tmp_path: Path) -> Iterator[LocalCoordinator]:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite") as running:
        yield running


# --- round ---


def test_the_cost_of_a_report_is_told_alone_in_groups_and_at_the_commit(bert_bundle: Bundle, tmp_path: Path) -> None:
    found = reports.measure(bert_bundle.folder, 20, 2, tmp_path)
    times = [found[f"{name}_ms_per_report"] for name in ("coordinator", "grouped", "reading", "commit")]
    assert all(0 < each < 1000 for each in times)
    assert times[2] < times[1] < times[0]
    store = SqliteStore(tmp_path / "run.sqlite")
    assert [entry.contributors for entry in store.entries(1)] == [20] * 4
    assert "read, validated, stored" in reports.told(found)


def test_a_report_that_is_not_accepted_ends_the_benchmark(coordinator: LocalCoordinator) -> None:
    def twice(rounds: Rounds) -> None:
        rounds.enrol(5)
        body = wire.encode(reports.Report(1, 0, 1, reports.np.arange(3), 4, "fp32", plan=rounds.plan_id(0, "fp32")))
        reports.accept(rounds, [body], 1)
        with pytest.raises(UserError, match="was not accepted"):
            reports.accept(rounds, [body], 1)

    coordinator.call(lambda s: twice(s.rounds))


# --- coordinator ---


def test_a_fleet_is_connected_while_its_reports_are_committed(bert_bundle: Bundle, tmp_path: Path) -> None:
    found = throughput.measure(bert_bundle.folder, 12, 2, 5, tmp_path)
    assert (found["connected_agents"], found["rounds"], found["at_once"]) == (12, 2, 5)
    rates = [found[f"{what}_per_second"] for what in ("joins", "plans", "reports")]
    assert all(0 < rate < math.inf for rate in rates)
    assert [entry.contributors for entry in SqliteStore(tmp_path / "run.sqlite").entries(1)] == [12, 12]
    assert "12 agents connected, 5 calls under way, 2 rounds committed" in throughput.told(found)


def test_a_coordinator_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the coordinator has ended; see .*coordinator\.log"):
        throughput.measure(tmp_path / "no bundle", 2, 1, 2, tmp_path)


def test_more_connections_than_the_system_allows_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="raise the limit"):
        throughput.allow_files(2**40)


# --- the lean agent ---


def test_it_gets_the_replies_that_grpc_gets(coordinator: LocalCoordinator, bert_bundle: Bundle) -> None:
    async def go() -> tuple[JoinReply, FileChunk]:
        agent = await connect(coordinator.address)
        joined = await agent.call(throughput.HEADERS[JoinRequest], wire.encode(JoinRequest(PROTOCOL, 5)))
        piece = await agent.call(throughput.HEADERS[FileRequest], wire.encode(FileRequest(1, 0, 0)))
        agent.close()
        return wire.decoder(JoinReply)(joined), wire.decoder(FileChunk)(piece)

    joined, piece = asyncio.run(go())
    assert (joined.run, joined.device, joined.bundle_digest) == (1, 0, bert_bundle.digest)
    assert piece.content == (bert_bundle.folder / manifest_file.FILE).read_bytes()


def test_a_refused_call_is_no_reply(coordinator: LocalCoordinator) -> None:
    async def go() -> None:
        agent = await connect(coordinator.address)
        with pytest.raises(CallFailed, match=r"refused: .*speaks protocol"):
            await agent.call(throughput.HEADERS[JoinRequest], wire.encode(JoinRequest(9, 5)))
        assert await agent.call(throughput.HEADERS[JoinRequest], wire.encode(JoinRequest(PROTOCOL, 5)))
        agent.close()

    asyncio.run(go())


class Heard(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.written += data


def served(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


MESSAGE = b"\0\0\0\0\5hello"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_frames_are_read_however_they_are_cut_and_settings_and_pings_answered(size: int) -> None:
    async def go() -> tuple[bytes, bytes]:
        agent, heard = LeanAgent(), Heard()
        agent.connection_made(heard)
        call = asyncio.create_task(agent.call(b"", b"x"))
        await asyncio.sleep(0)
        heard.written = b""
        stream = served(4, 0, 0, bytes(6)) + served(6, 0, 0, b"pingpong") + served(1, 4, 1, b"h") + served(8, 0, 0, bytes(4))
        stream += served(0, 0, 1, MESSAGE[:6]) + served(0, 0, 1, MESSAGE[6:]) + served(1, 5, 1, b"t")
        for start in range(0, len(stream), size):
            agent.data_received(stream[start : start + size])
        return await call, heard.written

    assert asyncio.run(go()) == (b"hello", served(4, 1, 0) + served(6, 1, 0, b"pingpong"))


@pytest.mark.parametrize(("last", "why"), [(served(3, 0, 1, bytes(4)), "reset"), (served(7, 0, 0, bytes(8)), "goodbye"), (None, "closed")])
def test_an_end_without_a_reply_is_told(last: bytes | None, why: str) -> None:
    async def go() -> None:
        agent = LeanAgent()
        agent.connection_made(Heard())
        call = asyncio.create_task(agent.call(b"", b"x"))
        await asyncio.sleep(0)
        if last is None:
            agent.connection_lost(None)
        else:
            agent.data_received(last)
        with pytest.raises(CallFailed, match=why):
            await call

    asyncio.run(go())
