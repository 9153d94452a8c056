"""Rounds of one run: who is asked for what, when a round closes, and its commit (DESIGN section 7)."""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from coordinator.aggregator import Aggregator
from coordinator.allocation import Asking
from coordinator.blocks import Blocks
from coordinator.config import RunConfig
from coordinator.course import Course
from coordinator.intake import Intake
from coordinator.offenders import Offenders
from coordinator.open_round import OpenRound
from coordinator.plans import Plans, ReportRefused
from coordinator.run_ledger import RunLedger
from coordinator.store import Compacted, Conflict, RunRow, Store
from zo.bundle import Bundle
from zo.errors import ConfigError, StorageError
from zo.lattice import RangeError
from zo.manifest import Precision
from zo.messages import Profile, Report, Verdict
from zo.plan import Shape, WorkPlan

log = logging.getLogger(__name__)

AGAIN = 5.0  # seconds after which a way back that failed is tried again


class Rounds:
    """The state of a run between its entries: one open round at a time.

    All that matters is in the store; a new object over the same store goes on where the last one stopped. `clock`
    gives seconds; `accept`, `close_if_due` and `commit` never wait.
    """

    AGGREGATOR = Aggregator

    def __init__(self, store: Store, run: RunRow, bundle: Bundle, config: RunConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.store, self.run, self.bundle, self.config, self._clock = store, run, bundle, config, clock
        self.paused = False  # until the coordinator is started again
        self._way_back_failed: tuple[float, StorageError] | None = None  # when, and why
        summaries = store.summaries(run.id)
        self.course = Course(config, bundle.manifest, summaries)
        self.stopped = self.course.advice.act == "stop"
        self.plans = Plans(config, run.genesis, self.course)
        self.aggregator = self.AGGREGATOR(config, bundle.manifest, self.plans, self.course, self.note)
        self._offenders = Offenders(self.note)
        self.ledger = RunLedger(store, run, bundle)
        self._intake = Intake(store, run, self.plans, self.ledger, self.note)
        self.blocks = Blocks(config, bundle.manifest, summaries, self.note, clock)
        self._open(self.ledger.rounds + 1)
        with contextlib.suppress(StorageError):  # it is tried again
            self._go_back()  # where a crash came between
        state = "finished" if self.finished else "running"
        if run.state != state:  # a crash came between, the run was prolonged, or it was paused
            store.set_state(run.id, state)

    @property
    def round(self) -> int:
        """The number of the open round."""
        return self.open.number

    @property
    def reports(self) -> dict[int, Report]:
        """Of the open round, by device."""
        return self.open.reports

    @property
    def finished(self) -> bool:
        """Whether all rounds are done, or more are not worth it."""
        return self.stopped or self.round > self.config.rounds

    @property
    def devices(self) -> int:
        """How many have ever joined."""
        return self._intake.devices

    def enrol(self, device_id: int) -> int:
        """The device's number in the run. ReportRefused where it is full."""
        return self._intake.enrol(device_id)

    def plan(
        self, device: int, precision: Precision, stage_ns: tuple[int, ...] = (), among: tuple[int, ...] = (), rank: int = 0
    ) -> WorkPlan | None:
        """What a device at the last entry is to do (`Plans.plan`); None if it has reported or the run is over."""
        if self._has_nothing_for(device):
            return None
        return self.plans.plan(self.round, self.ledger.entry, device, precision, stage_ns, among, rank)

    def work(self, device: int, precision: Precision, profile: Profile, rank: int = 0) -> WorkPlan | None:
        """The `plan` of a device that can do so much; None where there is none, for now or for it (`why_waiting`)."""
        if self._has_nothing_for(device):
            return None
        try:
            among = self.blocks.among(device, Asking(profile, precision), self.round, self.course.planner.slopes)
        except ConfigError as error:
            raise ReportRefused(str(error)) from None
        return None if among is None else self.plan(device, precision, profile.stage_ns, among, rank)

    def _has_nothing_for(self, device: int) -> bool:
        return self.finished or self.paused or device in self.reports

    def plan_id(self, device: int, precision: Precision, shape: Shape | None = None) -> int:
        """The id of a device's plan in the open round; of the usual shape, if left out."""
        return self.plans.id(self.plans.node(self.round, device, precision, shape))

    def accept(self, report: Report) -> Verdict:
        """Take a report in, durably; ReportRefused where it cannot be an answer to this run's plans."""
        answer = self.accept_all([report])[0]
        if isinstance(answer, ReportRefused):
            raise answer
        return answer

    def accept_all(self, reports: Sequence[Report]) -> list[Verdict | ReportRefused]:
        """Take reports in (`Intake.take`)."""
        return self._intake.take(reports, self.open, self.finished)

    def close_if_due(self) -> bool:
        """Commit the round if its goal, or its deadline with its minimum, is reached; before that, go back where that is still due."""
        if self._go_back():
            return True
        if self.finished or self.paused or not self.open.due:
            return False
        try:
            self.commit()
        except Conflict:
            self.follow()
        return True

    def commit(self) -> None:
        """Turn the reports into an entry, then open the next round.

        Where somebody else has appended to the ledger, nothing is committed; `follow` takes that in.
        """
        number, devices, waited = self.round, sorted(self.reports), self.open.waited
        answers = self.aggregator.answers([self.reports[device] for device in devices])
        told = {
            "round": number,
            "seconds": round(waited, 3),
            **self.aggregator.told(answers, waited),
            **self.course.told(number),
            **self.blocks.news(),
        }
        may_be_last = number == self.config.rounds or self.course.autopilot.looks
        with_digest = number % self.config.digest_every == 0 or may_be_last
        try:
            self.ledger.append(number, len(devices), self.aggregator.terms(answers), told, with_digest)
        except RangeError as error:
            self.note("refused", f"round {number} changed nothing: {error}; lower the rate")
            self.ledger.append(number, len(devices), (), told, with_digest)
        self.blocks.keep()
        self._offenders.saw(devices, answers.tempered)
        self.course.learn(told)
        self._heed(number + 1)

    def _heed(self, round_number: int) -> None:
        """Open a round, then do what the autopilot advises."""
        advice = self.course.advice
        if advice.act != "go on":
            self.note(f"autopilot: {advice.act}", advice.why)
        self.stopped, self.paused = advice.act == "stop", advice.act == "pause"
        self._open(round_number)  # first: whatever fails below, the reports of the last round are counted once
        self._go_back()
        self._keep()

    def _go_back(self) -> bool:
        """Whether the autopilot advises that, and nobody has yet: then it is done, unless it cannot be. StorageError: it is still due."""
        advice = self.course.advice
        if advice.act not in ("go back", "pause"):
            return False
        if self._way_back_failed and self._clock() < self._way_back_failed[0] + AGAIN:  # each try takes a while
            raise self._way_back_failed[1]
        try:
            self.ledger.roll_back(advice.entry)
        except Compacted as error:
            self.course.go_on()
            ending = "going on with lower rates" if advice.act == "go back" else "it stays where it is"
            self.note("autopilot", f"cannot go back: {error}; {ending}")
        except StorageError as error:
            self._way_back_failed = self._clock(), error
            raise
        else:
            self._take_in()
        return True

    def follow(self) -> bool:
        """Take in what others have appended to the ledger, as `edge-coordinator rollback` does; True if there was anything."""
        if not self.ledger.is_behind:
            return False
        self.note("followed", f"somebody else has appended to the ledger; round {self.round} is over")
        return self._take_in()

    def _take_in(self) -> bool:
        for told in self.ledger.take_in():
            self.course.learn(told)  # as a restart would
        self._open(self.ledger.rounds + 1)
        self._keep()
        return True

    def _keep(self) -> None:
        """What the store is told once an entry is there."""
        if self.finished or self.paused:
            self.store.set_state(self.run.id, "finished" if self.finished else "paused")
        self.ledger.checkpoint_when_due(self.config.keep_entries)

    def _open(self, round_number: int) -> None:
        self.open = OpenRound(round_number, self.config.round, self._clock)
        kept = self.store.reports(self.run.id, round_number)
        self.reports.update({report.device: report for report in kept if self.plans.is_answer(report)})
        stale = {report.device for report in kept} - self.reports.keys()
        if stale:
            self.note("settings changed", f"round {round_number}: {len(stale)} reports answer other settings; asked again")
            self.store.drop_reports(self.run.id, stale)

    def why_waiting(self, device: int | None = None) -> str:
        """In words, what the open round still lacks; or why it has nothing for this device."""
        if self.finished:
            return "the run is over"
        if self.paused:
            return "the run is paused: its losses rise; look at the events in 'edge-coordinator status', and start the coordinator again"
        if device in self.blocks.too_small:
            return self.blocks.too_small[device]
        return self.open.lacks

    @property
    def overdue(self) -> bool:
        """Whether the open round is past its deadline, and still lacks reports."""
        return not self.finished and self.open.overdue

    def note(self, kind: str, text: str) -> None:
        """An event for the log and the store. Nothing depends on it: where it cannot be stored, the log has it."""
        log.warning("%s: %s", kind, text)
        try:
            self.store.add_event(self.run.id, kind, text)
        except StorageError as error:
            log.error("%s", error)
