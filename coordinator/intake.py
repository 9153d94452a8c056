"""Where the reports of a run arrive: what each gets for an answer, and the durable keeping of those that count."""

from collections.abc import Callable, Sequence

from coordinator.open_round import OpenRound
from coordinator.planner import ShapeRefused
from coordinator.plans import Plans, ReportRefused
from coordinator.run_ledger import RunLedger
from coordinator.store import RunRow, Store
from zo.messages import Report, Verdict
from zo.seeds import MOST_DEVICES


class Intake:
    """Of one run. devices: how many have ever joined. note: takes the kind of an event, and what it says."""

    def __init__(self, store: Store, run: RunRow, plans: Plans, ledger: RunLedger, note: Callable[[str, str], None]) -> None:
        self._store, self._run, self._plans, self._ledger, self._note = store, run, plans, ledger, note
        self.devices = store.device_count(run.id)

    def enrol(self, device_id: int) -> int:
        """The device's number in the run. ReportRefused where it is full."""
        number = self._store.enrol(self._run.id, device_id)
        if number >= MOST_DEVICES:
            raise ReportRefused(f"a run has at most {MOST_DEVICES} devices")
        self.devices = max(self.devices, number + 1)
        return number

    def take(self, reports: Sequence[Report], into: OpenRound, is_over: bool) -> list[Verdict | ReportRefused]:
        """Take reports into a round, in this order, durably and with one sync; an answer for each. StorageError: none was taken in.

        is_over: the run, so that all of them are late.
        """
        answers = [self._judged(report, into, is_over) for report in reports]
        kept = [place for place, answer in enumerate(answers) if answer is Verdict.ACCEPTED]
        fresh = self._store.add_reports([reports[place] for place in kept]) if kept else []
        for place, is_fresh in zip(kept, fresh, strict=True):
            if is_fresh:
                into.reports[reports[place].device] = reports[place]
            else:
                answers[place] = Verdict.DUPLICATE
        return answers

    def _judged(self, report: Report, into: OpenRound, is_over: bool) -> Verdict | ReportRefused:
        """The answer to a report, were it the first of its device in this round."""
        try:
            return self._verdict(report, into, is_over)
        except ReportRefused as error:
            return error

    def _verdict(self, report: Report, into: OpenRound, is_over: bool) -> Verdict:
        if not 0 <= report.device < self.devices:
            raise ReportRefused(f"device {report.device} has not joined this run")
        if report.round > into.number:
            return Verdict.UNKNOWN_ROUND
        if is_over or report.round < into.number:
            return Verdict.LATE
        try:
            root = self._plans.answered(report)
        except ShapeRefused:
            return Verdict.LATE
        if report.plan != self._plans.id(root):
            return Verdict.LATE
        self._plans.check(report, root)
        if report.digest is not None and report.digest != self._ledger.digest(report.shape.groups if report.shape else ()):
            if report.device not in into.diverged:
                into.diverged.add(report.device)
                where = f"at entry {self._ledger.entry}; it was told to rebuild them"
                self._note("diverged", f"device {report.device} holds other parameters {where}")
            return Verdict.DIVERGED
        return Verdict.ACCEPTED
