"""The engine: losses of work plans on batches (DESIGN section 5)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from zo import ranks
from zo.batches import Batch
from zo.bundle import Bundle
from zo.engine.inputs import Inputs
from zo.engine.prefix import Prefix
from zo.engine.stages import Stages, Values, share
from zo.engine.walk import Cache, Walk
from zo.memory.engine import HEAD_ROOM
from zo.parameters import Parameters
from zo.plan import Node
from zo.terms import Term, negated

MAX_ROWS = 384  # keeps MiniLM int8 well under 200 MB resident, and more gains no time (docs/performance.md)


class Engine:
    """Losses of a bundle's model on batches, with the live values of `parameters`.

    threads: of ONNX Runtime. max_rows: most rows (branches x examples x tokens) in one run; what is more is run one after
    the other, except that a run never holds less than one example with its two branches (on each output that the levels
    below leave of it). The head's rows are few and do not count. prefix: keeps outputs of the stages below every group.
    Where `parameters` do not hold all groups, `rest` has to be called for every stage of theirs before the model is run.
    rank: adapters are cut to it, but in plans, which say to what; 0 is all of them. It may be set at any time between calls.
    BundleError where a graph cannot be loaded, ConfigError where the bundle has no such rank. Not safe for concurrent calls.
    """

    HEAD_ROOM = HEAD_ROOM

    def __init__(
        self,
        bundle: Bundle,
        parameters: Parameters,
        *,
        threads: int = 1,
        max_rows: int = MAX_ROWS,
        prefix: Prefix | None = None,
        rank: int = 0,
    ) -> None:
        self.manifest, self.parameters, self.max_rows, self._prefix = bundle.manifest, parameters, max_rows, prefix
        ranks.refuse(bundle.manifest, rank)
        self.rank = rank
        self.stages = Stages(bundle, threads, parameters.groups.keys())
        self._frozen = next(place for place, stage in enumerate(self.manifest.stages) if stage.groups)  # stages below every group
        self.inputs = Inputs(bundle.manifest, parameters, self.stages.ranks)

    @property
    def live(self) -> Values:
        """The trainable tensors, unperturbed, as they are bound."""
        return self.inputs.live(self.rank)

    @contextmanager
    def cut(self, rank: int) -> Iterator[None]:
        """Another rank meanwhile."""
        ranks.refuse(self.manifest, rank)
        kept, self.rank = self.rank, rank
        try:
            yield
        finally:
            self.rank = kept

    def activate(self, number: int) -> None:
        """Compute a stage with the live values of its groups, which `parameters` has come to hold; they are perturbed in place."""
        self.stages.open(number)
        for group in self.manifest.stages[number].groups:
            self.inputs.hold(self.parameters.groups[group])

    def deactivate(self, number: int) -> None:
        """Let go of a stage and its groups' values; it cannot be run until `rest` has given it others."""
        self.stages.close(number)
        for group in self.manifest.groups:
            if group.id in self.manifest.stages[number].groups:
                self.inputs.release(group)

    def rest(self, number: int, folder: Path) -> None:
        """Compute a stage with its inactive graph and weights, in a folder that may go afterwards (`zo.inactive`)."""
        self.stages.open(number, folder)

    def trim(self) -> None:
        """Give back memory that no run is using: branches, and the arena's, which grows to the largest run that there ever was."""
        self.inputs.trim()
        self.stages.trim(self.manifest.width, self.live)

    def in_place(self, node: Node) -> bool:
        """Whether the node perturbs a tensor without a branch axis, so that its probes run one by one."""
        groups = {group for size in node.probe_sizes for group in size.groups}
        names = {tensor.name for group in groups for tensor in self.parameters.groups[group].tensors}
        return not names <= self.inputs.branched

    def probe(self, node: Node, batch: Batch, go_on: Callable[[], None] = lambda: None) -> np.ndarray:
        """Losses of a plan: float64 [2 * scalars], + then - of every direction, lowest level first; NaN or infinite ones included.

        Where a level has others below it, each of its losses is the mean over the stage outputs that the direction below
        left at +E and at -E. `go_on` is called before each run; what it raises ends the walk, with the parameters restored
        exactly: after EnoughProbed with the losses found so far, NaN for the others.
        """
        parts = batch.split(max(1, self.max_rows // (self._copies(node) * batch.tokens)))
        with self.cut(node.rank):
            self.inputs.copy()
            caches = [Cache(part, self._below(part, node.stage), part.losses / batch.losses) for part in parts]
            return Walk(self, node, go_on).losses(caches)

    def forward(self, batch: Batch) -> tuple[float, np.ndarray]:
        """Unperturbed loss (nats, mean over rows) and logits [rows, classes]."""
        parts = batch.split(max(1, self.max_rows // batch.tokens))
        head, stop = len(self.stages) - 1, len(self.stages)
        self.inputs.refresh()  # `_below` does not where nothing below the head is trained
        values = [self.stages.run(self._below(part, head), head, stop, self.live, logits=True) for part in parts]
        loss = sum(float(each["loss"].numpy()[0]) * part.losses for each, part in zip(values, parts, strict=True)) / batch.losses
        return loss, np.concatenate([each["logits"].numpy()[0] for each in values])

    def loss(self, batch: Batch) -> float:
        """Unperturbed loss (nats, mean over rows), without keeping any logits."""
        parts = batch.split(max(1, self.max_rows // batch.tokens))
        losses = [self._below(part, len(self.stages))["loss"].numpy()[0] for part in parts]
        return sum(float(loss) * part.losses for loss, part in zip(losses, parts, strict=True)) / batch.losses

    def losses(self, batch: Batch, changes: Sequence[Sequence[Term]]) -> np.ndarray:
        """Loss (nats, mean over rows) with each of some changes of the parameters, made alone and undone exactly: float64 [changes].

        RangeError where one leaves the lattice.
        """
        parts = batch.split(max(1, self.max_rows // batch.tokens))
        head, found = len(self.stages) - 1, np.zeros(len(changes))
        still = [self._below(part, head) for part in parts]
        for place, change in enumerate(changes):
            only_head = {group for term in change for group in term.groups} <= set(self.manifest.stages[head].groups)
            self.parameters.add(change)
            try:
                for part, below in zip(parts, still, strict=True):
                    values = below if only_head else self._below(part, head)
                    values = self.stages.run(values, head, head + 1, self.live)
                    found[place] += float(values["loss"].numpy()[0]) * part.losses / batch.losses
            finally:
                self.parameters.add(negated(change))
        return found

    def head_input(self, batch: Batch) -> np.ndarray:
        """What the stage before the head gives for the unperturbed model: [rows, width]."""
        return self._below(batch, len(self.stages) - 1)[self.manifest.stages[-2].outputs[0]].numpy()[0]

    def _copies(self, root: Node) -> int:
        """Rows of a token in a run of one direction of the highest level below the head: its branches, on all that is kept for it."""
        levels = sum(level.stage < len(self.stages) - 1 for level, _ in root.levels())
        return 1 if root.clean else 2 if root.joint else 2 ** max(1, levels)

    def _below(self, batch: Batch, stop: int) -> Values:
        """The batch's fields and the outputs of the unperturbed stages below `stop`."""
        values = {name: share(array) for name, array in batch.fields.items()}
        first = self._frozen
        if first < stop:
            self.inputs.refresh()
        if self._prefix is None or not first or stop < first:  # what is kept are outputs of one stage
            return self.stages.run(values, 0, stop, self.live)
        name = self.manifest.stages[first - 1].outputs[0]
        kept = self._prefix.get(batch.keys, batch.tokens)
        if kept is None:
            values = self.stages.run(values, 0, first, self.live)
            self._prefix.put(batch, values[name].numpy())
        else:
            values[name] = share(kept)
        return self.stages.run(values, first, stop, self.live)
