"""The gRPC service over `Rounds`: long polls, bundle files, and an answer by name to everything it refuses."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from coordinator.group import Group
from coordinator.offers import Offers
from coordinator.rounds import ReportRefused, Rounds
from coordinator.store import Compacted
from zo import manifest as manifest_file
from zo import wire
from zo.address import is_loopback
from zo.errors import ConfigError, ConnectionFailed, StorageError
from zo.ledger import Entry, short
from zo.messages import (
    PROTOCOL,
    CatchUpReply,
    CatchUpRequest,
    CheckpointRequest,
    FileChunk,
    FileRequest,
    JoinReply,
    JoinRequest,
    Report,
    ReportReply,
    Verdict,
    WorkReply,
    WorkRequest,
)

log = logging.getLogger(__name__)

LONG_POLL = 20.0  # seconds; below what NAT boxes forget
CHUNK = 1 << 22  # bytes of a bundle file a call
MOST_ENTRIES = 256  # a reply
MOST_STEPS = 1 << 20  # a reply, beyond its first entry: at most 10 bytes each, so that it stays below wire.MAX_MESSAGE
RETRY_MS = 1000
PENDING = 10_000  # calls that have come, and not begun; beyond, some are refused

OPTIONS = [
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", PENDING),  # else a part of them is refused where a whole fleet calls at once
    ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING),
]


class Refusal(Exception):
    """A call that is answered with a status and a sentence."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Service:
    """Answers devices. Rounds are touched from the event loop only; `changed` is notified after every commit."""

    def __init__(self, rounds: Rounds, tiles_key: bytes = b"") -> None:
        self.rounds, self._tiles_key = rounds, tiles_key
        self._offers = Offers(rounds.store, rounds.run.id, rounds.replica)
        self.changed = asyncio.Condition()
        self._arriving = Group(self._take)
        self.files = (manifest_file.FILE, *rounds.bundle.manifest.files)
        self.stopping = False

    async def join(self, request: JoinRequest) -> JoinReply:
        """Enrol a device."""
        if request.protocol != PROTOCOL:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this coordinator speaks protocol {PROTOCOL}, the agent {request.protocol}; install the same release on both",
            )
        rounds = self.rounds
        try:
            device = rounds.enrol(request.device_id)
        except ReportRefused as error:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        log.info("device %d joined", device)
        return JoinReply(rounds.run.id, device, rounds.run.name, rounds.bundle.digest, self.files, rounds.run.genesis, self._tiles_key)

    async def fetch_file(self, request: FileRequest) -> FileChunk:
        """A piece of a bundle file."""
        self._check(request.run)
        if request.file >= len(self.files):
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"the bundle has {len(self.files)} files, there is no file {request.file}")
        return await asyncio.to_thread(_piece, self.rounds.bundle.folder / self.files[request.file], request.offset)

    async def catch_up(self, request: CatchUpRequest) -> CatchUpReply:
        """What the ways to the last entry cost a device."""
        self._check(request.run, request.device)
        self._check_place(request.entry, request.chain)
        return CatchUpReply(self._offers.after(request.entry, self.rounds.digest()))

    async def fetch_checkpoint(self, request: CheckpointRequest) -> FileChunk:
        """A piece of a checkpoint."""
        self._check(request.run)
        piece = self._offers.piece(request.way, request.entry, request.offset, CHUNK)
        if piece is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "that checkpoint is not offered any more; join again")
        return piece

    async def request_work(self, request: WorkRequest) -> WorkReply:
        """Entries that the device lacks, and a plan; waits up to LONG_POLL for either."""
        self._check(request.run, request.device)
        reply = self._work(request)
        if reply is None and not self.stopping:
            async with self.changed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), LONG_POLL)
            reply = self._work(request)
        return reply or WorkReply(retry_after_ms=RETRY_MS, reason=self.rounds.why_waiting())

    async def send_report(self, report: Report) -> ReportReply:
        """Take a report in, with those that arrive together with it; commits the round when it was the last one awaited."""
        self._check(report.run, report.device)
        answer = await self._arriving.add(report)
        if isinstance(answer, ReportRefused):
            self.rounds.note("bad report", f"device {report.device}: {answer}")
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(answer))
        return ReportReply(answer)

    async def _take(self, reports: Sequence[Report]) -> Sequence[Verdict | ReportRefused]:
        answers = self.rounds.accept_all(reports)
        if Verdict.ACCEPTED in answers:
            try:
                await self.close_if_due()
            except StorageError as error:  # the round stays open, and these reports are kept in it
                log.error("%s", error)
        return answers

    async def close_if_due(self) -> None:
        """Commit the open round if it is due, then wake everyone who waits for it."""
        if self.rounds.close_if_due():
            await self._tell()

    async def follow(self) -> None:
        """Take in what others have appended to the ledger."""
        if self.rounds.follow():
            await self._tell()

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def _work(self, request: WorkRequest) -> WorkReply | None:
        rounds = self.rounds
        self._check_place(request.entry, request.chain)
        try:
            most = min(MOST_ENTRIES, rounds.entry - request.entry)  # what others have appended is told once it is followed
            entries = _fitting(rounds.store.entries(rounds.run.id, request.entry, most))
        except Compacted:
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"the entries after {request.entry} have been folded; join again") from None
        if entries and _steps(entries[0]) > MOST_STEPS:  # as a long way back may have; a checkpoint spares it
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"entry {entries[0].number} is too large to be sent; join again")
        complete = request.entry + len(entries) == rounds.entry
        try:
            plan = rounds.plan(request.device, request.precision, request.stage_ns) if complete else None
        except ReportRefused as error:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        finished = complete and rounds.finished
        return WorkReply(entries, plan, 0, "", finished) if entries or plan or finished else None

    def _check_place(self, entry: int, chain: int) -> None:
        """Refusal unless the device stands on this ledger."""
        if entry > self.rounds.entry:
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"the ledger ends at entry {self.rounds.entry}, the device is at {entry}")
        if short(self.rounds.store.head(self.rounds.run.id, entry)[1]) != chain:
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"the device's entry {entry} is of another history")

    def _check(self, run: int, device: int | None = None) -> None:
        if run != self.rounds.run.id:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"run {run} is not served here; join again")
        if device is not None and device >= self.rounds.devices:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"device {device} has not joined this run; join again")


