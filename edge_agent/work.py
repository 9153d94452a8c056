"""Working a plan: draw a batch, probe, and turn losses into a report."""

import time
from collections.abc import Callable, Sequence

from edge_agent.data import Dataset
from edge_agent.status import peak_memory_mib
from zo.engine import Engine
from zo.estimators import Grid, scalars
from zo.messages import Report, Spent
from zo.plan import WorkPlan
from zo.stride import losses
from zo.terms import Term


def work(
    plan: WorkPlan,
    engine: Engine,
    dataset: Dataset,
    go_on: Callable[[], None],
    stride: Sequence[Term] = (),
    *,
    run: int = 0,
    device: int = 0,
) -> Report:
    """The report of a plan. `go_on` is called between probes; what it raises ends the work with the parameters restored.

    stride: what the plan's last entries did, where that is known. run, device: their numbers in the fleet; 0 where there is none.
    """
    began, cpu = time.monotonic(), time.process_time()
    batch = dataset.draw(plan.examples)
    found, dropped = scalars(engine.probe(plan.root, batch, go_on), plan.grid)
    held_out = losses(engine, dataset.held_out_batches(plan.examples), stride, go_on) if plan.measure_held_out else []
    return Report(
        run=run,
        device=device,
        round=plan.round,
        scalars=found,
        examples=batch.examples,
        precision=engine.manifest.precision,
        dropped=dropped,
        held_out=tuple(_on_grid(each, plan.grid) for each in held_out),
        spent=Spent(peak_memory_mib(), _milliseconds(time.monotonic() - began), _milliseconds(time.process_time() - cpu)),
        digest=engine.parameters.digest() if plan.want_digest else None,
        plan=plan.id,
        shape=plan.root.shape,
    )


def _on_grid(value: float, grid: Grid) -> int:
    return round(value * 2**grid.log2_levels)


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1000), 2**32 - 1)
