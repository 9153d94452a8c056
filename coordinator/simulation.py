"""A fleet in one process: the real rounds, plans, engine and ledger, without sockets, files or other processes.

All devices share one engine over the coordinator's own parameters, which every probe restores exactly.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coordinator.config import RunConfig
from coordinator.memory_store import MemoryStore
from coordinator.replay import lowest_entry
from coordinator.rounds import Rounds
from zo import evaluation
from zo.batches import Batch, encode
from zo.bundle import Bundle
from zo.engine import Engine
from zo.estimators import scalars
from zo.evaluation import Rows
from zo.examples import Example
from zo.manifest import Precision
from zo.messages import Profile, Report, Spent
from zo.plan import WorkPlan
from zo.sampling import Sampler, hold_out, measuring_batches
from zo.stride import losses
from zo.timing import stage_ns

MAX_ROWS = 1024  # there is one engine, not one a device, so memory is not short
HELD_OUT = (0.1, 16)  # share of the examples, and most, that a device measures with


@dataclass(frozen=True)
class Point:
    """What a fleet has come to. probes: of the whole model, by all devices. seconds: of their work, one after the other.

    metrics: as `zo.evaluation.compared` gives them.
    """

    round: int
    probes: int
    seconds: float
    metrics: dict[str, Any]


class Simulation:
    """Devices with these private examples, in a run with these settings. seed: of their batches.

    profiles: what they tell of themselves; all of them the times measured here, if left out. ranks: of the adapters that each bears;
    the largest, if left out. balanced: whether they draw, and measure, their classes equally often, as agents do unless told otherwise.
    """

    ROUNDS = Rounds

    def __init__(
        self,
        bundle: Bundle,
        config: RunConfig,
        shares: Sequence[Sequence[Example]],
        seed: int,
        profiles: Sequence[Profile] = (),
        ranks: Sequence[int] = (),
        balanced: bool = True,
    ) -> None:
        store, task, tokenizer = MemoryStore(), bundle.manifest.task, bundle.tokenizer()
        self.rounds = self.ROUNDS(store, store.open_run(config.name, bundle.folder, bundle.digest), bundle, config)
        self.engine = Engine(bundle, self.rounds.ledger.parameters, max_rows=MAX_ROWS)
        self._ranks = tuple(ranks) or (0,) * len(shares)
        self._samplers, self._held_out = [], []
        for device, examples in enumerate(shares):
            self.rounds.enrol(device)
            held, rows = hold_out([row for example in examples for row in encode(example, task, tokenizer)], *HELD_OUT)
            self._samplers.append(Sampler(rows, task, balanced, np.random.default_rng([seed, device])))
            self._held_out.append(measuring_batches(held, task, balanced, config.probe.examples))
        self._profiles = profiles or [Profile(stage_ns=stage_ns(self.engine, self.draw()))] * len(shares)
        self._seconds, self._probes = 0.0, 0
        self._seen: dict[int, Rows] = {}

    def run(self, validation: Sequence[Batch], looks: Collection[int], stop: Callable[[Point], bool] = lambda _: False) -> Iterator[Point]:
        """Where the fleet is at the start, after the rounds of `looks` and the last, until the run or `stop` says that it is over."""
        point = self._look(validation)
        yield point
        while not (self.over or stop(point)):
            number = self.rounds.round
            self.step()
            if number in looks or self.over:
                point = self._look(validation)
                yield point

    @property
    def over(self) -> bool:
        """Whether the run is finished, or paused."""
        return self.rounds.finished or self.rounds.paused

    def draw(self) -> Batch:
        """A batch of the first device."""
        return self._samplers[0].draw(self.rounds.config.probe.examples)

    def step(self) -> None:
        """One round."""
        for device, sampler in enumerate(self._samplers):
            self.rounds.accept(self._work(device, sampler))
        self.rounds.close_if_due()

    def work(self, device: int, precision: Precision) -> WorkPlan | None:
        """The plan that a device gets."""
        return self.rounds.work(device, precision, self._profiles[device], self._ranks[device])

    def _work(self, device: int, sampler: Sampler) -> Report:
        precision = self.engine.manifest.precision
        rank = self._ranks[device]
        plan = self.work(device, precision)
        assert plan is not None, "a device has reported twice"
        batch = sampler.draw(plan.examples)
        began = time.perf_counter()
        found, dropped = scalars(self.engine.probe(plan.root, batch), plan.grid)
        with self.engine.cut(rank):
            held_out = self._measured(device, plan) if plan.measure_held_out else ()
        taken = time.perf_counter() - began
        self._seconds += taken
        self._probes += 2 * plan.root.count
        run, digest = self.rounds.run.id, self.rounds.ledger.digest(plan.groups) if plan.want_digest else None
        return Report(
            run,
            device,
            plan.round,
            found,
            batch.examples,
            precision,
            dropped,
            held_out,
            Spent(0, round(1000 * taken)),
            digest,
            plan.id,
            plan.shape,
        )

    def _measured(self, device: int, plan: WorkPlan) -> tuple[int, ...]:
        found = losses(self.engine, self._held_out[device], self.rounds.ledger.replica.stride(plan.stride))
        return tuple(map(plan.grid.nearest, found))

    def _look(self, validation: Sequence[Batch]) -> Point:
        store, run, entry = self.rounds.store, self.rounds.run.id, self.rounds.ledger.entry
        found, lowest = evaluation.answers(self.engine, validation), lowest_entry(store.evaluations(run, "validation"))
        start, low = self._seen.get(0, found), self._seen.get(lowest, found)
        self._seen = {0: start, lowest: low, entry: found}
        metrics = evaluation.compared(start, (lowest, low), found, self.engine.manifest.task)
        store.add_evaluation(run, entry, "validation", metrics)
        return Point(entry, self._probes, self._seconds, metrics)
