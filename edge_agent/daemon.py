"""The agent's life: join, fetch the bundle, catch up, then rounds until the run is over or it is told to stop."""

import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent import download
from edge_agent.config import AgentConfig
from edge_agent.contact import FIRST_PAUSE, LONGEST_PAUSE, Contact
from edge_agent.flash import DailyBudget
from edge_agent.follower import Follower
from edge_agent.guest import Guest
from edge_agent.link import Link, Rejoin
from edge_agent.manners.owner import policies
from edge_agent.manners.policy import Policy
from edge_agent.precision import Chooser
from edge_agent.privacy import Guard
from edge_agent.profile import Profiler
from edge_agent.state import State
from edge_agent.status import Status
from edge_agent.stopping import Stopped
from edge_agent.trainer import Trainer
from zo import examples
from zo.bundle import Bundle
from zo.disk import Disk
from zo.messages import PROTOCOL, JoinReply, JoinRequest, Report, Verdict, WorkReply
from zo.plan import WorkPlan

log = logging.getLogger(__name__)


class Daemon:
    """One agent. `stop`: set it (from a signal handler, say) to end cleanly after the probe under way. disk: the seam for faults.

    progress: called with the facts of its status at every step that it gets on by; often, so it must be cheap.
    """

    LINK, PROFILER = Link, Profiler
    SAVE_EVERY = 60.0  # seconds between saved positions, where the write budget allows them

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
        self._privacy = Guard(config.dp, self.state.folder, disk)
        left = self.status.facts.get("traffic", {})
        self.traffic = DailyBudget(config.network.bytes_per_day, left.get("left"), left.get("at", 0.0), left.get("spent", 0.0))
        self.guest = Guest(stop, self.policies(), self.status.update, share=config.cpu.share, threads=config.threads, alive=self._alive)
        self.contact = Contact(config, stop, self.state, self.status, self.guest, self.traffic, self.LINK)
        self._chooser = Chooser(config, self.state, self.guest.go_on)
        self._reports = self._setbacks = 0
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
            self._check()
            while not self._rounds():
                log.info("joining again")
                self.guest.wait(random.uniform(0.5, 1) * min(FIRST_PAUSE * 2**self._setbacks, LONGEST_PAUSE))
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
            self.contact.close()
            self.state.close()

    def _check(self) -> None:
        """Refuse what cannot work, before anything is joined or downloaded; and tell what does not work now."""
        examples.files(Path(self.config.data))
        tiles = self.config.tiles
        if tiles and "://" not in tiles and not Path(tiles).is_dir():
            log.warning("tiles = %r is no folder, or not there yet; catching up is by the coordinator alone until it is", tiles)

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
        self.joined: JoinReply = self.contact.ask(JoinRequest(PROTOCOL, self.state.device_id))
        log.info("joined run %r as device %d", self.joined.run_name, self.joined.device)
        bundle = self.contact.patiently(
            lambda: download.bundle(self.contact.call, self.joined, self.state.folder, self._chooser, self.config)
        )
        if self.follower is None or self.follower.joined.genesis != self.joined.genesis:
            self._prepare(bundle)
        trainer, follower = self.trainer, self._following
        follower.joined = self.joined
        follower.catch_up()
        trainer.blocks.caught_up()
        self.status.update(entry=follower.replica.entry)
        while True:
            trainer.choose_rank()
            engine = trainer.engine
            reply: WorkReply = self.contact.ask(follower.request(engine.manifest.precision, trainer.profile(), engine.rank))
            if reply.renew:
                self.contact.renew()
            self._apply(reply)
            if reply.finished:
                return True
            if reply.plan and reply.plan.entry == follower.replica.entry:
                self._take_on(reply.plan)
            elif not reply.entries:
                self._wait(reply.reason, reply.retry_after_ms / 1000)

    def _prepare(self, bundle: Bundle) -> None:
        """What training for the run takes, and its parameters, at the bundle."""
        self.follower = None
        self.__dict__.pop("trainer", None)  # before another is made: memory is short
        self.guest.release()
        joined, config = self.joined, self.config
        self.trainer = Trainer(bundle, joined.genesis, config, self.state, self.status, self.guest, self.PROFILER)
        self.follower = Follower(self.trainer.replica, joined, self.state, config, self.contact.ask, self.guest.go_on, self.SAVE_EVERY)
        self.follower.spend = self.contact.spend
        self.status.update(
            run=joined.run_name,
            device=joined.device,
            precision=bundle.manifest.precision,
            signal_per_second=self._chooser.signal,
            state="working",
            **self.trainer.dataset.counts,
        )

    def _apply(self, reply: WorkReply) -> None:
        """Bring the parameters up to the reply's entries. ValueError where that cannot be."""
        if reply.entries:
            self._following.apply(reply.entries)
            self.trainer.blocks.follow(reply.entries[-1])
            self.status.update(entry=self._following.replica.entry)

    def _take_on(self, plan: WorkPlan) -> None:
        """Do a plan and report it; wait for another where its blocks do not fit now."""
        why = self.trainer.take_on(plan)
        if why:
            self._wait(why, FIRST_PAUSE)
        else:
            self._send(self._report(plan))

    def _wait(self, reason: str, seconds: float) -> None:
        self.status.update(state="waiting", reason=reason)
        self.guest.wait(seconds)

    def _report(self, plan: WorkPlan) -> Report:
        """What may leave of the work on a plan, kept so that a restart need not do it again."""
        kept, self._kept = self._kept, None
        run, device = self.joined.run, self.joined.device
        if kept and (kept.run, kept.device, kept.round, kept.plan) == (run, device, plan.round, plan.id):
            log.info("round %d: sending the report that was made before the restart", plan.round)
            return kept
        self.status.update(state="working", reason=f"round {plan.round}")
        self._privacy.check()  # before work is done for nothing
        report = self._privacy.guarded(self.trainer.report(plan, run, device), plan)
        if self.config.dp.noise:
            self.status.update(epsilon=round(self._privacy.epsilon, 4), delta=self.config.dp.delta)
        self.state.save_report(report, self._following.position_size)
        return report

    def _send(self, report: Report) -> None:
        """Send a report. ValueError where the coordinator says that the parameters here have diverged."""
        verdict = self.contact.ask(report).verdict
        log.debug("round %d: %s", report.round, verdict.name.lower())
        if verdict is Verdict.DIVERGED:
            raise ValueError("the parameters here are not the fleet's any more")
        if verdict is Verdict.ACCEPTED:
            self._reports += 1
            self._setbacks = 0
        self.status.update(reports=self._reports)

    def _alive(self) -> None:
        """It gets on, or waits for a good reason."""
        self._progress(self.status.facts)
