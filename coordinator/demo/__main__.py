"""`scripts/demo`: several private devices teach one pretrained model together, on this machine, as real processes."""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator import replay
from coordinator import task as task_file
from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.config import RunConfig
from coordinator.demo import household, shares, show
from coordinator.demo.fleet import Fleet
from coordinator.demo.packaged import packaged_model
from coordinator.export import export
from zo import cli, config, examples
from zo.errors import BundleError, ConfigError, DataError, StorageError, UserError
from zo.examples import Example
from zo.manifest import PRECISIONS, TRAINABLE_SETS, Precision, Task
from zo.structure import nearest

ROUNDS = 100
MOST_AGENTS = 256  # each is a process of this machine, of some 100 MB
LOOK = 1.0  # seconds between looks at the run


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder with train, validation, test .jsonl and labels.json or task.json/.toml [household commands]"
    )
    parser.add_argument("--model", type=Path, help="Hugging Face folder [all-MiniLM-L6-v2 from a package]")
    parser.add_argument("--agents", type=int, default=8, help="devices [8]")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of training [{ROUNDS}]")
    parser.add_argument("--seed", type=int, default=0, help="of data, shares and directions [0]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--out", type=Path, help="folder for everything the demo makes [a new temporary one]")
    parser.add_argument("--trainable", choices=TRAINABLE_SETS, default="lora-fa", help="what is trained [lora-fa]")
    parser.add_argument("--precision", choices=PRECISIONS, help="of what is not trained [int8; fp32 for 'full']")
    parser.add_argument("--max-tokens", type=int, help="cut or split texts at this many tokens [the task's, or 128]")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of `edge-coordinator serve`; may be repeated"
    )
    parser.add_argument("--verbose", action="store_true", help="show where an internal error arose")
    parser.set_defaults(command=_demo)
    return cli.run(parser, arguments)


