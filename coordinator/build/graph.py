"""A thin writer of ONNX graphs: nodes as calls, small constants inline, weights by reference into the base's safetensors file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
CONTRIB = "com.microsoft"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass
class Frozen:
    """The weights of all stages that are never trained, by name; written once, to the base's file."""

    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def keep(self, name: str, values: np.ndarray) -> str:
        """Register a weight (the same name always holds the same values) and return its name."""
        self.tensors.setdefault(name, np.ascontiguousarray(values))
        return name


class Graph:
    """One stage under construction. A value is the name of a graph edge (str)."""

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self.constants: dict[str, onnx.TensorProto] = {}
        self.used: set[str] = set()

    def input(self, name: str, shape: Sequence[int | str], kind: int = FLOAT) -> str:
        """A graph input; asking twice gives the same one."""
        self.inputs.setdefault(name, helper.make_tensor_value_info(name, kind, shape))
        return name

    def op(self, operator: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """A node; returns its output's name, or a list of them."""
        place = len(self.nodes)
        names = [f"{operator}_{place}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=f"{operator}_{place}", domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        """A small constant held in the graph itself."""
        array = np.asarray(value, kind)
        name = f"constant_{array.dtype.name}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        if len(name) > 120:
            raise ValueError("constant is too large to be held inline; use weight()")
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def indices(self, *values: int) -> str:
        """A constant row of int64, for shapes and axes."""
        return self.constant(values, np.int64)

    def weight(self, name: str, values: np.ndarray) -> str:
        """A frozen weight, stored in the base's file."""
        self.used.add(name)
        return self.frozen.keep(name, values)

    def rename(self, value: str, name: str) -> str:
        """Give an edge the name under which it leaves the graph."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"name_{name}"))
        return name

    def model(self, outputs: Mapping[str, Sequence[int | str]], places: Mapping[str, tuple[str, int, int]]) -> onnx.ModelProto:
        """The finished model. places: of frozen weights, by name: file, offset and length in bytes; others are held in the graph itself."""
        weights = [
            _external(name, self.frozen.tensors[name], *places[name])
            if name in places
            else numpy_helper.from_array(self.frozen.tensors[name], name)
            for name in sorted(self.used)
        ]
        results = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(self.nodes, "stage", list(self.inputs.values()), results, [*self.constants.values(), *weights])
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="edge-zo")


def _external(name: str, values: np.ndarray, file: str, offset: int, length: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(values.dtype), dims=values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
