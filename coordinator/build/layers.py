"""The layers that architectures are made of, with base precision, adapters and trainable tensors put in.

Activations carry the branch axis first: [P, batch, tokens, width] in the body, [P, rows, width] in the head. It is 1
until the first perturbed tensor, whose own branch axis then spreads by broadcasting: everything below runs once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from coordinator.build.checkpoint import Checkpoint
from coordinator.build.graph import CONTRIB, FLOAT, INT64, Frozen, Graph
from coordinator.peft import Adapter
from zo import quantised, ranks
from zo.manifest import Precision, TrainableSet


@dataclass
class DraftGroup:
    """A group being collected: kind, stage, and tensors in order with their initial values."""

    kind: str
    stage: int
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What is trained and in what precision the rest is held. rank, alpha: of the adapters.

    top_blocks: how many blocks are trained, those nearest the output; all where it is None. ranks: adapters are held in slices, so
    that a model of each of these is a prefix of the next (zo.ranks); the largest takes the place of `rank`. adapter: what A and B, and
    a linear head, begin as; its rank and alpha must be these.
    """

    trainable: TrainableSet = "lora-fa"
    precision: Precision = "fp32"
    rank: int = 8
    alpha: float = 16.0
    run_key: int = 0
    top_blocks: int | None = None
    ranks: tuple[int, ...] = ()
    adapter: Adapter | None = None

    @property
    def largest_rank(self) -> int:
        """Of the adapters; alpha over it is the scale of every prefix."""
        return self.ranks[-1] if self.ranks else self.rank


