"""Export: the trained tensors as safetensors, and one merged ONNX model that plain onnxruntime loads."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from onnx.utils import Extractor

from zo import ranks
from zo.bundle import TOKENIZER, Bundle, save_tensors
from zo.disk import made_whole
from zo.parameters import Parameters
from zo.replica import Replica

TRAINED = "trained.safetensors"
MODEL = "model.onnx"
INLINE = 1 << 30  # bytes; larger models keep their weights beside the graph


def export(bundle: Bundle, replica: Replica, run_name: str, out: Path, rank: int = 0) -> None:
    """Write the model of a replica to `out`: trained.safetensors, model.onnx, tokenizer.json and task.json. `out` must not exist.

    rank: of the adapters, of those that the bundle has; 0 is the largest.
    """
    parameters = replica.parameters
    tensors = ranks.joined(bundle.manifest, parameters.tensors(), rank)
    details = {"run": run_name, "entry": str(replica.entry), "digest": parameters.digest().hex()} | ({"rank": str(rank)} if rank else {})
    task = dataclasses.asdict(bundle.manifest.task) | details
    with made_whole(out) as made:
        save_tensors(tensors, made / TRAINED, metadata=details)
        model = merged(bundle, parameters, rank)
        large = model.ByteSize() > INLINE
        onnx.save(model, made / MODEL, save_as_external_data=large, location="model.data" if large else None)
        shutil.copyfile(bundle.folder / TOKENIZER, made / TOKENIZER)
        (made / "task.json").write_text(json.dumps(task, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def merged(bundle: Bundle, parameters: Parameters, rank: int = 0) -> onnx.ModelProto:
    """The chain as one graph with the trained values in it, adapters cut to a rank (0: whole): token ids in, logits out.

    Logits are [batch, classes], or [batch, tokens, vocabulary] for language modelling.
    """
    stages = [onnx.load(bundle.folder / stage.file) for stage in bundle.manifest.stages]
    model = _prefixed(stages[0], 0)
    for number, stage in enumerate(stages[1:], 1):
        shared = {given.name for given in stage.graph.input} & {given.name for given in model.graph.input}
        following = _prefixed(stage, number)
        for given in shared:  # merge_models allows no common names: batch fields are joined again below
            _rename(following.graph, given, f"{given} {number}")
        joined = [(name, name) for name in bundle.manifest.stages[number - 1].outputs]
        keep = ["loss", "logits"] if number == len(stages) - 1 else list(bundle.manifest.stages[number].outputs)
        model = compose.merge_models(model, following, io_map=joined, outputs=keep)
        for given in shared:
            _drop_input(model.graph, f"{given} {number}")
            _rename(model.graph, f"{given} {number}", given)
    _freeze(model.graph, ranks.joined(bundle.manifest, parameters.tensors(), rank))
    fields = [given.name for given in model.graph.input if given.name not in ("labels", "positions")]
    return _finished(model, fields, causal=bundle.manifest.task.kind == "language-modelling")


def _prefixed(model: onnx.ModelProto, number: int) -> onnx.ModelProto:
    """The stage with its inner names made its own; inputs, outputs and weights keep theirs."""
    return compose.add_prefix(model, f"stage {number} ", rename_inputs=False, rename_outputs=False, rename_initializers=True)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    for given in graph.input:
        given.name = new if given.name == old else given.name


def _drop_input(graph: onnx.GraphProto, name: str) -> None:
    kept = [given for given in graph.input if given.name != name]
    del graph.input[:]
    graph.input.extend(kept)


def _freeze(graph: onnx.GraphProto, tensors: dict[str, np.ndarray]) -> None:
    """Turn trainable inputs into weights, with a branch axis of one where the graph has one."""
    for given in list(graph.input):
        if given.name in tensors:
            values = tensors[given.name]
            lead = len(given.type.tensor_type.shape.dim) - values.ndim
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values.reshape((1,) * lead + values.shape)), given.name))
            _drop_input(graph, given.name)


def _finished(model: onnx.ModelProto, fields: list[str], causal: bool) -> onnx.ModelProto:
    """Without the loss, and with the branch axis taken off the logits."""
    graph = model.graph
    classes = next(out for out in graph.output if out.name == "logits").type.tensor_type.shape.dim[2].dim_value
    zero, one = (helper.make_tensor(f"index {n}", TensorProto.INT64, [], [n]) for n in (0, 1))
    graph.initializer.extend([zero, one, helper.make_tensor("first axis", TensorProto.INT64, [1], [0])])
    if causal:
        nodes = [
            helper.make_node("Size", ["input_ids"], ["count"]),
            helper.make_node("Range", ["index 0", "count", "index 1"], ["positions"]),
        ]
        for place, node in enumerate(nodes):
            graph.node.insert(place, node)
        _drop_input(graph, "positions")
        graph.initializer.append(helper.make_tensor("last axis", TensorProto.INT64, [1], [-1]))
        graph.node.append(helper.make_node("Shape", ["input_ids"], ["rows"]))
        graph.node.append(helper.make_node("Concat", ["rows", "last axis"], ["rows and classes"], axis=0))
        graph.node.append(helper.make_node("Reshape", ["logits", "rows and classes"], ["output"]))
    else:
        graph.node.append(helper.make_node("Squeeze", ["logits", "first axis"], ["output"]))
    shape: list[str | int] = ["batch", "tokens", classes] if causal else ["batch", classes]
    graph.output.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, shape))
    extracted = Extractor(model).extract_model(fields, ["output"])
    _rename_output(extracted.graph)
    return extracted


def _rename_output(graph: onnx.GraphProto) -> None:
    """`logits` is the name a user expects; inside, it was the one with the branch axis."""
    for node in graph.node:
        node.input[:] = ["branched logits" if name == "logits" else name for name in node.input]
        node.output[:] = [{"logits": "branched logits", "output": "logits"}.get(name, name) for name in node.output]
    graph.output[0].name = "logits"
