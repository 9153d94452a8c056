"""Training for a run on this device: its examples, an engine over its parameters; plans in, reports out."""

import logging
from dataclasses import replace
from functools import partial

from edge_agent import memory, plan_limits
from edge_agent.blocks import Blocks
from edge_agent.config import AgentConfig
from edge_agent.data import Dataset
from edge_agent.energy import meter
from edge_agent.engine import engine
from edge_agent.guest import Guest
from edge_agent.parking import Parking
from edge_agent.profile import Profiler
from edge_agent.rank import bearable
from edge_agent.state import State
from edge_agent.status import Status
from edge_agent.work import work
from zo.batches import Batch
from zo.bundle import Bundle
from zo.manifest import Task
from zo.memory import process
from zo.memory.engine import Device
from zo.messages import Profile, Report
from zo.plan import WorkPlan
from zo.replica import Replica
from zo.timing import random_batch

log = logging.getLogger(__name__)

EXAMPLES, TOKENS = 4, 32  # that stages are timed on


class Trainer:
    """What one run takes on a device, at the bundle to begin with; `replica` is to follow the run's ledger.

    genesis: of that ledger. profiler: of which kind. A UserError says what is wrong with the data, or that it cannot fit.
    """

    def __init__(
        self,
        bundle: Bundle,
        genesis: bytes,
        config: AgentConfig,
        state: State,
        status: Status,
        guest: Guest,
        profiler: type[Profiler] = Profiler,
    ) -> None:
        self._config, self._status, self._guest = config, status, guest
        self.dataset = Dataset.of(config, bundle)  # first: what the tokenizer took is free again for the engine
        optional = bundle.manifest.optional
        if optional:
            process.map_large()
        process.give_back()
        self._device = before = memory.here()
        parameters = bundle.parameters(config.threads, {group.id for group in bundle.manifest.groups} - optional)
        self.engine = engine(config, bundle, parameters, state)
        self.choose_rank()
        self.replica = Replica(
            parameters, genesis, bundle.initial_tensors, [group for group in bundle.manifest.groups if group.id in optional]
        )
        govern = partial(memory.govern, guest, self.engine, bundle, config, state, before)
        self.blocks = Blocks(bundle, self.engine, self.replica, state, config.refresh, govern, guest.go_on)
        if optional:
            self.blocks.refresh()
        planned = govern()
        self._device = planned.device if planned else self._device
        status.update(planned_memory_mib=planned.need.total >> 20 if planned else None)
        self._parking = Parking(self.engine, partial(self.dataset.draw, EXAMPLES), status, guest.go_on)
        self.profiler = profiler(self.engine, self._timed(bundle.manifest.task), config, planned.device if planned else Device())
        self._meter = meter()

    def choose_rank(self) -> None:
        """The rank that this device bears now: its budget may have changed since."""
        rank = bearable(self.engine.manifest, self._config, self._device)
        if rank != self.engine.rank:
            log.info("training adapters of rank %d, of %s that the bundle has", rank, ", ".join(map(str, self.engine.manifest.ranks)))
            self.engine.rank = rank
            self._status.update(rank=rank)

    def profile(self) -> Profile:
        """What this device can do now, as it found. Under `dp` nothing in it is measured on its examples."""
        parked = () if self._config.dp.clip else self._parking.groups
        return replace(self.profiler.now(), parked=parked)

    def _timed(self, task: Task) -> Batch:
        """A batch to time stages on."""
        return random_batch(task, 1, EXAMPLES, min(TOKENS, task.max_tokens)) if self._config.dp.clip else self.dataset.draw(EXAMPLES)

    def take_on(self, plan: WorkPlan) -> str:
        """Hold the blocks that a plan tries; why not, where they do not fit now. Raises as `plan_limits.check` and `Blocks.take_on`."""
        plan_limits.check(plan, self.engine.manifest, self.engine.rank)
        why = self.blocks.take_on(plan.groups)
        self._status.update(active_blocks=len(self.blocks.active))
        return why

    def report(self, plan: WorkPlan, run: int, device: int) -> Report:
        """Do a plan that was taken on. run, device: their numbers."""
        stride = self.replica.stride(plan.stride)
        report = work(plan, self.engine, self.dataset, self._guest, stride, meter=self._meter, run=run, device=device)
        loss = float(plan.grid.values(report.held_out[0])) if report.held_out else None  # type: ignore[arg-type]
        if loss is not None:
            self._status.update(held_out_loss=loss)
        self._parking.reported(loss)
        if report.dropped:
            log.warning(
                "round %d: %d of %d directions gave no finite loss, or were given up, and are dropped",
                plan.round,
                report.dropped,
                report.scalars.size,
            )
        return report
