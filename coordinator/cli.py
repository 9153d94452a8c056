"""The command `edge-coordinator`."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from coordinator import fleet_commands, history, ledger_commands, plan_command, replay, simulate
from coordinator.config import RunConfig
from coordinator.sqlite_store import SqliteStore
from zo import cli, config, log
from zo.errors import ConfigError
from zo.manifest import PRECISIONS, TRAINABLE_SETS

DEFAULT_STORE = Path("edge-zo.sqlite")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    top, commands = cli.parser("edge-coordinator", "Lead a fleet of small devices that teach a model together, with forward passes only.")
    bundle = commands.add_parser("bundle", help="make and examine bundles").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    _add_bundle_commands(bundle)
    serve = commands.add_parser("serve", help="serve one run", description="Serve one run until stopped; start again to go on with it.")
    config.add_flags(serve, RunConfig)
    serve.set_defaults(command=_serve)
    simulated = commands.add_parser(
        "simulate",
        help="a run as it would go, with all devices in this process",
        description="Run a fleet in this process: the real rounds, plans, probes and ledger, without sockets. Nothing is stored.",
    )
    simulate.add(simulated)
    simulated.set_defaults(command=_simulate)
    for name, command, text in (("status", _status, "where a run stands"), ("runs", _runs, "the runs of a store")):
        one = _with_store(commands.add_parser(name, help=text), command)
        one.add_argument("--json", action="store_true", help="one JSON object")
        if name == "status":
            one.add_argument("run", nargs="?", help="name of the run; the newest if left out")
    export = _with_store(commands.add_parser("export", help="the trained model, as safetensors and ONNX"), _export)
    export.add_argument("run", help="name of the run")
    export.add_argument("out", type=Path, help="folder to make")
    export.add_argument("--at", type=int, metavar="ROUND", help="the model when this round closed; the best by validation if left out")
    export.add_argument("--rank", type=int, default=0, help="of the adapters, where the bundle has several [the largest]")
    export.add_argument("--peft", action="store_true", help="the adapter alone, as a folder that Hugging Face PEFT loads (docs/ranks.md)")
    ledger_commands.add(commands, DEFAULT_STORE)
    plan_command.add(commands, DEFAULT_STORE)
    fleet_commands.add(commands)
    return cli.run(top, arguments)


def _add_bundle_commands(commands: argparse._SubParsersAction) -> None:
    from coordinator import bundles

    build = commands.add_parser("build", help="turn a Hugging Face folder into a bundle")
    build.add_argument("model", type=Path, help="folder with config.json, *.safetensors and tokenizer.json")
    build.add_argument("out", type=Path, help="folder to make")
    build.add_argument("--task", type=Path, help="task file, or a list of label sentences; without it: language modelling")
    build.add_argument("--max-tokens", type=int, help="cut (or split) texts at this many tokens; overrides the task file")
    build.add_argument("--trainable", choices=TRAINABLE_SETS, default="lora-fa", help="what is trained [lora-fa]")
    build.add_argument(
        "--precision",
        type=bundles.precisions,
        default="fp32",
        metavar="NAME[,NAME...]",
        help=f"of what is not trained: {', '.join(PRECISIONS)}; several make as many bases, the first the default [fp32]",
    )
    build.add_argument("--rank", type=int, default=8, help="of adapters [8]")
    build.add_argument(
        "--ranks",
        type=bundles.ranks,
        default=(),
        metavar="R[,R...]",
        help="of adapters in slices, as 2,4,8,16: each device trains with the rank it can bear (docs/ranks.md); instead of --rank",
    )
    build.add_argument("--alpha", type=float, default=16.0, help="adapters are scaled by alpha / rank, the largest rank [16]")
    build.add_argument("--adapter", type=Path, help="folder of Hugging Face PEFT that training begins with; for --trainable lora")
    build.add_argument("--top-blocks", type=int, help="train only so many blocks, those nearest the output; 0: the head alone [all]")
    build.add_argument("--stages", type=int, help="parts that the blocks are cut into, the head not counted [2]")
    build.add_argument("--run-key", type=int, help="32 bits from which all directions derive [random]")
    build.add_argument("--data", type=Path, help="labelled JSONL for calibration; label sentences serve if left out")
    build.set_defaults(command=bundles.build)
    for name, command, text in (
        ("inspect", bundles.inspect, "what a bundle holds"),
        ("verify", bundles.verify, "check every file of a bundle against its digest, and that its graphs run"),
        ("calibrate", bundles.calibrate, "measure signal, noise and bias of every probe size"),
    ):
        one = commands.add_parser(name, help=text)
        one.add_argument("bundle", type=Path)
        one.set_defaults(command=command)
        if name == "inspect":
            one.add_argument("--json", action="store_true", help="one JSON object")
        if name == "calibrate":
            one.add_argument("--model", type=Path, help="the model folder it was built from; needed unless it has a base fp32")
            one.add_argument("--data", type=Path, help="labelled JSONL; label sentences serve if left out")
    pack = commands.add_parser("pack", help="one .tar of a bundle folder")
    pack.add_argument("bundle", type=Path)
    pack.add_argument("archive", type=Path)
    pack.set_defaults(command=bundles.pack)
    unpack = commands.add_parser("unpack", help="a bundle folder of a .tar")
    unpack.add_argument("archive", type=Path)
    unpack.add_argument("folder", type=Path)
    unpack.set_defaults(command=bundles.unpack)


def _with_store(parser: argparse.ArgumentParser, command: object) -> argparse.ArgumentParser:
    parser.add_argument("--store", type=Path, default=DEFAULT_STORE, help=f"[{DEFAULT_STORE}]")
    parser.set_defaults(command=command)
    return parser


def _serve(given: argparse.Namespace) -> None:
    from coordinator.serve import Serving
    from zo.systemd import Systemd

    log.check_clock()
    settings = config.load(RunConfig, given, "EDGE_COORDINATOR")
    asyncio.run(Serving(settings, Systemd()).run())


def _simulate(given: argparse.Namespace) -> None:
    rows = []
    for point, summary in simulate.run(given):
        print(simulate.told(point, summary), flush=True)
        rows.append({"round": point.round, "probes": point.probes, "seconds": round(point.seconds, 2)} | point.metrics)
    if given.json:
        print(json.dumps({"rounds": rows}))


def _status(given: argparse.Namespace) -> None:
    from coordinator import status

    store = SqliteStore(given.store)
    names = [run.name for run in store.runs()]
    if not names and not given.run:
        raise ConfigError(f"{given.store} holds no runs yet")
    found = status.of(store, store.run(given.run or names[-1]))
    print(json.dumps(found) if given.json else status.told(found))


def _runs(given: argparse.Namespace) -> None:
    store = SqliteStore(given.store)
    rows = [{"name": run.name, "state": run.state, "entries": store.head(run.id)[0], "bundle": str(run.bundle)} for run in store.runs()]
    if given.json:
        print(json.dumps({"runs": rows}))
        return
    for row in rows or [{"name": "no runs yet", "state": "", "entries": "", "bundle": ""}]:
        print(f"{row['name']:24} {row['state']:10} {row['entries']!s:>7}  {row['bundle']}")


def _export(given: argparse.Namespace) -> None:
    from coordinator import peft
    from coordinator.export import export

    store = SqliteStore(given.store)
    run = store.run(given.run)
    entry = replay.best_entry(store, run.id) if given.at is None else history.entry_at(store, run, given.at)
    bundle = replay.opened(run)
    replica = replay.replica(store, run, bundle, entry)
    (peft.export if given.peft else export)(bundle, replica, run.name, given.out, given.rank)
    print(f"{given.out}: entry {entry} of run {run.name!r}, digest {replica.parameters.digest().hex()}")


if __name__ == "__main__":
    sys.exit(main())
