"""`scripts/bench fuzz`: broken input for every parser (zo.fuzzing); the agent's own run in a process of edge_agent.bench.fuzz."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coordinator import authority
from coordinator.bench import tiny_models
from coordinator.bench.child_process import figures
from zo import bundle, examples, token, wire
from zo.checkpoint import Checkpoint, GroupValues
from zo.engine import external
from zo.errors import BundleError, ConfigError, DataError
from zo.estimators import Grid
from zo.fuzzing import Target, attack_all
from zo.ledger import Entry, Tile
from zo.messages import (
    CatchUpRequest,
    CheckpointRequest,
    EnrolRequest,
    FileRequest,
    JoinReply,
    JoinRequest,
    Profile,
    Report,
    Way,
    WorkReply,
    WorkRequest,
)
from zo.plan import Node, ProbeSize, Shape, WorkPlan
from zo.terms import Term
from zo.tile_head import Head, HeadRefused, read_head
from zo.token import Token

AGENTS_SHARE = 0.3  # of the time


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=1.0, help="[1]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(given.minutes * 60, given.seed, folder)


def targets(folder: Path) -> list[Target]:
    """All of the coordinator's and of what both sides share. folder: for files."""
    return [*_messages(), *_files(folder), _head(), _token(), _certificate()]


def measure(seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Inputs tried, by target, with so many seconds for all; and what failed."""
    theirs = figures("edge_agent.bench.fuzz", f"--seconds={seconds * AGENTS_SHARE}", f"--seed={seed}")
    ours = attack_all(targets(folder), seed, seconds * (1 - AGENTS_SHARE))
    counts, failed = ({**ours[key], **theirs[key]} for key in ("by_target", "failed"))
    return {"inputs": sum(counts.values()), "failures": len(failed), "failed": failed, "by_target": counts}


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = [f"{name:16} {count:10,} inputs  {found['failed'].get(name, 'no failure')}" for name, count in found["by_target"].items()]
    return "\n".join([*lines, f"{'all':16} {found['inputs']:10,} inputs, {found['failures']} targets failed"])


def failed(found: dict[str, Any]) -> bool:
    return found["failures"] > 0


def _messages() -> list[Target]:
    term = Term((0, 1), 7, np.array([1, -2, 3]))
    entry = Entry(1, 1, 2, (term,), bytes(32))
    node = Node(0, 3, 2, (ProbeSize((0, 1), 12),), Node(1, 9, 4, (ProbeSize((2,), 3),)))
    plan = WorkPlan(1, 0, node, 8, True, True, Grid(14, 2.0), 77)
    report = Report(1, 2, 3, np.array([5, -6, 700]), 8, "int8", held_out=(4, -5), digest=bytes(range(32)), shape=Shape((2, 4), (1,)))
    right: list[Any] = [
        report,
        WorkReply((entry, entry), plan, 5, "why", False),
        JoinReply(1, 2, "run", bytes(32), ("manifest.json", "x"), bytes(32), bytes(32)),
        Tile((entry,) * 3),
        EnrolRequest(bytes(32), bytes(32)),
        JoinRequest(1, 2),
        FileRequest(1, 2, 3),
        CatchUpRequest(1, 2, 3, 4),
        CheckpointRequest(1, Way.FOLD, 3, 4),
        WorkRequest(1, 2, 3, 4, "fp32", Profile(700, (5, 6), (7, 8), 9, 10)),
        Checkpoint(bytes(32), 5, bytes(32), bytes(32), (term,), (GroupValues(3, bytes(16)),)),
    ]
    kinds = {type(value).__name__: (type(value), (wire.encode(value),)) for value in right}
    return [Target(name, inputs, wire.decoder(kind), (wire.WireError,)) for name, (kind, inputs) in kinds.items()]


def _files(folder: Path) -> list[Target]:
    from coordinator.bench.crash import build_bundle

    built = build_bundle(folder)
    manifest, graph = (built.folder / "manifest.json").read_bytes(), (built.folder / built.manifest.stages[0].file).read_bytes()
    lines = (
        b'{"text": "ba bee", "label": 1}\n{"text": "a", "label": "ba bee bi", "text_pair": "b"}\n\xef\xbb\xbf{"text": "c", "label": 0}\n'
    )

    def written(name: str, parse: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        path = folder / "fuzzed" / name
        path.parent.mkdir(exist_ok=True)

        def go(data: bytes) -> Any:
            path.write_bytes(data)
            return parse(path)

        return go

    task = tiny_models.CLASSIFICATION
    return [
        Target("manifest", (manifest,), written("manifest.json", lambda path: bundle.read_manifest(path.parent)), (BundleError,)),
        Target("graph", (graph,), written("stage.onnx", lambda path: external.check(path, built.manifest.base.file)), (BundleError,)),
        Target("JSONL", (lines,), written("a.jsonl", lambda path: examples.read(path, task)), (DataError,)),
    ]


def _head() -> Target:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    right = Head(bytes(32), bytes(32), 7, bytes(32)).signed(key)
    return Target("head of tiles", (right,), lambda data: read_head(data, public), (HeadRefused,))


def _token() -> Target:
    right = Token("fleet.example.org:443", bytes(32), bytes(16)).text.encode()
    return Target("token", (right,), lambda data: token.read(data.decode("utf-8", "surrogateescape")), (ConfigError,))


def _certificate() -> Target:
    """What TLS hands on of a caller; only what it has parsed itself gets so far."""
    root = authority.new_authority()
    right = authority.new_server(root).certificate
    return Target("certificate", (right, root.certificate), lambda data: authority.read_peer(data, root.certificate), (ValueError,))
