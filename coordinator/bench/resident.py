"""The processes whose memory `scripts/bench memory` and `prediction` measure. Imports wait, since they count."""

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (8, 32)  # examples x tokens of an agent's batches; plain inference runs twice the examples
ROUNDS = 12


def _inference(bundle: Path) -> dict[str, Any]:
    """Plain onnxruntime, with the options that it has by itself but for the threads; nothing of ours is imported."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in sorted(bundle.glob("*stage_*.onnx"))]
    trained = json.loads((bundle / "manifest.json").read_text())["groups"]
    shapes = {tensor["name"]: tensor["shape"] for group in trained for tensor in group["tensors"]}
    values = {name: np.full((1, *shape), 0.5, np.float32) for name, shape in shapes.items()}
    shape = (2 * SHAPE[0], SHAPE[1])
    values |= {"input_ids": np.random.default_rng(0).integers(1000, 30_000, shape), "token_type_ids": np.zeros(shape, np.int64)}
    values |= {"attention_mask": np.ones(shape, np.int64), "labels": np.zeros(shape[0], np.int64)}
    for _ in range(2 * ROUNDS):
        flow = dict(values)
        for session in sessions:
            names = [output.name for output in session.get_outputs()]
            flow |= zip(names, session.run(names, {given.name: flow[given.name] for given in session.get_inputs()}), strict=True)
    return {"peak_mib": high_water() >> 20}


def _engine(bundle: Path, max_rows: int) -> dict[str, Any]:
    """Probes on random tokens of 8 to max_tokens, the longest last; in this process."""
    from zo.bundle import open_bundle
    from zo.engine import Engine
    from zo.planning import one_level
    from zo.timing import random_batch

    opened = open_bundle(bundle)
    engine = Engine(opened, opened.parameters(), max_rows=max_rows)
    loaded, began = _of_status("VmRSS") >> 20, time.perf_counter()
    task = opened.manifest.task
    sizes = {each.kind: each.log2_eps for each in opened.manifest.calibration}
    lengths = [*np.random.default_rng(0).integers(8, task.max_tokens + 1, 12).tolist(), task.max_tokens]
    for place, length in enumerate(lengths):
        engine.probe(one_level(opened.manifest, sizes, 4 * place, 4), random_batch(task, 30_000, SHAPE[0], length))
    seconds = time.perf_counter() - began
    return {"max_rows": max_rows, "loaded_mib": loaded, "peak_mib": high_water() >> 20, "seconds": round(seconds, 2)}


def _calibrate(bundle: Path) -> dict[str, Any]:
    """What an agent finds on first use."""
    from dataclasses import asdict

    from zo.memory import calibration

    opened, engine = _loaded(bundle, 384)
    base = bundle / opened.manifest.base.file
    return asdict(calibration.fit(calibration.measure(engine, base, lambda rows, tokens: True), opened.manifest))


def _shape(bundle: Path, directions: int, examples: int, tokens: int) -> dict[str, Any]:
    """Three probes of one shape, all rows at once, where every word of the tables has been met."""
    from zo.memory import process
    from zo.planning import one_level
    from zo.timing import random_batch

    opened, engine = _loaded(bundle, 1 << 20)
    touch(bundle / opened.manifest.base.file)
    plan = one_level(opened.manifest, {each.kind: each.log2_eps for each in opened.manifest.calibration}, 0, directions)
    for _ in range(3):
        engine.probe(plan, random_batch(opened.manifest.task, 30_000, examples, tokens))
    return {"peak": process.peak()}


def _loaded(bundle: Path, max_rows: int) -> Any:
    """The bundle and an engine over it, in a process that has imported what an agent does."""
    import grpc  # noqa: F401
    import psutil  # noqa: F401

    from zo.bundle import open_bundle
    from zo.engine import Engine

    opened = open_bundle(bundle)
    return opened, Engine(opened, opened.parameters(), max_rows=max_rows)


def touch(file: Path) -> None:
    """Read a byte of every page of the file's mappings in this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file.resolve())):
            first, last = (int(each, 16) for each in line.split()[0].split("-"))
            for address in range(first, last, 4096):
                ctypes.string_at(address, 1)


def high_water(process: int | str = "self") -> int:
    """Most bytes resident of a process so far; 0 where it is gone."""
    return _of_status("VmHWM", process)


def _of_status(field: str, process: int | str = "self") -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    processes: dict[str, Callable[..., dict[str, Any]]] = {
        "inference": _inference,
        "engine": _engine,
        "calibrate": _calibrate,
        "shape": _shape,
    }
    parser.add_argument("what", choices=processes)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("numbers", type=int, nargs="*")
    given = parser.parse_args()
    print(json.dumps(processes[given.what](given.bundle, *given.numbers)))
