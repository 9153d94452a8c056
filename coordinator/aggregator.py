"""What the reports of a round come to: the terms of its entry, and what is told of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.config import RunConfig
from coordinator.course import Course
from coordinator.plans import Plans
from coordinator.summary import summary
from zo.aggregation import aggregate
from zo.manifest import Manifest
from zo.messages import Report
from zo.plan import Node
from zo.tempering import tempered
from zo.terms import Term


@dataclass(frozen=True)
class Answers:
    """Reports of a round, none much larger than the others, and the trees that they answer. tempered: devices that said more than that."""

    reports: Sequence[Report]
    nodes: Sequence[Node]
    tempered: Sequence[int]


class Aggregator:
    """From reports to terms, by the rates that the course of the run has come to. note: for what a person should know."""

    def __init__(self, config: RunConfig, manifest: Manifest, plans: Plans, course: Course, note: Callable[[str, str], None]) -> None:
        self._config, self._manifest, self._plans, self._course, self._note = config, manifest, plans, course, note

    def answers(self, reports: Sequence[Report]) -> Answers:
        """The reports of a round, in this order, as they count."""
        nodes = [self._plans.answered(report) for report in reports]
        made, too_large = tempered(reports, nodes, self._course.rates, self._manifest)
        return Answers(made, nodes, too_large)

    def terms(self, answers: Answers) -> tuple[Term, ...]:
        """What they come to; nothing where that cannot be."""
        number = answers.reports[0].round
        try:
            return aggregate(
                answers.reports,
                answers.nodes,
                self._course.rates,
                self._course.factors(number),
                self._manifest,
                self._plans.grid,
                self._config.aggregation,
                self._config.seeds.shared,
            )
        except ValueError as error:
            self._note("refused", f"round {number} changed nothing: {error}")
            return ()

    def told(self, answers: Answers, waited: float) -> dict[str, Any]:
        """What a round's summary keeps of them. waited: seconds that it was open."""
        slopes, looked = self._course.planner.slopes, self._course.looks(answers.reports[0].round)
        found = summary(answers.reports, answers.nodes, self._manifest, self._plans.grid, self._config.aggregation, slopes, waited, looked)
        return found | ({"tempered": list(answers.tempered)} if answers.tempered else {})
