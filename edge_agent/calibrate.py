"""`edge-agent calibrate`: how well probes of each size measure the slope of the loss, on this processor and with its owner's examples."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from edge_agent.config import refuse_threads
from edge_agent.data import Dataset
from edge_agent.precision import held
from zo import calibration
from zo.batches import Batch
from zo.bundle import Bundle, open_bundle, read_manifest
from zo.engine import Engine
from zo.errors import ConfigError
from zo.manifest import Calibration, Precision
from zo.planning import kinds
from zo.timing import alternating, probe_pair, random_batch, signal_per_second

BATCHES, EXAMPLES, TOKENS, DIRECTIONS, REPEATS = 2, 8, 32, 12, 5


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Tables by precision. ConfigError where the bundle's folder holds no base of the name, or the threads are too many."""
    refuse_threads(given.threads)
    folder: Path = given.bundle
    here = held(folder, read_manifest(folder))
    among = [given.precision] if given.precision else here
    if not set(among) <= set(here) or not among:
        raise ConfigError(
            f"{folder} holds bases {', '.join(here) or 'none'}, not {', '.join(among) or 'one'}; download or build it with that"
        )
    first = open_bundle(folder, among[0])
    batches = _batches(first, given.data)
    exact = _engine(open_bundle(folder, "fp32"), given.threads) if "fp32" in here else None
    return {"compared_with_fp32": exact is not None, "bases": {each: _base(folder, each, exact, batches, given.threads) for each in among}}


def told(found: dict[str, Any]) -> str:
    """The tables for a person."""
    parts = []
    for precision, base in found["bases"].items():
        heading = f"{precision}: {base['milliseconds']:.1f} ms a probe pair"
        if found["compared_with_fp32"]:
            measured = [Calibration(**row) for row in base["measured"]]
            table = calibration.told(measured) + f"\nsignal a second: {base['signal_per_second']:.2f}"
        else:
            lines = [f"{row['kind']:5}  2**{row['log2_eps']:<4} {row['correlation']:18.3f}" for row in base["measured"]]
            table = "\n".join(["kind   eps     noise-free share", *lines])
        stated = ", ".join(f"{kind} 2**{log2_eps}" for kind, log2_eps in base["stated"].items())
        parts.append(f"{heading}\n{table}\nthe bundle states: {stated}")
    if not found["compared_with_fp32"]:
        parts.append(
            "the bundle has no base fp32 here to compare with, so only noise is measured, and the probe sizes that it states stand"
        )
    return "\n\n".join(parts)


def _base(folder: Path, precision: Precision, exact: Engine | None, batches: list[Batch], threads: int) -> dict[str, Any]:
    """What is measured of one base. stated: log2 of the probe sizes in the manifest, by kind."""
    engine = exact if exact and precision == "fp32" else _engine(open_bundle(folder, precision), threads)
    manifest = engine.manifest
    found: dict[str, Any] = {"stated": {kind: manifest.log2_eps(kind) for kind in kinds(manifest)}}
    found["milliseconds"] = alternating([probe_pair(engine, batches[0])], REPEATS)[0]
    if exact is None:
        sizes = [(kind, log2) for kind in kinds(manifest) for log2 in calibration.candidates(manifest, kind)]
        shares = [calibration.correlation_here(engine, kind, batches[0], DIRECTIONS, log2_eps=log2) for kind, log2 in sizes]
        rows = [{"kind": kind, "log2_eps": log2, "correlation": share} for (kind, log2), share in zip(sizes, shares, strict=True)]
        return found | {"measured": rows}
    measured = [row for kind in kinds(manifest) for row in calibration.measure(engine, exact, kind, batches, DIRECTIONS)]
    chosen = {row.kind: row for row in calibration.choose(measured)}
    worth = signal_per_second(chosen[kinds(manifest)[0]].correlation, found["milliseconds"])
    plain = {"measured": list(map(dataclasses.asdict, measured)), "chosen": {kind: row.log2_eps for kind, row in chosen.items()}}
    return found | plain | {"signal_per_second": worth}


def _engine(bundle: Bundle, threads: int) -> Engine:
    return Engine(bundle, bundle.parameters(threads), threads=threads)


def _batches(bundle: Bundle, data: Path | None) -> list[Batch]:
    """Of the owner's examples, all classes equally often; of random tokens where none are given."""
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    if data is None:
        return [random_batch(task, tokenizer.get_vocab_size(), EXAMPLES, min(TOKENS, task.max_tokens))] * BATCHES
    dataset = Dataset(data, task, tokenizer, held_out_share=0, held_out_most=0, balanced=True)
    return [dataset.draw(EXAMPLES) for _ in range(BATCHES)]
