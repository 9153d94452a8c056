"""The plans that the devices of a run get, and which reports answer them."""

import zlib

import numpy as np

from coordinator.config import RunConfig
from coordinator.course import Course
from coordinator.planner import ShapeRefused
from zo import wire
from zo.errors import ConfigError
from zo.estimators import Grid
from zo.manifest import Precision
from zo.messages import Report
from zo.plan import Node, Shape, WorkPlan


class ReportRefused(ValueError):
    """A report that cannot be one of this run's."""


class Plans:
    """What is asked of a device in a round. Whatever the course of the run by then, the plan that a report answers can be made again."""

    def __init__(self, config: RunConfig, genesis: bytes, course: Course) -> None:
        self._config, self._course = config, course
        self.grid = Grid(config.log2_levels, config.clip)
        self._id_start = zlib.crc32(genesis + wire.encode(self.grid))

    def plan(
        self,
        round_number: int,
        entry: int,
        device: int,
        precision: Precision,
        stage_ns: tuple[int, ...] = (),
        among: tuple[int, ...] = (),
        rank: int = 0,
    ) -> WorkPlan:
        """For a device that stands at that entry, with that base. ReportRefused where the bundle or the run has nothing for it.

        stage_ns: what its stages cost it, as far as it has said. among: the groups that it tries, all if left out. rank: of the
        adapters that it can bear; 0 is the largest. It trains a prefix of them, or all (coordinator.truncation).
        """
        config, autopilot = self._config, self._course.autopilot
        try:
            shape = self._course.planner.asked(round_number, device, precision, stage_ns, among, rank)
        except ConfigError as error:
            raise ReportRefused(str(error)) from None
        root = self.node(round_number, device, precision, shape)
        return WorkPlan(
            round=round_number,
            entry=entry,
            root=root,
            examples=config.probe.examples,
            measure_held_out=self._course.looks(round_number),
            stride=autopilot.stride,
            want_digest=round_number % config.digest_every == 0,
            grid=self.grid,
            id=self.id(root),
            groups=shape.groups,
        )

    def node(self, round_number: int, device: int, precision: Precision, shape: Shape | None = None) -> Node:
        """The directions of a device in a round: seeds of its own, next to those of its neighbours; probe sizes of its base.

        shape: the run's usual one if left out. ReportRefused where the bundle has no such base or stages; ShapeRefused where the
        run does not ask for that, which it may have done with other settings.
        """
        try:
            return self._course.planner.node(round_number, device, precision, shape)
        except ShapeRefused:
            raise
        except ConfigError as error:
            raise ReportRefused(str(error)) from None

    def id(self, root: Node) -> int:
        """32 bits that stand for all that gives the scalars of a report their meaning."""
        return zlib.crc32(wire.encode(root), self._id_start)

    def answered(self, report: Report) -> Node:
        """The tree that a report answers, or seems to. Raises as `node`."""
        return self.node(report.round, report.device, report.precision, report.shape)

    def is_answer(self, report: Report) -> bool:
        """Whether a report is of a plan of today's settings."""
        try:
            return report.plan == self.id(self.answered(report))
        except (ReportRefused, ShapeRefused):
            return False

    def check(self, report: Report, root: Node) -> None:
        """ReportRefused where no device that was asked for this tree can have made the report."""
        if report.scalars.shape != (root.scalars,):
            raise ReportRefused(f"a report of this plan holds {root.scalars} scalars, not {report.scalars.size}")
        if np.abs(report.scalars).max(initial=0) > self.grid.limit:
            raise ReportRefused(f"a scalar is beyond the clip of {self.grid.limit}")
        if not 1 <= report.examples <= self._config.probe.examples:
            raise ReportRefused(f"{report.examples} examples are not between 1 and {self._config.probe.examples}")
        if len(report.held_out) > (most := 1 + 2 * len(self._course.rates.by_kind)):
            raise ReportRefused(f"{len(report.held_out)} held-out losses are more than the {most} that are ever asked for")
        if min(report.held_out, default=0) < 0:
            raise ReportRefused("a held-out loss is below 0, as none can be")
