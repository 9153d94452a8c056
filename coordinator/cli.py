"""The command `edge-coordinator`."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from coordinator import bundle_commands, fleet_commands, history, ledger_commands, plan_command, replay, simulate
from coordinator.config import RunConfig, place
from coordinator.sqlite_store import SqliteStore
from zo import cli, config, log
from zo.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    top, commands = cli.parser("edge-coordinator", "Lead a fleet of small devices that teach a model together, with forward passes only.")
    bundle_commands.add(commands)
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
    export.add_argument(
        "--at",
        type=int,
        metavar="ROUND",
        help="the model when this round closed; the best if left out, by validation or else by what devices held out",
    )
    export.add_argument("--rank", type=int, help="of the adapters, where the bundle has several [the largest]")
    export.add_argument("--peft", action="store_true", help="the adapter alone, as a folder that Hugging Face PEFT loads (docs/ranks.md)")
    ledger_commands.add(commands)
    plan_command.add(commands)
    fleet_commands.add(commands)
    return cli.run(top, arguments)


def _with_store(parser: argparse.ArgumentParser, command: object) -> argparse.ArgumentParser:
    parser.add_argument("--store", type=Path, default=place("store"), help="[%(default)s]")
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
    if given.rank is not None and given.rank < 1:
        raise ConfigError(f"--rank {given.rank} must be at least 1; leave it out for the largest")
    (peft.export if given.peft else export)(bundle, replica, run.name, given.out, given.rank or 0)
    print(f"{given.out}: entry {entry} of run {run.name!r}, digest {replica.parameters.digest().hex()}")


if __name__ == "__main__":
    sys.exit(main())
