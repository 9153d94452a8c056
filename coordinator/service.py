"""The gRPC service over `Rounds`: long polls, bundle files, and an answer by name to everything it refuses."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc

from coordinator.admission import Admission, Caller, Refusal
from coordinator.config import Limits
from coordinator.group_commit import GroupCommit
from coordinator.offers import Offers
from coordinator.plans import ReportRefused
from coordinator.rounds import Rounds
from coordinator.store import Compacted
from zo import manifest as manifest_file
from zo.errors import StorageError
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
CHUNK = 1 << 20  # bytes of a file a call
MOST_ENTRIES = 256  # a reply
MOST_STEPS = 1 << 20  # a reply, beyond its first entry: at most 10 bytes each, so that it stays below wire.MAX_MESSAGE
RETRY_MS = 1000
WORST = 20  # callers whose refused requests the log names


class Service:
    """Answers devices. Rounds are touched from the event loop only; `changed` is notified after every commit."""

    def __init__(self, rounds: Rounds, tiles_key: bytes = b"", admission: Admission | None = None) -> None:
        self.rounds, self._tiles_key = rounds, tiles_key
        self.admission = admission or Admission(None, Limits())
        self._offers = Offers(rounds.store, rounds.run.id, rounds.ledger.replica)
        self.changed = asyncio.Condition()
        self._arriving = GroupCommit(self._take)
        self._numbers: dict[str, int] = {}  # in the run, by device id
        self._joined = set[int]()  # while this has served
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
        if device not in self._joined:  # or one that asks again and again fills the log
            self._joined.add(device)
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
        return CatchUpReply(self._offers.after(request.entry, self.rounds.ledger.digest()))

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
        return reply or WorkReply(retry_after_ms=RETRY_MS, reason=self.rounds.why_waiting(request.device))

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
        entry = self.rounds.ledger.entry
        try:
            self.rounds.close_if_due()
        finally:  # what comes after a commit may fail: it is there all the same
            if self.rounds.ledger.entry != entry:
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
            most = min(MOST_ENTRIES, rounds.ledger.entry - request.entry)  # what others have appended is told once it is followed
            entries = _fitting(rounds.store.walk(rounds.run.id, request.entry, request.entry + most))
        except Compacted:
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"the entries after {request.entry} have been folded; join again") from None
        if entries and _steps(entries[0]) > MOST_STEPS:  # as a long way back may have; a checkpoint spares it
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"entry {entries[0].number} is too large to be sent; join again")
        complete = request.entry + len(entries) == rounds.ledger.entry
        try:
            plan = rounds.work(request.device, request.precision, request.profile, request.rank) if complete else None
        except ReportRefused as error:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        finished = complete and rounds.finished
        return WorkReply(entries, plan, 0, "", finished) if entries or plan or finished else None

    def _check_place(self, entry: int, chain: int) -> None:
        """Refusal unless the device stands on this ledger."""
        if entry > self.rounds.ledger.entry:
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"the ledger ends at entry {self.rounds.ledger.entry}, the device is at {entry}")
        if short(self.rounds.store.head(self.rounds.run.id, entry)[1]) != chain:
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"the device's entry {entry} is of another history")

    def _check(self, run: int, device: int | None = None) -> None:
        if run != self.rounds.run.id:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"run {run} is not served here; join again")
        if device is not None and device >= self.rounds.devices:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"device {device} has not joined this run; join again")


def _fitting(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """As many of the first entries as one message holds; at least one, if there is any."""
    found, steps = list[Entry](), 0
    for entry in entries:
        steps += _steps(entry)
        if found and steps > MOST_STEPS:
            break
        found.append(entry)
    return tuple(found)


def _steps(entry: Entry) -> int:
    return sum(term.steps.size + len(term.groups) + 3 for term in entry.terms)


def _piece(path: Path, offset: int) -> FileChunk:
    with path.open("rb") as file:
        file.seek(min(offset, path.stat().st_size))
        return FileChunk(file.read(CHUNK), path.stat().st_size)
