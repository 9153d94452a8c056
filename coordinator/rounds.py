"""Rounds of one run: who is asked for what, when a round closes, and its commit (DESIGN section 7)."""

import logging
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coordinator import history, replay
from coordinator.allocation import Asking
from coordinator.autopilot import Advice, Autopilot
from coordinator.blocks import Blocks
from coordinator.config import RunConfig
from coordinator.planner import Planner, ShapeRefused
from coordinator.store import Compacted, Conflict, RunRow, Store
from coordinator.summary import summary
from zo import aggregation, wire
from zo.bundle import Bundle
from zo.checkpoint import signs
from zo.errors import ConfigError, StorageError
from zo.estimators import Grid
from zo.lattice import RangeError
from zo.ledger import Entry
from zo.manifest import Precision
from zo.messages import Profile, Report, Verdict
from zo.parameters import Parameters
from zo.plan import Node, Shape, WorkPlan
from zo.rates import Rates, decay
from zo.seeds import MOST_DEVICES
from zo.tempering import TEMPER, tempered
from zo.terms import Term, negated

log = logging.getLogger(__name__)

CHECKPOINT_EVERY = 64  # entries: what a restart has to replay at most


class ReportRefused(ValueError):
    """A report that cannot be one of this run's."""


class Rounds:
    """The state of a run between its entries: one open round at a time.

    All that matters is in the store; a new object over the same store goes on where the last one stopped. `clock`
    gives seconds; `load_report`, `close_if_due` and `commit` never wait.
    """

    def __init__(self, store: Store, run: RunRow, bundle: Bundle, config: RunConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.store, self.run, self.bundle, self.config, self._clock = store, run, bundle, config, clock
        self.grid = Grid(config.log2_levels, config.clip)
        self.rates = Rates.of(config.probe, config.rate, bundle.manifest)
        self._named = set[int]()  # devices whose reports were too large
        self.paused = False  # until the coordinator is started again
        summaries = store.summaries(run.id)
        self.learn(summaries)
        self._id_start = zlib.crc32(run.genesis + wire.encode(self.grid))
        self.replica = replay.replica(store, run, bundle)
        self._digests: tuple[int, dict[tuple[int, ...], bytes]] = (-1, {})
        self.devices = store.device_count(run.id)
        self.blocks = Blocks(config, bundle.manifest, summaries, self.note, clock)
        self.round = 1 + (store.headers(run.id, self.entry - 1)[-1][0].round if self.entry else 0)
        self._open()
        state = "finished" if self.finished else "running"
        if run.state != state:  # a crash came between, the run was prolonged, or it was paused
            store.set_state(run.id, state)

    def learn(self, summaries: Sequence[dict[str, Any]]) -> None:
        """Know what is to be known after entries with these summaries, and nothing else."""
        config = self.config
        self.planner = Planner(config, self.bundle.manifest, summaries)
        kinds = tuple(self.rates.by_kind)
        self.autopilot = Autopilot(kinds, config.rate.paced(kinds), config.held_out_every, config.least_gain)
        advice = [self.autopilot.learn(told) for told in summaries]
        self.stopped = bool(advice) and advice[-1].act == "stop"

    @property
    def entry(self) -> int:
        """The last entry."""
        return self.replica.entry

    @property
    def parameters(self) -> Parameters:
        """The fleet's parameters at the last entry."""
        return self.replica.parameters

    def digest(self, among: tuple[int, ...] = ()) -> bytes:
        """Of these groups of the parameters at the last entry, or of all; computed once an entry."""
        if self._digests[0] != self.entry:
            self._digests = (self.entry, {})
        known = self._digests[1]
        if among not in known:
            known[among] = self.parameters.digest(among)
        return known[among]

    @property
    def finished(self) -> bool:
        """Whether all rounds are done, or more are not worth it."""
        return self.stopped or self.round > self.config.rounds

    def enrol(self, device_id: int) -> int:
        """The device's number in the run."""
        number = self.store.enrol(self.run.id, device_id)
        if number >= MOST_DEVICES:
            raise ReportRefused(f"a run has at most {MOST_DEVICES} devices")
        self.devices = max(self.devices, number + 1)
        return number

    def plan(
        self, device: int, precision: Precision, stage_ns: tuple[int, ...] = (), among: tuple[int, ...] = (), rank: int = 0
    ) -> WorkPlan | None:
        """What a device (at the last entry, with that base) is to do; None if it has reported or the run is over.

        stage_ns: what its stages cost it, as far as it has said. among: the groups that it tries, all if left out. rank: of the
        adapters that it can bear; 0 is the largest. It trains a prefix of them, or all (coordinator.truncation).
        """
        if self.finished or self.paused or device in self.reports:
            return None
        try:
            shape = self.planner.asked(self.round, device, precision, stage_ns, among, rank)
        except ConfigError as error:
            raise ReportRefused(str(error)) from None
        root = self.node(self.round, device, precision, shape)
        return WorkPlan(
            round=self.round,
            entry=self.entry,
            root=root,
            examples=self.config.probe.examples,
            measure_held_out=self.autopilot.looks or (self.config.held_out_every > 0 and self.round == self.config.rounds),
            stride=self.autopilot.stride,
            want_digest=self.round % self.config.digest_every == 0,
            grid=self.grid,
            id=self._plan_id(root),
            groups=shape.groups,
        )

    def work(self, device: int, precision: Precision, profile: Profile, rank: int = 0) -> WorkPlan | None:
        """The `plan` of a device that can do so much; None where there is none, for now or for it (`why_waiting`)."""
        if self.finished or self.paused or device in self.reports:
            return None
        try:
            among = self.blocks.among(device, Asking(profile, precision), self.round)
        except ConfigError as error:
            raise ReportRefused(str(error)) from None
        return None if among is None else self.plan(device, precision, profile.stage_ns, among, rank)

    def plan_id(self, device: int, precision: Precision, shape: Shape | None = None) -> int:
        """32 bits that stand for all that gives the scalars of a device in the open round their meaning."""
        return self._plan_id(self.node(self.round, device, precision, shape))

    def _plan_id(self, root: Node) -> int:
        return zlib.crc32(wire.encode(root), self._id_start)

    def node(self, round_number: int, device: int, precision: Precision, shape: Shape | None = None) -> Node:
        """The directions of a device in a round: seeds of its own, next to those of its neighbours; probe sizes of its base.

        shape: the run's usual one if left out. ReportRefused where the bundle has no such base or stages; ShapeRefused where the
        run does not ask for that, which it may have done with other settings.
        """
        try:
            return self.planner.node(round_number, device, precision, shape)
        except ShapeRefused:
            raise
        except ConfigError as error:
            raise ReportRefused(str(error)) from None

    def _node_of(self, report: Report) -> Node:
        """The plan that a report answers, or seems to."""
        return self.node(report.round, report.device, report.precision, report.shape)

    def accept(self, report: Report) -> Verdict:
        """Take a report in, durably; ReportRefused where it cannot be an answer to this run's plans."""
        answer = self.accept_all([report])[0]
        if isinstance(answer, ReportRefused):
            raise answer
        return answer

    def accept_all(self, reports: Sequence[Report]) -> list[Verdict | ReportRefused]:
        """Take reports in, in this order, durably and with one sync; an answer for each. StorageError: none was taken in."""
        answers = [self._judged(report) for report in reports]
        kept = [place for place, answer in enumerate(answers) if answer is Verdict.ACCEPTED]
        fresh = self.store.add_reports([reports[place] for place in kept]) if kept else []
        for place, is_fresh in zip(kept, fresh, strict=True):
            if is_fresh:
                self.reports[reports[place].device] = reports[place]
            else:
                answers[place] = Verdict.DUPLICATE
        return answers

    def _judged(self, report: Report) -> Verdict | ReportRefused:
        """The answer to a report, were it the first of its device in this round."""
        try:
            return self._verdict(report)
        except ReportRefused as error:
            return error

    def _verdict(self, report: Report) -> Verdict:
        if not 0 <= report.device < self.devices:
            raise ReportRefused(f"device {report.device} has not joined this run")
        try:
            root = self._node_of(report)
        except ShapeRefused:
            return Verdict.LATE
        if report.round > self.round:
            return Verdict.UNKNOWN_ROUND
        if self.finished or report.round != self.round or report.plan != self._plan_id(root):
            return Verdict.LATE
        if report.scalars.shape != (root.scalars,):
            raise ReportRefused(f"a report of this plan holds {root.scalars} scalars, not {report.scalars.size}")
        if np.abs(report.scalars).max(initial=0) > self.grid.limit:
            raise ReportRefused(f"a scalar is beyond the clip of {self.grid.limit}")
        if not 1 <= report.examples <= self.config.probe.examples:
            raise ReportRefused(f"{report.examples} examples are not between 1 and {self.config.probe.examples}")
        if report.digest is not None and report.digest != self.digest(report.shape.groups if report.shape else ()):
            self.note("diverged", f"device {report.device} holds other parameters at entry {self.entry}; it was told to rebuild them")
            return Verdict.DIVERGED
        return Verdict.ACCEPTED

    def close_if_due(self) -> bool:
        """Commit the round if its goal, or its deadline with its minimum, is reached."""
        limits, count = self.config.round, len(self.reports)
        if self.finished or self.paused or not (count >= limits.goal or (count >= limits.minimum and self._waited() >= limits.deadline)):
            return False
        try:
            self.commit()
        except Conflict:
            self.follow()
        return True

    def commit(self) -> None:
        """Turn the reports into an entry: parameters first (they may refuse), then the store, then the next round.

        Where somebody else has appended to the ledger, nothing is committed; `follow` takes that in.
        """
        reports, nodes = self._tempered([self.reports[device] for device in sorted(self.reports)])
        terms = self._terms(reports, nodes)
        try:
            self.parameters.add(terms)
        except RangeError as error:
            self.note("refused", f"round {self.round} changed nothing: {error}; lower the rate")
            terms = ()
        may_be_last = self.round == self.config.rounds or self.autopilot.looks
        due = self.round % self.config.digest_every == 0 or may_be_last
        digest = self.parameters.digest() if due else None
        entry = Entry(self.entry + 1, self.round, len(reports), terms, digest)
        told = self._summary(reports, nodes) | ({"digest": digest.hex()} if digest else {})
        try:
            self.store.commit(self.run.id, entry, self.replica.head, signs(terms, self.replica.sizes), told)
        except BaseException:
            self.parameters.add(negated(terms))
            raise
        self.replica.advance(entry)
        self.planner.learn(told["slopes"])
        self.blocks.keep()
        self._heed(self.autopilot.learn(told), entry.round + 1)

    def _tempered(self, reports: list[Report]) -> tuple[list[Report], list[Node]]:
        """The reports, none much larger than the others, and the plans that they answer; whoever sent a larger one is named once."""
        nodes = [self._node_of(report) for report in reports]
        made, too_large = tempered(reports, nodes, self.rates, self.bundle.manifest)
        for device in set(too_large) - self._named:
            self.note("tempered", f"device {device} reports slopes of more than {TEMPER:g} times the others'; they count as so much")
        self._named.update(too_large)
        return made, nodes

    def _heed(self, advice: Advice, round_number: int) -> None:
        """Do what the autopilot advises, then open a round."""
        if advice.act != "go on":
            self.note(f"autopilot: {advice.act}", advice.why)
        self.stopped, self.paused = advice.act == "stop", advice.act == "pause"
        self._next(round_number)
        if advice.act in ("go back", "pause"):
            back_to = self.store.headers(self.run.id, advice.entry - 1)[0][0].round if advice.entry else 0
            try:
                history.rollback(self.store, self.run, self.bundle, back_to)
            except Compacted as error:
                self.note("autopilot", f"cannot go back: {error}; going on with lower rates")
            self._take_in()

    def follow(self) -> bool:
        """Take in what others have appended to the ledger, as `edge-coordinator rollback` does; True if there was anything."""
        if self.store.head(self.run.id) == (self.entry, self.replica.head):
            return False
        self.note("followed", f"somebody else has appended to the ledger; round {self.round} is over")
        return self._take_in()

    def _take_in(self) -> bool:
        entries = self.store.entries(self.run.id, self.entry)
        if not entries:
            raise StorageError(f"the store's entry {self.entry} is not the one that was committed; start the coordinator again")
        replay.move(self.replica, self.store, self.run, entries[-1].number)
        for told in self.store.summaries(self.run.id, len(entries)):
            self.planner.learn(told.get("slopes", {}))  # as a restart would
            self.autopilot.learn(told)
        self._next(entries[-1].round + 1)
        return True

    def _next(self, round_number: int) -> None:
        """Open a round."""
        self.round = round_number
        self._open()  # first: whatever fails below, the reports of the last round are counted once
        if self.finished or self.paused:
            self.store.set_state(self.run.id, "finished" if self.finished else "paused")
        if self.entry - max(self.store.checkpoints(self.run.id), default=0) >= CHECKPOINT_EVERY:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Keep the state here, so that a restart need not replay what came before."""
        self.store.add_checkpoint(self.run.id, self.replica.checkpoint())
        replay.drop_checkpoints(self.store, self.run.id, self.config.keep_entries)

    def why_waiting(self, device: int | None = None) -> str:
        """In words, what the open round still lacks; or why it has nothing for this device."""
        limits, count = self.config.round, len(self.reports)
        if self.finished:
            return "the run is over"
        if self.paused:
            return "the run is paused: its losses rise; look at the events in 'edge-coordinator status', and start the coordinator again"
        if device in self.blocks.too_small:
            return self.blocks.too_small[device]
        left = limits.deadline - self._waited()
        if left > 0:
            return f"round {self.round} has {count} of {limits.goal} reports; {limits.minimum} are enough in {left:.0f} s"
        return f"round {self.round} has {count} reports and needs {limits.minimum}; its deadline has passed"

    @property
    def overdue(self) -> bool:
        """Whether the open round is past its deadline, and still lacks reports."""
        limits = self.config.round
        return not self.finished and len(self.reports) < limits.minimum and self._waited() > limits.deadline

    def note(self, kind: str, text: str) -> None:
        """An event for the log and the store."""
        log.warning("%s: %s", kind, text)
        self.store.add_event(self.run.id, kind, text)

    def _open(self) -> None:
        self.reports: dict[int, Report] = {}
        kept = self.store.reports(self.run.id, self.round)
        self.reports = {report.device: report for report in kept if self._answers(report)}
        stale = {report.device for report in kept} - self.reports.keys()
        if stale:
            self.note("settings changed", f"round {self.round}: {len(stale)} reports answer other settings; asked again")
            self.store.drop_reports(self.run.id, stale)
        self._opened = self._clock()

    def _answers(self, report: Report) -> bool:
        """Whether a report that was kept is of a plan of today's settings."""
        try:
            return report.plan == self._plan_id(self._node_of(report))
        except (ReportRefused, ShapeRefused):
            return False

    def _waited(self) -> float:
        return self._clock() - self._opened

    def terms(self, reports: list[Report]) -> tuple[Term, ...]:
        """What the reports of a round, by device, come to; nothing where that cannot be."""
        return self._terms(*self._tempered(reports))

    def _terms(self, reports: list[Report], nodes: list[Node]) -> tuple[Term, ...]:
        number = reports[0].round
        try:
            return aggregation.aggregate(
                reports,
                nodes,
                self.planner.rates(self.rates),
                self._factors(number),
                self.bundle.manifest,
                self.grid,
                self.config.aggregation,
                self.config.seeds.shared,
            )
        except ValueError as error:
            self.note("refused", f"round {number} changed nothing: {error}")
            return ()

    def _factors(self, round_number: int) -> dict[str, float]:
        """What the rates are multiplied with in a round, by kind."""
        share = decay(self.config.rate, round_number, self.config.rounds)
        return {kind: share * factor for kind, factor in self.autopilot.pace.factors.items()}

    def _summary(self, reports: list[Report], nodes: list[Node]) -> dict[str, Any]:
        """What the store keeps of a round beside its entry."""
        return {
            "round": self.round,
            "seconds": round(self._waited(), 3),
            **summary(reports, nodes, self.bundle.manifest, self.grid, self.config.aggregation),
            "factors": self._factors(self.round),
            "autopilot": self.autopilot.told,
            **self.blocks.news(),
            **({} if self.autopilot.best_entry is None else {"best_entry": self.autopilot.best_entry}),
        }
