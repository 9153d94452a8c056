"""The agent's life: join, fetch the bundle, catch up, then rounds until the run is over or it is told to stop."""

import logging
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edge_agent import download, identity, memory, plan_limits
from edge_agent.blocks import Blocks
from edge_agent.config import AgentConfig
from edge_agent.data import Dataset
from edge_agent.energy import meter
from edge_agent.engine import engine
from edge_agent.flash import DailyBudget
from edge_agent.follower import Follower
from edge_agent.guest import Guest
from edge_agent.link import Link, Rejoin, Unreachable
from edge_agent.manners.owner import policies
from edge_agent.manners.policy import Policy
from edge_agent.precision import Chooser
from edge_agent.privacy import Guard
from edge_agent.profile import Profiler
from edge_agent.rank import bearable
from edge_agent.sent import Sent
from edge_agent.state import State
from edge_agent.status import Status
from edge_agent.stopping import Stopped
from edge_agent.work import work
from zo.bundle import Bundle
from zo.calibration import correlation_here
from zo.disk import Disk
from zo.errors import ConnectionFailed, UserError
from zo.memory import process
from zo.memory.engine import Device
from zo.messages import PROTOCOL, JoinReply, JoinRequest, Report, Verdict, WorkReply
from zo.plan import WorkPlan
from zo.planning import kinds
from zo.replica import Replica

log = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds between tries; each pause is drawn at random up to a doubling bound
PLAINTEXT = "127.0.0.1:7600"
RENEWALS = 600.0  # seconds between tries to renew a certificate
CHECKED_DIRECTIONS = 6
POOR_CORRELATION = 0.5


