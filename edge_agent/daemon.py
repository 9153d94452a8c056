"""The agent's life: join, fetch the bundle, then rounds until the run is over or it is told to stop."""

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edge_agent import download
from edge_agent.config import AgentConfig
from edge_agent.data import Dataset
from edge_agent.link import Link, Rejoin, Stopped, Unreachable
from edge_agent.status import Status
from edge_agent.work import work
from zo.bundle import Bundle
from zo.calibration import correlation_here, kinds
from zo.engine import Engine
from zo.errors import ConnectionFailed, StorageError
from zo.lattice import RangeError
from zo.messages import PROTOCOL, JoinReply, JoinRequest, Report, Verdict, WorkReply, WorkRequest
from zo.plan import WorkPlan

log = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds between tries; each pause is drawn at random up to a doubling bound
CHECKED_DIRECTIONS = 6
POOR_CORRELATION = 0.5


class Daemon:
    """One agent. `stop`: set it (from a signal handler, say) to end cleanly after the probe under way."""

    def __init__(self, config: AgentConfig, stop: threading.Event) -> None:
        self.config, self._stop = config, stop
        self.state = Path(config.state)
        device_id = _device_id(self.state)
        self.status = Status(self.state)
        self._device_id, self._reports = device_id, 0
        self.link = Link(config.coordinator, stop, config.insecure_loopback)

    def run(self) -> None:
        """Work until the run is over, or `stop` is set. Raises a UserError where that cannot be."""
        self.status.write()
        try:
            while not self._rounds():
                log.info("joining again")
                self._pause(random.uniform(FIRST_PAUSE / 2, FIRST_PAUSE))
            self.status.update(state="finished", reason="the run is over")
            log.info("the run is over: entry %d, digest %s", self.entry, self.engine.parameters.digest().hex())
        except Stopped:
            self.status.update(state="stopped", reason="told to stop")
            log.info("stopped")
        except Exception as error:
            self.status.update(state="failed", reason=str(error))
            raise
        finally:
            self.link.close()

    def _rounds(self) -> bool:
        """Join and work; True when the run is over, False when it has to be joined again."""
        try:
            return self._work_along()
        except Rejoin as reason:
            log.warning("%s", reason)
            return False

    def _work_along(self) -> bool:
        self.joined: JoinReply = self._patiently(lambda: self.link.ask(JoinRequest(PROTOCOL, self._device_id)))
        log.info("joined run %r as device %d", self.joined.run_name, self.joined.device)
        bundle = self._patiently(lambda: download.bundle(self.link, self.joined, self.state, self.config.bundle))
        self._prepare(bundle)
        while True:
            reply: WorkReply = self._patiently(self._request_work)
            if not self._apply(reply):
                return False
            if reply.finished:
                return True
            if reply.plan and reply.plan.entry == self.entry:
                if not self._report(self._do(reply.plan)):
                    return False
            elif not reply.entries:
                self.status.update(state="waiting", reason=reply.reason)
                self._pause(reply.retry_after_ms / 1000)

    def _prepare(self, bundle: Bundle) -> None:
        """Parameters at entry 0, an engine over them, and the encoded examples."""
        config, task = self.config, bundle.manifest.task
        parameters = bundle.parameters(config.threads)
        self.__dict__.pop("engine", None)  # before another is made: memory is short
        self.entry, self.engine = 0, Engine(bundle, parameters, threads=config.threads, max_rows=config.max_rows)
        self.dataset = Dataset(
            Path(config.data),
            task,
            bundle.tokenizer(),
            held_out_share=config.held_out_share,
            held_out_most=config.held_out_most,
            balanced=config.balanced,
        )
        log.info("%s: %s, %d held out", config.data, self.dataset.summary, len(self.dataset.held_out))
        correlation = correlation_here(self.engine, kinds(bundle.manifest)[0], self.dataset.draw(4), CHECKED_DIRECTIONS, self._check_stop)
        if correlation < POOR_CORRELATION:
            log.warning(
                "probes are mostly noise on this processor (correlation %.2f); the operator should build the bundle with precision fp32",
                correlation,
            )
        counts = {"examples": len(self.dataset.training) + len(self.dataset.held_out), "held_out": len(self.dataset.held_out)}
        self.status.update(
            run=self.joined.run_name,
            device=self.joined.device,
            skipped=self.dataset.reading.skipped,
            correlation=round(correlation, 3),
            state="working",
            **counts,
        )

    def _request_work(self) -> WorkReply:
        return self.link.ask(WorkRequest(self.joined.run, self.joined.device, self.entry))

    def _apply(self, reply: WorkReply) -> bool:
        """Bring the parameters up to the reply's entries; False where they do not follow."""
        for entry in reply.entries:
            if entry.number != self.entry + 1:
                log.warning("entry %d does not follow entry %d; rebuilding from the bundle", entry.number, self.entry)
                return False
            try:
                self.engine.parameters.add(entry.terms)
            except RangeError as error:
                log.warning("entry %d cannot be applied (%s); rebuilding from the bundle", entry.number, error)
                return False
            self.entry = entry.number
        if reply.entries or reply.finished:
            self.status.update(entry=self.entry, digest=self.engine.parameters.digest().hex() if reply.finished else None)
        return True

    def _do(self, plan: WorkPlan) -> Report:
        self.status.update(state="working", reason=f"round {plan.round}")
        report = work(plan, self.engine, self.dataset, self.joined, self._check_stop)
        if report.held_out is not None:
            self.status.update(held_out_loss=float(plan.grid.values(report.held_out)))  # type: ignore[arg-type]
        if report.dropped:
            log.warning(
                "round %d: %d of %d directions gave no finite loss and were dropped", plan.round, report.dropped, report.scalars.size
            )
        return report

    def _report(self, report: Report) -> bool:
        """Send it; False where the coordinator says that the parameters here have diverged."""
        reply = self._patiently(lambda: self.link.ask(report))
        self._reports += reply.verdict is Verdict.ACCEPTED
        self.status.update(reports=self._reports)
        log.debug("round %d: %s", report.round, reply.verdict.name.lower())
        if reply.verdict is Verdict.DIVERGED:
            log.warning("the parameters here are not the fleet's any more; rebuilding them from the bundle")
            return False
        return True

    def _patiently(self, call: Callable[[], T]) -> T:
        """The call's result, trying again while the coordinator is not there."""
        bound, began = FIRST_PAUSE, time.monotonic()
        while True:
            self._check_stop()
            try:
                return call()
            except Unreachable as error:
                if bound == FIRST_PAUSE:
                    log.warning("coordinator %s does not answer (%s); trying again", self.config.coordinator, error)
                self.status.update(state="unreachable", reason=f"coordinator {self.config.coordinator} does not answer")
                if self.config.patience and time.monotonic() - began > self.config.patience:
                    raise ConnectionFailed(
                        f"coordinator {self.config.coordinator} did not answer for {self.config.patience:.0f} s;"
                        " check the address with --coordinator, and that it is running"
                    ) from None
            self._pause(random.uniform(bound / 2, bound))
            bound = min(2 * bound, LONGEST_PAUSE)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped


def _device_id(state: Path) -> int:
    """The random 64-bit name of this device, made on first use and kept in the state folder."""
    path = state / "device_id"
    try:
        state.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            made = path.with_suffix(".new")  # renamed when it is whole: a power cut leaves no half of it
            made.write_text(f"{secrets.randbits(64):016x}\n")
            made.replace(path)
        name = int(path.read_text(), 16)
        if not 0 <= name < 2**64:
            raise ValueError
        return name
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; give a folder that can be written with --state") from None
    except ValueError:
        raise StorageError(f"{path} does not hold a device's name; remove it to join as a new device") from None
