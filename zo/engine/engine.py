"""The engine: losses of work plans on batches (DESIGN section 5)."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from zo.batches import Batch
from zo.bundle import Bundle
from zo.engine.prefix import Prefix
from zo.engine.stages import Stages, Values, share
from zo.parameters import Parameters
from zo.plan import Node
from zo.terms import Term, negated

MAX_ROWS = 384  # keeps MiniLM int8 well under 200 MB resident, and more gains no time (docs/performance.md)


class Engine:
    """Losses of a bundle's model on batches, with the live values of `parameters`.

    threads: of ONNX Runtime. max_rows: most rows (branches x examples x tokens) in one run; what is more is run one after
    the other, except that a run never holds less than one example with its two branches. prefix: keeps outputs of the
    stages below every group. BundleError where a graph cannot be loaded. Not safe for concurrent calls.
    """

    def __init__(
        self, bundle: Bundle, parameters: Parameters, *, threads: int = 1, max_rows: int = MAX_ROWS, prefix: Prefix | None = None
    ) -> None:
        self.manifest, self.parameters, self.max_rows, self._prefix = bundle.manifest, parameters, max_rows, prefix
        self._stages = Stages(bundle, threads)
        self._frozen = next(place for place, stage in enumerate(self.manifest.stages) if stage.groups)  # stages below every group
        tensors = {tensor.name: tensor for group in self.manifest.groups for tensor in group.tensors}
        self.branched = {name for name, tensor in tensors.items() if self._stages.ranks[name] > len(tensor.shape)}
        self._live = {name: share(parameters.tensor(name)[None] if name in self.branched else parameters.tensor(name)) for name in tensors}
        self._buffers: dict[tuple[str, int], tuple[np.ndarray, Any]] = {}

    def in_place(self, node: Node) -> bool:
        """Whether the node perturbs a tensor without a branch axis, so that its probes run one by one."""
        groups = {group for size in node.probe_sizes for group in size.groups}
        names = {tensor.name for group in groups for tensor in self.parameters.groups[group].tensors}
        return not names <= self.branched

    def probe(self, node: Node, batch: Batch, go_on: Callable[[], None] = lambda: None) -> np.ndarray:
        """Losses of every direction of a plan without children, +E then -E: float64 [2 * count], NaN or infinite ones included.

        `go_on` is called before each run; what it raises ends the walk, with the parameters restored exactly.
        """
        if node.children:
            raise ValueError("work plans of more than one level are not known to this version")
        walk = self._walk_in_place if self.in_place(node) else self._walk_branches
        parts = batch.split(max(1, self.max_rows // (2 * batch.tokens)))
        below = [self._below(part, node.stage) for part in parts]
        weights = np.array([part.losses for part in parts]) / batch.losses
        largest = parts[-1]
        return np.concatenate([np.empty(0), *(weights @ losses for losses in walk(node, below, largest, go_on))])

    def forward(self, batch: Batch) -> tuple[float, np.ndarray]:
        """Unperturbed loss (nats, mean over rows) and logits [rows, classes]."""
        parts = batch.split(max(1, self.max_rows // batch.tokens))
        head, stop = len(self._stages) - 1, len(self._stages)
        values = [self._stages.run(self._below(part, head), head, stop, self._live, logits=True) for part in parts]
        loss = sum(float(each["loss"].numpy()[0]) * part.losses for each, part in zip(values, parts, strict=True)) / batch.losses
        return loss, np.concatenate([each["logits"].numpy()[0] for each in values])

    def loss(self, batch: Batch) -> float:
        """Unperturbed loss (nats, mean over rows), without keeping any logits."""
        parts = batch.split(max(1, self.max_rows // batch.tokens))
        losses = [self._below(part, len(self._stages))["loss"].numpy()[0] for part in parts]
        return sum(float(loss) * part.losses for loss, part in zip(losses, parts, strict=True)) / batch.losses

    def head_input(self, batch: Batch) -> np.ndarray:
        """What the stage before the head gives for the unperturbed model: [rows, width]."""
        return self._below(batch, len(self._stages) - 1)[self.manifest.stages[-2].outputs[0]].numpy()[0]

    def _below(self, batch: Batch, stop: int) -> Values:
        """The batch's fields and the outputs of the unperturbed stages below `stop`."""
        values = {name: share(array) for name, array in batch.fields.items()}
        first = min(self._frozen, stop)
        if first < stop:
            self.parameters.settle()
        if self._prefix is None or not first:
            return self._stages.run(values, 0, stop, self._live)
        name = self.manifest.stages[first - 1].outputs[0]
        kept = self._prefix.get(batch.keys, batch.tokens)
        if kept is None:
            values = self._stages.run(values, 0, first, self._live)
            self._prefix.put(batch, values[name].numpy())
        else:
            values[name] = share(kept)
        return self._stages.run(values, first, stop, self._live)

    def _walk_branches(self, node: Node, below: list[Values], shape: Batch, go_on: Callable[[], None]) -> Iterator[np.ndarray]:
        """Directions side by side along the branch axis; theta stays untouched. Yields losses [parts, branches]."""
        groups = [self.parameters.groups[group] for size in node.probe_sizes for group in size.groups]
        names = [tensor.name for group in groups for tensor in group.tensors]
        together = max(1, self.max_rows // (2 * shape.examples * shape.tokens))
        for first in range(0, node.count, together):
            directions = range(first, min(first + together, node.count))
            terms_p = [node.terms(direction, sign) for direction in directions for sign in (1, -1)]
            buffers = {name: self._buffer(name, len(terms_p)) for name in names}
            self.parameters.branches(terms_p, {name: array for name, (array, _) in buffers.items()})
            yield self._losses(node, below, self._live | {name: value for name, (_, value) in buffers.items()}, go_on)

    def _walk_in_place(self, node: Node, below: list[Values], shape: Batch, go_on: Callable[[], None]) -> Iterator[np.ndarray]:
        """Probes one by one; restoring the last and setting up the next is one addition. Yields losses [parts, 1]."""
        offset: tuple[Term, ...] = ()
        try:
            for direction in range(node.count):
                for sign in (1, -1):
                    following = node.terms(direction, sign)
                    self.parameters.add((*negated(offset), *following))
                    offset = following
                    yield self._losses(node, below, self._live, go_on)
        finally:
            self.parameters.postpone(negated(offset))  # with the update that follows, and the next perturbation, one pass

    def _losses(self, node: Node, below: list[Values], tensors: Values, go_on: Callable[[], None]) -> np.ndarray:
        """Losses of the parts of a batch: float64 [parts, branches]."""
        losses = []
        for values in below:
            go_on()
            losses.append(self._stages.run(values, node.stage, len(self._stages), tensors)["loss"].numpy().astype(np.float64))
        return np.stack(losses)

    def _buffer(self, name: str, branches: int) -> tuple[np.ndarray, Any]:
        if (name, branches) not in self._buffers:
            array = np.empty((branches, *self.parameters.tensor(name).shape), np.float32)
            self._buffers[name, branches] = (array, share(array))
        return self._buffers[name, branches]