def _demo(given: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left behind
    if not 1 <= given.agents <= MOST_AGENTS or given.rounds < 1:
        raise ConfigError(f"--agents must be 1 to {MOST_AGENTS}, and --rounds at least 1")
    if not 0 <= given.seed < 2**32:
        raise ConfigError(f"--seed {given.seed} must be from 0 to 2**32 - 1")
    if given.json and not given.json.absolute().parent.is_dir():
        raise StorageError(f"the folder of --json {given.json} does not exist")
    if given.max_tokens is not None:
        task_file.check_max_tokens(given.max_tokens, "--max-tokens")
    _settings(given, given.rounds, Path())
    if given.out and given.out.exists() and not (given.out.is_dir() and not any(given.out.iterdir())):
        raise BundleError(f"--out {given.out} exists already, and holds something; choose another folder, or remove it")
    folder = given.out or Path(tempfile.mkdtemp(prefix="edge-zo-demo-"))
    task, homes = _prepare_data(given, folder / "data")
    bundle = folder / "bundle"
    print(f"{given.agents} devices, {sum(map(len, homes))} private examples; everything is kept in {folder}")
    precision: Precision = given.precision or ("fp32" if given.trainable == "full" else "int8")
    validation = folder / "data" / "validation.jsonl"
    training = Training(given.trainable, precision, run_key=given.seed)
    print(f"building the bundle ({given.trainable}, {precision}) and calibrating its probes ...", flush=True)
    build(given.model or packaged_model(), bundle, task, training, examples.read(validation, task).examples)
    fleet = Fleet(folder, bundle, _settings(given, given.rounds, folder / "data"))
    try:
        fleet.start_coordinator()
        for number, home in enumerate(homes):
            name = f"device-{number}"
            shares.write(folder / name / "data" / "private.jsonl", home)
            fleet.start_agent(name, folder / name / "data")
        _watch(fleet, given.rounds)
        fleet.wait_for_agents()
        figures = _figures(fleet)
    finally:
        fleet.stop()
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    _finish(given, folder, fleet, figures, task)


def _prepare_data(given: argparse.Namespace, folder: Path) -> tuple[Task, list[list[Example]]]:
    """The task, each device's private examples, and validation.jsonl and test.jsonl in `folder`."""
    if given.data is None:
        made = household.generate(given.seed, given.agents)
        made.write(folder)
        task = task_file.read(folder / "labels.json", given.max_tokens)
        return task, [[Example(**row) for row in home] for home in made.homes]
    if not given.data.is_dir():
        raise DataError(f"{given.data} is no folder; --data needs train.jsonl, validation.jsonl, test.jsonl and labels.json")
    sources = [given.data / name for name in ("task.json", "task.toml", "labels.json") if (given.data / name).is_file()]
    task = task_file.read(sources[0] if sources else None, given.max_tokens)
    train = given.data / "train.jsonl"
    if task.kind == "language-modelling" and train.is_file() and b'"label"' in train.read_bytes()[:1000]:
        raise DataError(f"{given.data} has labels but no labels.json: a list with one describing sentence a label, by index")
    splits = {split: examples.read(given.data / f"{split}.jsonl", task) for split in ("train", "validation", "test")}
    for split, reading in splits.items():
        print(f"{split}: {reading.summary()}")
        shares.write(folder / f"{split}.jsonl", reading.examples)
    return task, shares.divide(splits["train"].examples, given.agents, given.seed)


def _settings(given: argparse.Namespace, rounds: int, data: Path) -> dict[str, str]:
    """Of the coordinator, by name. ConfigError where a --set is none."""
    known = [name for name, _ in config.settings(RunConfig)]
    settings = {
        "rounds": str(rounds),
        "round.goal": str(given.agents),
        "round.minimum": str(-(-given.agents // 2)),
        "round.deadline": "30",
        "evaluation.validation": str(data / "validation.jsonl"),
        "evaluation.test": str(data / "test.jsonl"),
        "evaluation.every": str(max(1, rounds // 10)),
    }
    for each in given.set:
        key, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(f"--set {each!r} must be KEY=VALUE, such as rate.body=0.2")
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(f"--set {each!r}: there is no setting {key!r}{nearest(name, known)}")
        settings[name] = value
    config.from_texts(RunConfig, {"bundle": "bundle"} | settings)
    return settings


def _watch(fleet: Fleet, rounds: int) -> None:
    """Show progress until the test file has been evaluated."""
    store = fleet.store()
    run = store.runs()[0].id
    screen = show.Progress(rounds)
    while store.runs()[0].state != "finished" or replay.best_entry(store, run) not in store.evaluations(run, "test"):
        fleet.check()
        failed = [text for _, kind, text in store.events(run) if kind == "evaluation"]
        if failed:
            raise UserError(f"evaluation failed: {failed[0]}")
        screen.update(store.summaries(run), store.evaluations(run, "validation"), fleet.memory_mib(), fleet.relay.up, fleet.relay.down)
        time.sleep(LOOK)
    screen.update(
        store.summaries(run), store.evaluations(run, "validation"), fleet.memory_mib(), fleet.relay.up, fleet.relay.down, last=True
    )
    store.close()


def _figures(fleet: Fleet) -> dict[str, Any]:
    """What the run came to, from the store, the relay and the agents' own status."""
    store = fleet.store()
    run = store.runs()[0]
    summaries, tests = store.summaries(run.id), store.evaluations(run.id, "test")
    statuses = [fleet.status(name) for name in fleet.agents]
    reports = sum(summary["reports"] for summary in summaries)
    last = replay.replica(store, run, replay.opened(run)).parameters.digest().hex()
    digests = [last, *(status.get("digest") or "" for status in statuses)]
    best = replay.best_entry(store, run.id)
    return {
        "before": tests[0],
        "after": tests[best],
        "best_entry": best,
        "rounds": len(summaries),
        "probes": sum(summary["probes"] for summary in summaries),
        "seconds": round(sum(summary["seconds"] for summary in summaries), 1),
        "scalars_per_report": sum(summary["scalars"] for summary in summaries) / reports,
        "bytes_up_per_report": round(fleet.relay.up / reports, 1),
        "agent_peak_rss_mb": round(max(status.get("peak_memory_mib", 0) for status in statuses) * 2**20 / 1e6, 1),
        "digests": digests,
        "digests_equal": len(set(digests)) == 1,
    }


def _finish(given: argparse.Namespace, folder: Path, fleet: Fleet, figures: dict[str, Any], task: Task) -> None:
    """Export, plot, tables, a few sentences, and the JSON file."""
    store = fleet.store()
    run = store.runs()[0]
    bundle = replay.opened(run)
    export(bundle, replay.replica(store, run, bundle, figures["best_entry"]), run.name, folder / "exported")
    show.plot(store.summaries(run.id), store.evaluations(run.id, "validation"), folder / "loss.png")
    print(show.table(figures))
    print(show.sentences(folder / "exported", examples.read(folder / "data" / "test.jsonl", task).examples, task))
    print(f"\nloss plot: {folder / 'loss.png'}\nexported model: {folder / 'exported'}")


if __name__ == "__main__":
    sys.exit(main())
