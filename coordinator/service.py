"""The gRPC service over `Rounds`: long polls, bundle files, and an answer by name to everything it refuses."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from coordinator.admission import UNKNOWN, Admission, Caller, Refusal
from coordinator.config import Limits
from coordinator.fleet import Fleet
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
WORST = 20  # callers whose refused requests the log names
PENDING = 10_000  # calls that have come, and not begun; beyond, some are refused

OPTIONS = [
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # agents ask after the line while they wait
    ("grpc.keepalive_time_ms", 60_000),  # devices that went away without a word hold no memory for long
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.server.max_pending_requests", PENDING),  # else a part of them is refused where a whole fleet calls at once
    ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING),
]


class Service:
    """Answers devices. Rounds are touched from the event loop only; `changed` is notified after every commit."""

    def __init__(self, rounds: Rounds, tiles_key: bytes = b"", admission: Admission | None = None) -> None:
        self.rounds, self._tiles_key = rounds, tiles_key
        self.admission = admission or Admission(None, Limits())
        self._offers = Offers(rounds.store, rounds.run.id, rounds.replica)
        self.changed = asyncio.Condition()
        self._arriving = Group(self._take)
        self._numbers: dict[str, int] = {}  # in the run, by device id
        self.files = (manifest_file.FILE, *rounds.bundle.manifest.files)
        self.stopping = False

    async def join(self, request: JoinRequest) -> JoinReply:
        """Enrol a device."""
        if request.protocol != PROTOCOL:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this coordinator speaks protocol {PROTOCOL}, the agent {request.protocol}; install the same release on both",
            )
        rounds, device = self.rounds, self._enrolled(request.device_id)
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
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(answer), "bad-report")
        return ReportReply(answer)

    def check_device(self, caller: Caller, request: Any) -> None:
        """Refusal where a request names another device than the caller's certificate."""
        number = getattr(request, "device", None)
        if caller.peer is None or number is None:
            return
        if caller.name not in self._numbers:
            self._numbers[caller.name] = self._enrolled(int(caller.name, 16))
        if number != self._numbers[caller.name]:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"device {number} has another certificate; join again", "other-device")

    def count(self, caller: str, name: str, text: str = "") -> None:
        """Count what was refused; the first of its kind, since the last flush, becomes an event."""
        if self.admission.refusals.add(caller, name) and text:
            self.rounds.note(name, f"{caller or 'a device'}: {text}")

    def flush(self) -> None:
        """Keep what was counted."""
        lines = self.admission.flush()
        for line in lines[:WORST]:
            log.info("refused: %s", line)
        if len(lines) > WORST:
            log.info("refused: and requests of %d others", len(lines) - WORST)

    def _enrolled(self, device_id: int) -> int:
        try:
            return self.rounds.enrol(device_id)
        except ReportRefused as error:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None

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
    answers: dict[str, Callable[[Any], Awaitable[Any]] | None] = {
        "Enrol": None,  # admission's own
        "Join": service.join,
        "FetchFile": service.fetch_file,
        "CatchUp": service.catch_up,
        "FetchCheckpoint": service.fetch_checkpoint,
        "RequestWork": service.request_work,
        "SendReport": service.send_report,
    }
    return grpc.method_handlers_generic_handler(wire.SERVICE, {m.name: _handler(service, m, answers[m.name]) for m in wire.METHODS})


def _handler(service: Service, method: wire.Method, answer: Callable[[Any], Awaitable[Any]] | None) -> Any:
    decode: Callable[[bytes], Any] = wire.decoder(method.request)
    admission = service.admission

    async def reply(data: bytes, caller: Caller) -> Any:
        with admission.within_limits(caller, method.request, len(data)):
            request = caller.identified(decode(data))
            if answer is None:
                return admission.enrol(caller, request)
            service.check_device(caller, request)
            return await answer(request)

    async def handle(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        name = UNKNOWN
        try:
            caller = admission.caller(context, method.request)
            name = caller.name
            found = await reply(data, caller)
            admission.caller(context, method.request)  # again: it may have been revoked while it waited
            if isinstance(found, ReportReply) and found.verdict is not Verdict.ACCEPTED:
                service.count(name, found.verdict.name.lower().replace("_", "-"))
            return wire.encode(admission.reminded(caller, found))
        except wire.WireError as error:
            service.count(name, "garbage", str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refusal as error:
            service.count(name, error.name or error.code.name.lower().replace("_", "-"), str(error) if error.name else "")
            await context.abort(error.code, str(error))
        except StorageError as error:
            log.error("%s", error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator cannot write its store; ask again later")
        raise AssertionError("abort returns no value")

    return grpc.unary_unary_rpc_method_handler(handle)


async def start(service: Service, listen: str, insecure_loopback: bool) -> grpc.aio.Server:
    """Serve on `listen` ("address:port"), to devices with a certificate. ConfigError where that would be plaintext beyond loopback."""
    fleet = service.admission.fleet
    if insecure_loopback and not is_loopback(listen):
        raise ConfigError(f"listen = {listen!r} is no loopback address; plaintext is served on 127.0.0.1 or [::1] only")
    if insecure_loopback == bool(fleet):
        raise ConfigError("serve either a fleet, or plaintext on a loopback address with --insecure-loopback")
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=None)
    server.add_generic_rpc_handlers((handlers(service),))
    try:
        port = server.add_secure_port(listen, credentials(fleet)) if fleet else server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConnectionFailed(f"cannot listen on {listen}: the port is in use or not allowed; choose another with --listen")
    await server.start()
    return server


def credentials(fleet: Fleet) -> grpc.ServerCredentials:
    """TLS with certificates on both sides; a new token is trusted from the next handshake on."""
    last = b""

    def fetch() -> Any:
        nonlocal last
        with contextlib.suppress(StorageError):
            roots = fleet.roots()
            if roots != last:
                last = roots
                return grpc.ssl_server_certificate_configuration([(fleet.server.key, fleet.server.certificate)], roots)
        return None

    return grpc.dynamic_ssl_server_credentials(fetch(), fetch, require_client_authentication=True)
