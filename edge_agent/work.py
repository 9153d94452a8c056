"""Working a plan: draw a batch, probe, and turn losses into a report."""

import time
from collections.abc import Sequence

import numpy as np

from edge_agent.data import Dataset
from edge_agent.energy import Meter
from edge_agent.guest import Guest
from zo.engine import Engine
from zo.estimators import scalars
from zo.memory import process
from zo.messages import Report, Spent
from zo.plan import WorkPlan
from zo.stride import losses
from zo.terms import Term


class Account:
    """What a stretch of work costs. meter: of energy, where there is one."""

    def __init__(self, meter: Meter | None) -> None:
        self._meter, self._began = meter, time.monotonic()
        if meter:
            meter.begin()

    def spent(self) -> Spent:
        """So far."""
        seconds = time.monotonic() - self._began
        joules, source = (self._meter.joules(), self._meter.source) if self._meter else (0.0, "none")
        return Spent(process.peak() >> 20, _thousandths(seconds), _thousandths(joules), source)


def work(
    plan: WorkPlan,
    engine: Engine,
    dataset: Dataset,
    guest: Guest,
    stride: Sequence[Term] = (),
    *,
    run: int = 0,
    device: int = 0,
    meter: Meter | None = None,
) -> Report:
    """The report of a plan. What `guest` raises between probes ends the work with the parameters restored.

    Where a probe is given up for want of memory, the directions that it had come to count, the others are reported as dropped; where
    there are none, it is tried again. stride: what the plan's last entries did, where that is known. run, device: their numbers in the
    fleet; 0 where there is none.
    """
    account = Account(meter)
    batch, probed = dataset.draw(plan.examples), np.full(1, np.nan)
    while not np.isfinite(probed).any():
        guest.begin_probe()
        probed = engine.probe(plan.root, batch, guest.go_on_probing)
        if not guest.abandoned:
            break
    found, dropped = scalars(probed, plan.grid)
    held_out = losses(engine, dataset.held_out_batches(plan.examples), stride, guest.go_on) if plan.measure_held_out else []
    return Report(
        run=run,
        device=device,
        round=plan.round,
        scalars=found,
        examples=batch.examples,
        precision=engine.manifest.precision,
        dropped=dropped,
        held_out=tuple(map(plan.grid.nearest, held_out)),
        spent=account.spent(),
        digest=engine.parameters.digest(plan.groups) if plan.want_digest else None,
        plan=plan.id,
        shape=plan.shape,
    )


def _thousandths(value: float) -> int:
    return min(max(0, round(value * 1000)), 2**32 - 1)
