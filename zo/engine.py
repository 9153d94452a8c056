"""The engine: runs the stages of a bundle in ONNX Runtime and walks work plans (DESIGN section 5).

The only module that imports onnxruntime.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.30 and later carry a telemetry client

import onnxruntime as ort

from zo.batches import Batch
from zo.bundle import Bundle
from zo.errors import BundleError
from zo.parameters import Parameters
from zo.plan import Node
from zo.terms import Term, negated

Values = dict[str, Any]  # ort.OrtValue by name
MAX_ROWS = 384  # keeps MiniLM int8 well under 200 MB resident, and more gains no time (docs/performance.md)


class Engine:
    """Losses of a bundle's model on batches, with the live values of `parameters`.

    threads: of ONNX Runtime. max_rows: most rows (branches x examples x tokens) in one run; what is more is run one after
    the other, except that a run never holds less than one example with its two branches.
    BundleError where a graph cannot be loaded. Not safe for concurrent calls.
    """

    def __init__(self, bundle: Bundle, parameters: Parameters, *, threads: int = 1, max_rows: int = MAX_ROWS) -> None:
        self.manifest, self.parameters, self.max_rows = bundle.manifest, parameters, max_rows
        self._sessions = [_session(bundle, stage.file, threads) for stage in self.manifest.stages]
        ranks = {given.name: len(given.shape) for session in self._sessions for given in session.get_inputs()}
        tensors = {tensor.name: tensor for group in self.manifest.groups for tensor in group.tensors}
        self.branched = {name for name, tensor in tensors.items() if ranks[name] > len(tensor.shape)}
        self._live = {name: _share(parameters.tensor(name)[None] if name in self.branched else parameters.tensor(name)) for name in tensors}
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
        below = [self._run(self._batch_values(part), 0, node.stage, self._live) for part in parts]
        weights = np.array([part.losses for part in parts]) / batch.losses
        return np.concatenate([np.empty(0), *(weights @ losses for losses in walk(node, below, parts[0], go_on))])

    def forward(self, batch: Batch) -> tuple[float, np.ndarray]:
        """Unperturbed loss (nats, mean over rows) and logits [rows, classes]."""
        parts = batch.split(max(1, self.max_rows // batch.tokens))
        values = [self._run(self._batch_values(part), 0, len(self._sessions), self._live) for part in parts]
        loss = sum(float(each["loss"].numpy()[0]) * part.losses for each, part in zip(values, parts, strict=True)) / batch.losses
        return loss, np.concatenate([each["logits"].numpy()[0] for each in values])

    def loss(self, batch: Batch) -> float:
        """Unperturbed loss (nats, mean over rows), without keeping any logits."""
        parts = batch.split(max(1, self.max_rows // batch.tokens))
        losses = [self._run(self._batch_values(part), 0, len(self._sessions), self._live)["loss"].numpy()[0] for part in parts]
        return sum(float(loss) * part.losses for loss, part in zip(losses, parts, strict=True)) / batch.losses

    def head_input(self, batch: Batch) -> np.ndarray:
        """What the stage before the head gives for the unperturbed model: [rows, width]."""
        values = self._run(self._batch_values(batch), 0, len(self._sessions) - 1, self._live)
        return values[self.manifest.stages[-2].outputs[0]].numpy()[0]

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
            self.parameters.add(negated(offset))

    def _losses(self, node: Node, below: list[Values], tensors: Values, go_on: Callable[[], None]) -> np.ndarray:
        """Losses of the parts of a batch: float64 [parts, branches]."""
        losses = []
        for values in below:
            go_on()
            losses.append(self._run(values, node.stage, len(self._sessions), tensors)["loss"].numpy().astype(np.float64))
        return np.stack(losses)

    def _run(self, values: Values, first: int, stop: int, tensors: Values) -> Values:
        """`values` and the outputs of stages first..stop."""
        values = dict(values)
        for stage, session in zip(self.manifest.stages[first:stop], self._sessions[first:stop], strict=True):
            feed = {given.name: tensors.get(given.name) or values[given.name] for given in session.get_inputs()}
            values |= zip(stage.outputs, session.run_with_ort_values(list(stage.outputs), feed), strict=True)
        return values

    def _batch_values(self, batch: Batch) -> Values:
        return {name: _share(array) for name, array in batch.fields.items()}

    def _buffer(self, name: str, branches: int) -> tuple[np.ndarray, Any]:
        if (name, branches) not in self._buffers:
            array = np.empty((branches, *self.parameters.tensor(name).shape), np.float32)
            self._buffers[name, branches] = (array, _share(array))
        return self._buffers[name, branches]


def run_model(path: Path, fields: dict[str, np.ndarray]) -> np.ndarray:
    """First output of an exported ONNX model; fields that it does not take are left out."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {given.name: fields[given.name] for given in session.get_inputs()})[0]


def _share(array: np.ndarray) -> Any:
    """An OrtValue over the array's own memory."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def _session(bundle: Bundle, file: str, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = (
        False  # 187 against 250 MB resident at no cost in time (docs/performance.md)
    )
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(bundle.folder / file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no narrower class
        raise BundleError(f"{bundle.folder / file} cannot be loaded ({str(error).splitlines()[0]}); build the bundle again") from None
