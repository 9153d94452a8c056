"""The stages of a bundle as ONNX Runtime sessions, run one after the other."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.30 and later carry a telemetry client

import onnxruntime as ort

from zo import ranks
from zo.bundle import Bundle
from zo.engine import external
from zo.errors import BundleError
from zo.inactive import CODES, VALUES
from zo.memory import process

Values = dict[str, Any]  # ort.OrtValue by name

# One arena for all sessions: no page faults once warm, and less resident than without any (docs/performance.md).
ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT), None)


class Stages:
    """All stages, loaded. threads: of ONNX Runtime. BundleError where a graph cannot be loaded. Not safe for concurrent calls.

    held: groups whose tensors there are, all if left out. Stages of others can be run once their inactive graph is opened.
    """

    def __init__(self, bundle: Bundle, threads: int, held: Collection[int] | None = None) -> None:
        self._bundle, self._threads, self._stages = bundle, threads, dict[int, _Stage]()
        for number, stage in enumerate(bundle.manifest.stages):
            if held is None or set(stage.groups) <= set(held):
                self.open(number)
            elif not stage.inactive:
                raise ValueError(f"stage {number} has no graph for when groups {list(stage.groups)} are not held")
        self.ranks = {name: rank for stage in self._stages.values() for name, rank in stage.ranks.items()}
        self.classes: int = self._stages[len(self) - 1].classes

    def __len__(self) -> int:
        return len(self._bundle.manifest.stages)

    def open(self, number: int, inactive: Path | None = None) -> None:
        """Load a stage; its inactive graph from a folder that holds that and its weights, which may go afterwards."""
        self.close(number)
        stage, folder = self._bundle.manifest.stages[number], self._bundle.folder
        file = inactive / stage.inactive if inactive else folder / stage.file
        reads = (CODES, VALUES) if inactive else (self._bundle.manifest.base.file,)
        opened = _Stage(file, reads, stage.outputs, self._threads)
        tensors = self._tensors(number)
        unknown = set(opened.ranks) - set(stage.inputs) - tensors
        unused = set() if inactive else tensors - set(opened.ranks)
        if unknown or unused:
            raise BundleError(f"{file} does not take what its manifest states: {min(unknown | unused)!r}; build the bundle again")
        self._stages[number] = opened

    def _tensors(self, number: int) -> set[str]:
        """Trainable tensors of a stage, as its graph names them."""
        stage, manifest = self._bundle.manifest.stages[number], self._bundle.manifest
        names = {tensor.name for group in manifest.groups if group.id in stage.groups for tensor in group.tensors}
        return {name[1] if manifest.ranks and (name := ranks.SLICED.fullmatch(each)) else each for each in names}

    def close(self, number: int) -> None:
        """Let go of a stage, with all that it is bound to."""
        self._stages.pop(number, None)

    def trim(self, width: int, tensors: Values) -> None:
        """Let the arena, and the C library, give back what they do not use: they keep it otherwise. width: of the hidden states."""
        self._stages[len(self) - 1].shrink(width, tensors)
        process.give_back()

    def run(self, values: Values, first: int, stop: int, tensors: Values, logits: bool = False) -> Values:
        """`values` and the outputs of stages first..stop. tensors: the trainable ones. logits: whether the last stage gives them too."""
        for number in range(first, stop):
            values = values | self._stages[number].run(values, tensors, logits)
        return values


class _Stage:
    """One session with its bindings; what is bound already is not bound again. reads: files with its weights."""

    def __init__(self, file: Path, reads: Sequence[str], outputs: Sequence[str], threads: int) -> None:
        external.check(file, *reads)
        self._session = _session(file, threads)
        self.ranks = {given.name: len(given.shape) for given in self._session.get_inputs()}
        self._outputs = outputs
        shapes = {given.name: given.shape for given in self._session.get_outputs()}
        if unknown := set(outputs) - shapes.keys():
            raise BundleError(f"{file} does not put out {min(unknown)!r}, as its manifest states; build the bundle again")
        self.classes: int = shapes["logits"][-1] if "logits" in shapes else 0
        self._binding, self._bound = self._session.io_binding(), Values()

    def shrink(self, width: int, tensors: Mapping[str, Any]) -> None:
        """Run a single row: the arena shrinks at the end of a run, if at all."""
        row = {name: np.zeros((1, 1, width), np.float32) if rank == 3 else np.zeros(1, np.int64) for name, rank in self.ranks.items()}
        given = {name: tensors[name].numpy() if name in tensors else row[name] for name in self.ranks}
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._session.run(["loss"], given, options)

    def run(self, values: Mapping[str, Any], tensors: Mapping[str, Any], logits: bool) -> Values:
        for name in self.ranks:
            value = tensors[name] if name in tensors else values[name]
            if self._bound.get(name) is not value:
                self._binding.bind_ortvalue_input(name, value)
                self._bound[name] = value
        wanted = [name for name in self._outputs if logits or name != "logits"]
        for name in wanted:
            self._binding.bind_output(name)
        self._session.run_with_iobinding(self._binding)
        outputs = dict(zip(wanted, self._binding.get_outputs(), strict=True))
        self._binding.clear_binding_outputs()  # else the next run would write into them
        return outputs


def share(array: np.ndarray) -> Any:
    """An OrtValue over the array's own memory."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def run_model(path: Path, fields: dict[str, np.ndarray]) -> np.ndarray:
    """First output of an exported ONNX model; fields that it does not take are left out."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {given.name: fields[given.name] for given in session.get_inputs()})[0]


def _session(file: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no narrower class
        raise BundleError(f"{file} cannot be loaded ({str(error).splitlines()[0]}); build the bundle again") from None