class Layers:
    """What an architecture builds with: stages in order, groups in order, and the layers below."""

    def __init__(self, checkpoint: Checkpoint, training: Training) -> None:
        self.checkpoint, self.training = checkpoint, training
        self.frozen = Frozen()
        self.graphs = [Graph(self.frozen)]
        self.groups: list[DraftGroup] = []
        self.outputs: list[dict[str, list[int | str]]] = []
        self._open: DraftGroup | None = None
        self._slices: list[DraftGroup] = []
        self.sliced: set[str] = set()
        self.adapted: list[str] = []
        self._made: dict[tuple[int, str], str] = {}

    @property
    def graph(self) -> Graph:
        """The stage under construction."""
        return self.graphs[-1]

    def cut(self, x: str, shape: list[int | str]) -> str:
        """End the stage with `x` as its output and begin the next with it as input."""
        name = f"hidden_{len(self.graphs) - 1}"
        self.end({name: shape}, x)
        self.graphs.append(Graph(self.frozen))
        return self.graph.input(name, shape)

    def end(self, outputs: dict[str, list[int | str]], *values: str) -> None:
        """Name the outputs of the stage."""
        for name, value in zip(outputs, values, strict=True):
            self.graph.rename(value, name)
        self.outputs.append(outputs)

    @contextmanager
    def group(self, kind: str) -> Iterator[None]:
        """Trainable tensors made inside belong to one new group, but slices of adapters, which have one each."""
        self._open = DraftGroup(kind, len(self.graphs) - 1)
        self._slices = [DraftGroup(kind, len(self.graphs) - 1) for _ in self.training.ranks]
        yield
        self.groups += [draft for draft in (self._open, *self._slices) if draft.tensors]
        self._open = None

    @property
    def trainable(self) -> TrainableSet | None:
        """What is trained of the layers that come next; None outside groups."""
        return self.training.trainable if self._open else None

    def once(self, name: str, make: Callable[[], str]) -> str:
        """A value that one stage needs in several places."""
        place = (len(self.graphs), name)
        if place not in self._made:
            self._made[place] = make()
        return self._made[place]

    def tokens(self, name: str) -> str:
        """A batch field of whole numbers, [batch, tokens]."""
        return self.graph.input(name, ["batch", "tokens"], INT64)

    def trained(self, name: str, values: np.ndarray) -> str:
        """A trainable tensor: a graph input; the body's in `full` is perturbed in place, all others have a branch axis."""
        assert self._open is not None, f"{name} is made outside a group"
        self._open.tensors[name] = values
        lead = [] if self._in_place else [f"branches of {name}"]
        return self.graph.input(name, [*lead, *values.shape])

    def trained_in_slices(self, name: str, values: np.ndarray) -> str:
        """A trainable tensor [rank, width], rank dimension by rank dimension in the slices' groups: one graph input of any rank."""
        for number, (start, stop) in enumerate(ranks.spans(self.training.ranks)):
            self._slices[number].tensors[f"{name}.{number}"] = values[start:stop]
        self.sliced.add(name)
        return self.graph.input(name, [f"branches of {name}", "rank", values.shape[1]])

    @property
    def _in_place(self) -> bool:
        return self.training.trainable == "full" and self._open is not None and self._open.kind == "body"

    def linear(self, x: str, name: str, bias_matters: bool = True) -> str:
        """x @ weight.T + bias of `name`.

        bias_matters: False where the model's output does not depend on the bias, which is then never trained.
        """
        g, trainable = self.graph, self.trainable
        weight = self.checkpoint[f"{name}.weight"].T
        bias = self.checkpoint.optional(f"{name}.bias")
        held = None if bias_matters and trainable in ("norms", "full") else bias
        if trainable == "full":
            y = g.op("MatMul", x, self.trained(f"{name}.weight", weight))
            y = y if held is None else g.op("Add", y, g.weight(f"{name}.bias", held))
        else:
            y = self.frozen_linear(x, f"{name}.weight", weight, held)
        if bias is not None and held is None:
            y = g.op("Add", y, self.row(f"{name}.bias", bias))
        return y

    def frozen_linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        """x @ weight + bias in the base precision; weight [in, out]."""
        g, precision = self.graph, self.training.precision
        added = [] if bias is None else [g.weight(f"{name.removesuffix('.weight')}.bias", bias)]
        if precision == "int8":
            codes, scale = quantised.along(weight, 0)
            inputs = [x, g.weight(f"{name}.int8", codes), g.weight(f"{name}.scale", scale[0]), ""]
            return g.op("DynamicQuantizeMatMul", *inputs, *added, domain=CONTRIB)
        if precision in quantised.BITS:
            return self._few_bits(x, name, weight, added, quantised.BITS[precision])
        y = g.op("MatMul", x, g.weight(name, weight))
        return g.op("Add", y, *added) if added else y

    def _few_bits(self, x: str, name: str, weight: np.ndarray, added: list[str], bits: int) -> str:
        """x @ weight + added with the weights alone quantised: the operator computes in float (accuracy_level 1)."""
        g, (inner, outer) = self.graph, weight.shape
        packed, scales = quantised.blocks(weight, bits)
        inputs = [x, g.weight(f"{name}.w{bits}", packed), g.weight(f"{name}.scale", scales), *(["", "", *added] if added else [])]
        shape = {"K": inner, "N": outer, "bits": bits, "block_size": quantised.BLOCK}
        return g.op("MatMulNBits", *inputs, domain=CONTRIB, accuracy_level=1, **shape)

    def embedding(self, ids: str, name: str) -> str:
        """Rows of a frozen table by id; but for fp32 in int8 with a scale a row, a quarter to download and to keep resident."""
        g, table = self.graph, self.checkpoint[name]
        if self.training.precision == "fp32":
            return g.op("Gather", g.weight(name, table), ids)
        codes, scale = quantised.along(table, 1)
        rows = g.op("Gather", g.weight(f"{name}.int8", codes), ids)
        return g.op("Mul", g.op("Cast", rows, to=FLOAT), g.op("Gather", g.weight(f"{name}.scale", scale), ids))

    def norm(self, x: str, name: str, epsilon: float) -> str:
        """LayerNorm with the gains and biases of `name`, or RMSNorm where it has no biases."""
        g, gain = self.graph, self.checkpoint[f"{name}.weight"]
        bias = self.checkpoint.optional(f"{name}.bias")
        trains = self._open is not None and self.training.trainable in ("norms", "full")
        if bias is not None and not trains:
            weights = (g.weight(f"{name}.weight", gain), g.weight(f"{name}.bias", bias))
            return g.op("LayerNormalization", x, *weights, axis=-1, epsilon=epsilon)
        if bias is None:
            mean_square = g.op("ReduceMean", g.op("Mul", x, x), g.indices(-1))
            y = g.op("Div", x, g.op("Sqrt", g.op("Add", mean_square, g.constant(epsilon))))
        else:
            y = g.op("LayerNormalization", x, g.weight(f"ones.{gain.size}", np.ones_like(gain)), axis=-1, epsilon=epsilon)
        y = g.op("Mul", y, self.row(f"{name}.weight", gain) if trains else g.weight(f"{name}.weight", gain))
        return y if bias is None else g.op("Add", y, self.row(f"{name}.bias", bias))

    def row(self, name: str, values: np.ndarray) -> str:
        """A trained vector, shaped to broadcast over the activations of the open group's kind."""
        row = self.trained(name, values)
        if self._in_place:
            return row
        body = self._open is not None and self._open.kind == "body"
        return self.graph.op("Unsqueeze", row, self.graph.indices(1, 2) if body else self.graph.indices(1))