class Daemon:
    """One agent. `stop`: set it (from a signal handler, say) to end cleanly after the probe under way. disk: the seam for faults.

    progress: called with the facts of its status at every step that it gets on by; often, so it must be cheap.
    """

    LINK, PROFILER = Link, Profiler
    SAVE_EVERY = 60.0  # seconds between saved positions, where the write budget allows them
    TURN = 5.0  # seconds between signs of life in a longer pause

    def __init__(
        self,
        config: AgentConfig,
        stop: threading.Event,
        disk: Disk | None = None,
        progress: Callable[[dict[str, Any]], None] = lambda facts: None,
    ) -> None:
        self.config, self._stop, self._progress = config, stop, progress
        self.state = State(Path(config.state), config.disk_bytes_per_day, disk)
        self.status = Status(self.state)
        self._identity = None if config.insecure_loopback else identity.load(Path(config.state))
        self.address = config.coordinator or (self._identity.coordinator if self._identity else PLAINTEXT)
        self._sent = Sent(self.state.folder, config.audit_bytes, self.state.budget)
        self._privacy = Guard(config.dp, self.state.folder, disk)
        self.traffic = DailyBudget(config.network.bytes_per_day, *self.state.traffic())
        self.link = self._dial()
        self.guest = Guest(stop, self.policies(), self.status.update, share=config.cpu.share, threads=config.threads, alive=self._alive)
        self._meter = meter()
        self._chooser = Chooser(config, self.state, self.guest.go_on)
        self._reports = self._setbacks = 0
        self._renew_after = 0.0
        self._checked_at: float | None = None  # loss
        self._kept = self.state.report()  # made before a restart, perhaps not delivered
        self.follower: Follower | None = None

    def policies(self) -> list[Policy]:
        """What the owner minds."""
        traffic = self.traffic if self.config.network.bytes_per_day else None
        return policies(self.config, self.state.budget, lambda: self.follower.position_size if self.follower else 0, traffic)

    def run(self) -> None:
        """Work until the run is over, or `stop` is set. Raises a UserError where that cannot be."""
        self.status.write()
        try:
            while not self._rounds():
                log.info("joining again")
                self._pause(random.uniform(0.5, 1) * min(FIRST_PAUSE * 2**self._setbacks, LONGEST_PAUSE))
                self._setbacks += 1
            self._following.save()
            replica = self._following.replica
            digest = replica.digest().hex()
            self.status.update(state="finished", reason="the run is over", digest=digest)
            log.info("the run is over: entry %d, digest %s", replica.entry, digest)
        except Stopped:
            if self.follower:
                self.follower.save()
            self.status.update(state="stopped", reason="told to stop")
            log.info("stopped")
        except Exception as error:
            self.status.update(state="failed", reason=str(error))
            raise
        finally:
            self.link.close()
            self.state.close()

    @property
    def _following(self) -> Follower:
        assert self.follower is not None
        return self.follower

    def _rounds(self) -> bool:
        """Join and work; True when the run is over, False when it has to be joined again."""
        try:
            return self._work_along()
        except Rejoin as reason:
            log.warning("%s", reason)
        except ValueError as error:  # from the replica: entries that do not follow or fit, or another digest than stated
            if self.follower is None:
                raise
            log.warning("%s; rebuilding the parameters from the bundle", error)
            self._following.rebuild(str(error))
        return False

    def _work_along(self) -> bool:
        self.joined: JoinReply = self._ask(JoinRequest(PROTOCOL, self.state.device_id))
        log.info("joined run %r as device %d", self.joined.run_name, self.joined.device)
        bundle = self._patiently(lambda: download.bundle(self._call, self.joined, self.state.folder, self._chooser, self.config))
        if self.follower is None or self.follower.joined.genesis != self.joined.genesis:
            self._prepare(bundle)
        follower = self._following
        follower.joined = self.joined
        follower.catch_up()
        self.blocks.caught_up()
        self.status.update(entry=follower.replica.entry)
        while True:
            self._choose_rank()
            reply: WorkReply = self._ask(follower.request(self.engine.manifest.precision, self.profiler.now(), self.engine.rank))
            if reply.renew and self._identity:
                self._renew(self._identity)
            self._apply(reply)
            if reply.finished:
                return True
            if reply.plan and reply.plan.entry == follower.replica.entry:
                self._take_on(reply.plan)
            elif not reply.entries:
                self.status.update(state="waiting", reason=reply.reason)
                self._pause(reply.retry_after_ms / 1000)

    def _prepare(self, bundle: Bundle) -> None:
        """A replica at the bundle, an engine over its parameters, and the encoded examples."""
        config = self.config
        self.follower = None
        for name in ("engine", "blocks", "profiler"):
            self.__dict__.pop(name, None)  # before others are made: memory is short
        self.guest.release()
        self.dataset = Dataset.of(config, bundle)  # first: what the tokenizer took is free again for the engine
        optional = bundle.manifest.optional
        if optional:
            process.map_large()
        process.give_back()
        self._device = before = memory.here()
        parameters = bundle.parameters(config.threads, {group.id for group in bundle.manifest.groups} - optional)
        self.engine = engine(config, bundle, parameters, self.state)
        self._choose_rank()
        blocks = [group for group in bundle.manifest.groups if group.id in optional]
        replica = Replica(parameters, self.joined.genesis, bundle.initial_tensors, blocks)
        govern = partial(memory.govern, self.guest, self.engine, bundle, config, self.state, before)
        self.blocks = Blocks(bundle, self.engine, replica, self.state, config.refresh, govern, self.guest.go_on)
        if optional:
            self.blocks.refresh()
        planned = govern()
        self._device = planned.device if planned else self._device
        self.status.update(planned_memory_mib=planned.need.total >> 20 if planned else None)
        self._check_probes()
        self.profiler = self.PROFILER(self.engine, self.dataset.draw(4), config, planned.device if planned else Device())
        self.follower = Follower(replica, self.joined, self.state, config, self._ask, self.guest.go_on, self.SAVE_EVERY)
        self.follower.spend = self._spend
        self.status.update(
            run=self.joined.run_name,
            device=self.joined.device,
            precision=bundle.manifest.precision,
            signal_per_second=self._chooser.signal,
            state="working",
            **self.dataset.counts,
        )

    def _check_probes(self, loss: float | None = None) -> None:
        """Warn where probes are noise here. loss: held-out, at which they are checked; they are again once it has halved."""
        manifest, self._checked_at = self.engine.manifest, loss
        kind = kinds(manifest)[-1 if manifest.optional else 0]  # blocks that may be inactive are computed in float, without noise
        correlation = correlation_here(self.engine, kind, self.dataset.draw(4), CHECKED_DIRECTIONS, self.guest.go_on)
        self.status.update(correlation=round(correlation, 3))
        if correlation < POOR_CORRELATION:
            log.warning(
                "probes are mostly noise on this processor (correlation %.2f, base %s); take another with --precision,"
                " or let the operator build the bundle with fp32",
                correlation,
                manifest.precision,
            )

    def _choose_rank(self) -> None:
        """The rank that this device bears now: its budget may have changed since."""
        rank = bearable(self.engine.manifest, self.config, self._device)
        if rank != self.engine.rank:
            log.info("training adapters of rank %d, of %s that the bundle has", rank, ", ".join(map(str, self.engine.manifest.ranks)))
            self.engine.rank = rank
            self.status.update(rank=rank)

    def _apply(self, reply: WorkReply) -> None:
        """Bring the parameters up to the reply's entries. ValueError where that cannot be."""
        if reply.entries:
            self._following.apply(reply.entries)
            self.blocks.follow(reply.entries[-1])
            self.status.update(entry=self._following.replica.entry)

    def _take_on(self, plan: WorkPlan) -> None:
        """Do a plan and report it; wait for another where its blocks do not fit now."""
        plan_limits.check(plan, self.engine.manifest, self.engine.rank)
        why = self.blocks.take_on(plan.groups)
        self.status.update(active_blocks=len(self.blocks.active), **({"state": "waiting", "reason": why} if why else {}))
        if why:
            self._pause(FIRST_PAUSE)
        else:
            self._send(self._do(plan))

    def _do(self, plan: WorkPlan) -> Report:
        kept, self._kept = self._kept, None
        mine = (self.joined.run, self.joined.device, plan.round, plan.id)
        if kept and (kept.run, kept.device, kept.round, kept.plan) == mine:
            log.info("round %d: sending the report that was made before the restart", plan.round)
            return kept
        self.status.update(state="working", reason=f"round {plan.round}")
        self._privacy.check()  # before work is done for nothing
        stride = self._following.replica.stride(plan.stride)
        numbers = {"run": self.joined.run, "device": self.joined.device}
        report = work(plan, self.engine, self.dataset, self.guest, stride, meter=self._meter, **numbers)
        if report.held_out:
            loss = float(plan.grid.values(report.held_out[0]))  # type: ignore[arg-type]
            self.status.update(held_out_loss=loss)
            self._checked_at = self._checked_at or loss
            if loss < self._checked_at / 2:
                self._check_probes(loss)
        if report.dropped:
            log.warning(
                "round %d: %d of %d directions gave no finite loss, or were given up, and are dropped",
                plan.round,
                report.dropped,
                report.scalars.size,
            )
        report = self._privacy.guarded(report, plan)
        if self.config.dp.noise:
            self.status.update(epsilon=round(self._privacy.epsilon, 4), delta=self.config.dp.delta)
        self.state.save_report(report, self._following.position_size)
        return report

    def _send(self, report: Report) -> None:
        """Send a report. ValueError where the coordinator says that the parameters here have diverged."""
        verdict = self._ask(report).verdict
        log.debug("round %d: %s", report.round, verdict.name.lower())
        if verdict is Verdict.DIVERGED:
            raise ValueError("the parameters here are not the fleet's any more")
        if verdict is Verdict.ACCEPTED:
            self._reports += 1
            self._setbacks = 0
        self.status.update(reports=self._reports)

    def _dial(self) -> Link:
        link = self.LINK(self.address, self._stop, self.config.insecure_loopback, self._identity, self._sent.add)
        link.spend = self._spend
        return link

    def _renew(self, present: identity.Identity) -> None:
        """A new certificate in time; where that fails, the present one serves on, and it is tried again later."""
        from edge_agent import join  # with all that makes keys

        if time.monotonic() < self._renew_after:
            return
        self._renew_after = time.monotonic() + RENEWALS
        try:
            self._identity = join.renewed(present, self.link.ask, self.state.folder)
        except (Unreachable, Rejoin, UserError) as error:
            log.warning("the certificate is not renewed yet: %s", error)
            return
        self.link.close()
        self.link = self._dial()

    def _ask(self, request: Any) -> Any:
        return self._patiently(lambda: self._call(request))

    def _call(self, request: Any) -> Any:
        self.guest.go_on()
        return self.link.ask(request)

    def _patiently(self, call: Callable[[], T]) -> T:
        """The call's result, trying again while the coordinator is not there."""
        bound, began = FIRST_PAUSE, time.monotonic()
        while True:
            try:
                return call()
            except Unreachable as error:
                if bound == FIRST_PAUSE:
                    log.warning("coordinator %s does not answer (%s); trying again", self.address, self.link.why(error))
                self.status.update(state="unreachable", reason=f"coordinator {self.address} does not answer")
                if self.config.patience and time.monotonic() - began > self.config.patience:
                    raise ConnectionFailed(
                        f"coordinator {self.address} did not answer for {self.config.patience:.0f} s ({self.link.why(error)});"
                        " check the address with --coordinator, and that it is running"
                    ) from None
            self._pause(random.uniform(bound / 2, bound))
            bound = min(2 * bound, LONGEST_PAUSE)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._stop.wait(min(left, self.TURN))
            self.guest.check_stop()

    def _alive(self) -> None:
        """It gets on, or waits for a good reason."""
        self._progress(self.status.facts)

    def _spend(self, size: int) -> None:
        """Count bytes of the network."""
        self.traffic.spend(size)
        self.status.facts["traffic"] = self.traffic.record()