def _fitting(entries: list[Entry]) -> tuple[Entry, ...]:
    """As many of the first entries as one message holds; at least one."""
    steps = 0
    for place, entry in enumerate(entries):
        steps += _steps(entry)
        if place and steps > MOST_STEPS:
            return tuple(entries[:place])
    return tuple(entries)


def _steps(entry: Entry) -> int:
    return sum(term.steps.size + len(term.groups) + 3 for term in entry.terms)


def _piece(path: Path, offset: int) -> FileChunk:
    with path.open("rb") as file:
        file.seek(min(offset, path.stat().st_size))
        return FileChunk(file.read(CHUNK), path.stat().st_size)


def handlers(service: Service) -> grpc.GenericRpcHandler:
    """The service's methods as gRPC handlers."""
    answers: dict[str, Callable[[Any], Awaitable[Any]]] = {
        "Join": service.join,
        "FetchFile": service.fetch_file,
        "CatchUp": service.catch_up,
        "FetchCheckpoint": service.fetch_checkpoint,
        "RequestWork": service.request_work,
        "SendReport": service.send_report,
    }
    return grpc.method_handlers_generic_handler(wire.SERVICE, {m.name: _handler(m, answers[m.name]) for m in wire.METHODS})


def _handler(method: wire.Method, answer: Callable[[Any], Awaitable[Any]]) -> Any:
    decode: Callable[[bytes], Any] = wire.decoder(method.request)

    async def handle(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            return wire.encode(await answer(decode(data)))
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refusal as error:
            await context.abort(error.code, str(error))
        except StorageError as error:
            log.error("%s", error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator cannot write its store; ask again later")
        raise AssertionError("abort returns no value")

    return grpc.unary_unary_rpc_method_handler(handle)


async def start(service: Service, listen: str, insecure_loopback: bool) -> grpc.aio.Server:
    """Serve on `listen` ("address:port"). ConfigError where that would be plaintext beyond loopback."""
    if not insecure_loopback:
        raise ConfigError("only plaintext on a loopback address is supported yet; say so with --insecure-loopback")
    if not is_loopback(listen):
        raise ConfigError(f"listen = {listen!r} is no loopback address; plaintext is served on 127.0.0.1 or [::1] only")
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=None)
    server.add_generic_rpc_handlers((handlers(service),))
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConnectionFailed(f"cannot listen on {listen}: the port is in use or not allowed; choose another with --listen")
    await server.start()
    return server
