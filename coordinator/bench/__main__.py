"""`scripts/bench`: measurements as ratios inside one run; `--json` prints one object as the last line."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zo import cli
from zo.errors import ConfigError
from zo.manifest import PRECISIONS, TRAINABLE_SETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    top, commands = cli.parser("scripts/bench", __doc__ or "")
    step = commands.add_parser("step", help="whole training steps over two plain runs of the same base; and against PyTorch's MeZO")
    step.add_argument("--peer", choices=["mezo-torch"], help="compare with it; torch must be installed")
    step.add_argument("--repeats", type=int, default=15, help="[15]")
    step.set_defaults(command=_step)
    cost = commands.add_parser("cost", help="what a step costs against size: tokens, directions side by side, parameters, devices")
    cost.add_argument("--repeats", type=int, default=9, help="[9]")
    cost.set_defaults(command=_cost)
    perturb = commands.add_parser("perturb", help="one pass of parameters.add over numpy's w += c on the same count of floats")
    perturb.set_defaults(command=_perturb)
    replay = commands.add_parser("replay", help="many terms in one addition, as in catching up")
    replay.set_defaults(command=_replay)
    for command, repeats in ((perturb, 9), (replay, 3)):
        command.add_argument("--elements", type=int, default=50_000_000, help="[50000000]")
        command.add_argument("--repeats", type=int, default=repeats, help=f"[{repeats}]")
    probe = commands.add_parser("linear-probe", help="what logistic regression on the frozen encoder reaches, for comparison")
    probe.add_argument("bundle", type=Path, help="as built by scripts/demo (OUT/bundle)")
    probe.add_argument("--data", type=Path, required=True, help="folder with train, validation and test .jsonl")
    probe.set_defaults(command=_linear_probe)
    memory = commands.add_parser("memory", help="peak resident memory of an agent over plain inference, and of the engine by max_rows")
    memory.add_argument("--max-rows", type=int, nargs="+", default=[128, 256, 384, 768, 1536], help="[128 256 384 768 1536]")
    memory.set_defaults(command=_memory)
    fits = commands.add_parser("fits", help="how much larger a model fits without backprop, by budget of memory (predicted)")
    fits.add_argument("--examples", type=int, default=8, help="a step [8]")
    fits.add_argument("--tokens", type=int, default=128, help="of an example [128]")
    fits.add_argument("--plot", type=Path, help="write a picture")
    fits.set_defaults(command=_fits)
    equal = commands.add_parser("equal-memory", help="the whole model trained forward-only, against what backprop can train in that memory")
    equal.add_argument("--data", type=Path, required=True, help="folder with train, validation .jsonl and labels.json")
    equal.add_argument("--precision", choices=PRECISIONS, default="int8", help="of the forward-only run [int8]")
    equal.add_argument(
        "--memory", type=float, default=0.0, metavar="MB", help="for backprop, beyond imports [what the forward-only run took]"
    )
    equal.add_argument("--seconds", type=float, default=60.0, help="of training, each [60]")
    equal.add_argument("--plot", type=Path, help="write a picture of accuracy over time")
    equal.set_defaults(command=_equal_memory)
    prediction = commands.add_parser("prediction", help="predicted against measured peak resident memory, over a grid of shapes")
    prediction.set_defaults(command=_prediction)
    budget = commands.add_parser("budget", help="an agent in one memory cgroup with a process that takes and frees memory; needs root")
    budget.add_argument("--rounds", type=int, default=100, help="[100]")
    budget.set_defaults(command=_budget)
    crash = commands.add_parser("crash", help="kill a coordinator and agents, or cut their power, again and again; audit the ledger")
    crash.add_argument("--kills", type=int, default=200, help="kills, and as many power losses [200]")
    crash.add_argument("--seed", type=int, default=0, help="[0]")
    crash.add_argument("--keep", type=Path, metavar="FOLDER", help="leave stores, logs and notes in this new folder")
    crash.set_defaults(command=_crash)
    catchup = commands.add_parser("catchup", help="bytes and seconds to come back after many rounds, by entries, fold and snapshot")
    catchup.add_argument("--bundle", type=Path, help="folder of a bundle [all-MiniLM-L6-v2, lora]")
    catchup.add_argument("--rounds", type=int, default=10_000, help="[10000]")
    catchup.add_argument("--reports", type=int, default=8, help="a round [8]")
    catchup.add_argument("--pool", type=int, default=4096, help="seeds that the run shares; 0: every round its own [4096]")
    catchup.set_defaults(command=_catchup)
    activation = commands.add_parser("activation", help="what equal progress costs when devices train some blocks each, on real data")
    activation.add_argument("--data", type=Path, required=True, help="folder with train, validation .jsonl and labels.json")
    _add_model(activation)
    activation.add_argument("--precision", choices=PRECISIONS, default="int8", help="[int8]")
    activation.add_argument("--rounds", type=int, default=50, help="of 8 devices with all blocks, 2 probes each [50]")
    activation.add_argument("--seeds", type=int, default=8, help="[8]")
    activation.add_argument("--rates", type=float, nargs="+", default=[1, 2, 4, 8], help="times the default, of all sides [1 2 4 8]")
    activation.set_defaults(command=_activation)
    blocks = commands.add_parser("blocks", help="which blocks each device trains: how quickly and how well random fleets are allocated")
    blocks.add_argument("--devices", type=int, default=1000, help="of the large fleet [1000]")
    blocks.add_argument("--slack", type=float, default=0.05, help="of the convergence proxy, for less memory [0.05]")
    blocks.set_defaults(command=_blocks)
    precisions = commands.add_parser("precisions", help="time, memory and signal of every base precision; which gives most signal a second")
    precisions.add_argument("--data", type=Path, required=True, help="folder with train, validation .jsonl and labels.json")
    _add_model(precisions)
    precisions.add_argument("--trainable", choices=[each for each in TRAINABLE_SETS if each != "full"], default="lora-fa", help="[lora-fa]")
    precisions.add_argument("--repeats", type=int, default=15, help="[15]")
    precisions.set_defaults(command=_precisions)
    split = commands.add_parser("split", help="what equal progress costs plain MeZO and split perturbation, on real data")
    split.add_argument("--data", type=Path, required=True, help="folder with train, validation .jsonl and, for classification, labels.json")
    _add_model(split)
    split.add_argument("--trainable", choices=TRAINABLE_SETS, default="lora-fa", help="[lora-fa]")
    split.add_argument("--precision", choices=PRECISIONS, help="[int8; fp32 for 'full']")
    split.add_argument("--max-tokens", type=int, default=64, help="[64]")
    split.add_argument("--seeds", type=int, default=3, help="for the savings [3]")
    split.add_argument("--body-seeds", type=int, default=5, help="for what the body gains over the head alone; 0: not measured [5]")
    split.add_argument("--rounds", type=int, default=100, help="of 8 devices, 2 probes each [100]")
    split.add_argument("--stages", type=int, help="that the blocks are cut into [2]")
    split.add_argument("--cuts", type=int, nargs="+", default=[], help="stages at which parts begin [planned]")
    split.add_argument("--counts", type=int, nargs="+", default=[], help="directions of those parts")
    split.add_argument("--directions", type=int, default=1, help="of the lowest part [1]")
    split.add_argument("--joint", action="store_true", help="the joint form")
    split.add_argument("--clean", action="store_true", help="the clean form")
    split.add_argument("--rates", type=float, nargs="+", default=[0.5, 1, 2, 4, 8], help="times the default, of both sides [0.5 1 2 4 8]")
    split.add_argument("--batches", type=int, nargs="+", default=[8], help="examples in a batch, of both sides [8]")
    split.add_argument("--long", type=int, default=0, metavar="ROUNDS", help="compare a run of so many with the linear probe")
    split.add_argument("--long-rate", type=float, default=1.0, help="its rate, times the default [1]")
    split.add_argument("--plot", type=Path, help="write a picture of loss against compute")
    split.set_defaults(command=_split)
    ranks = commands.add_parser("ranks", help="one adapter for devices of unequal rank, against its peers, on real data")
    ranks.add_argument("--data", type=Path, required=True, help="folder as of 'split'")
    _add_model(ranks)
    ranks.add_argument("--precision", choices=PRECISIONS, default="int8", help="[int8]")
    ranks.add_argument("--max-tokens", type=int, default=32, help="[32]")
    ranks.add_argument("--seeds", type=int, default=5, help="[5]")
    ranks.add_argument("--rounds", type=int, default=80, help="of 8 devices, 2 probes each [80]")
    ranks.add_argument("--repeats", type=int, default=25, help="of the steps that are timed, by rank [25]")
    ranks.set_defaults(command=_ranks)
    autopilot = commands.add_parser("autopilot", help="runs with every setting at 'auto' against the best of a sweep by hand, on real data")
    autopilot.add_argument("--data", type=Path, action="append", required=True, help="folder as of 'split'; may be repeated")
    _add_model(autopilot)
    autopilot.add_argument("--seeds", type=int, default=3, help="[3]")
    autopilot.add_argument("--rounds", type=int, default=40, help="of 8 devices, 2 probes each [40]")
    autopilot.add_argument("--max-tokens", type=int, default=32, help="[32]")
    autopilot.set_defaults(command=_autopilot)
    fleet = commands.add_parser(
        "fleet", help="eight agents of which none can hold a model, and together train all of it; and the same with room"
    )
    fleet.add_argument("--rounds", type=int, default=6, help="[6]")
    fleet.add_argument("--base", choices=("fp32", "w4"), default="fp32", help="of the agents with room for all blocks [fp32]")
    fleet.add_argument("--keep", type=Path, metavar="FOLDER", help="leave bundle, stores and logs in this new folder")
    fleet.set_defaults(command=_fleet)
    a_round = commands.add_parser("round", help="what a report costs the coordinator without the network; the commit by its reports")
    a_round.add_argument("--reports", type=int, default=2000, help="a round [2000]")
    a_round.add_argument("--repeats", type=int, default=5, help="[5]")
    a_round.set_defaults(command=_round)
    coordinator = commands.add_parser("coordinator", help="reports a second that one coordinator takes from a fleet, all of it connected")
    coordinator.add_argument("--agents", type=int, default=5000, help="[5000]")
    coordinator.add_argument("--rounds", type=int, default=5, help="of one report an agent [5]")
    coordinator.add_argument("--at-once", type=int, default=256, help="calls under way [256]")
    coordinator.set_defaults(command=_coordinator)
    for command in (a_round, coordinator):
        command.add_argument("--bundle", type=Path, help="folder of a bundle [all-MiniLM-L6-v2, lora]")
        command.add_argument("--disk", type=Path, metavar="FOLDER", help="on the disk that is synced to [where temporary files go]")
    soak = commands.add_parser("soak", help="devices that come, go and are revoked, hostile messages, a coordinator that dies every minute")
    soak.add_argument("--minutes", type=float, default=10.0, help="[10]")
    soak.add_argument("--keep", type=Path, metavar="FOLDER", help="leave stores and logs in this new folder")
    soak.set_defaults(command=_soak)
    fuzz = commands.add_parser("fuzz", help="broken input for every parser")
    fuzz.add_argument("--minutes", type=float, default=1.0, help="[1]")
    fuzz.add_argument("--seed", type=int, default=0, help="[0]")
    fuzz.set_defaults(command=_fuzz)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return cli.run(top, arguments)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="Hugging Face folder [all-MiniLM-L6-v2 from a package]")


def _step(given: argparse.Namespace) -> None:
    from coordinator.bench import step

    if given.peer and find_spec("torch") is None:
        raise ConfigError("--peer mezo-torch needs torch: .venv/bin/python -m pip install torch==2.13.0")
    with tempfile.TemporaryDirectory() as scratch:
        found = step.measure(step.build_all(Path(scratch)), given.repeats, bool(given.peer))
    _show(given, step.told(found), found)


def _cost(given: argparse.Namespace) -> None:
    from coordinator.bench import cost

    found = cost.measure(given.repeats)
    _show(given, cost.told(found), found)


def _perturb(given: argparse.Namespace) -> None:
    from coordinator.bench import perturb

    found = perturb.perturb(given.elements, given.repeats)
    taken = found["milliseconds"]
    lines = [f"{name:10} {each:8.1f} ms {taken['w += c'] / each:8.2f} of the bandwidth of w += c" for name, each in taken.items()]
    _show(given, "\n".join(lines), found)


def _replay(given: argparse.Namespace) -> None:
    from coordinator.bench import perturb

    found = perturb.replay(given.elements, given.repeats)
    text = f"{found['terms']} terms over {found['elements']:,} values, ns a value and term:\n"
    _show(given, text + f"compiled {found['ns_per_element_term']}, numpy {found['ns_per_element_term_numpy']}", found)


def _memory(given: argparse.Namespace) -> None:
    from coordinator.bench import memory

    found = memory.measure(given.max_rows)
    _show(given, memory.told(found), found)


def _fits(given: argparse.Namespace) -> None:
    from coordinator.bench import fits
    from zo.memory.methods import Work

    found = fits.measure(Work(given.examples, given.tokens), given.plot)
    _show(given, fits.told(found), found)


def _equal_memory(given: argparse.Namespace) -> None:
    from coordinator import task as task_file
    from coordinator.bench import equal_memory, split
    from coordinator.build.layers import Training
    from coordinator.demo.packaged import packaged_model

    if find_spec("torch") is None:
        raise ConfigError("equal-memory needs torch: .venv/bin/python -m pip install torch==2.13.0")
    task = task_file.read(given.data / "labels.json", 64)
    with tempfile.TemporaryDirectory() as scratch:
        training = Training("lora-fa", given.precision)
        bundle = split.build_bundle(packaged_model(), Path(scratch) / "bundle", given.data, task, training)
        found = equal_memory.measure(bundle.folder, packaged_model(), given.data, given.seconds, given.memory, given.plot)
    _show(given, equal_memory.told(found), found)


def _prediction(given: argparse.Namespace) -> None:
    from coordinator.bench import prediction

    found = prediction.measure()
    _show(given, prediction.told(found), found)


def _budget(given: argparse.Namespace) -> int:
    from coordinator.bench import budget

    found = budget.measure(given.rounds)
    _show(given, budget.told(found), found)
    kept = not found["oom_kills"] and found["over_budget_minus_micro_batch_mb"] <= 0 and found["digests_equal"]
    return int(not (kept and found["sheds"] and found["rounds_completed"]))


def _crash(given: argparse.Namespace) -> int:
    from coordinator.bench import crash

    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch) / "crash"
        folder.mkdir(parents=True)
        found = crash.measure(given.kills, folder, given.seed)
    _show(given, "\n".join(f"{key.replace('_', ' '):18} {value}" for key, value in found.items()), found)
    return int(any(found[key] for key in ("lost_commits", "lost_reports", "double_counted", "digest_mismatches")))


def _soak(given: argparse.Namespace) -> int:
    from coordinator.bench import soak

    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch) / "soak"
        folder.mkdir(parents=True)
        found = soak.measure(given.minutes, folder)
    _show(given, "\n".join(f"{key.replace('_', ' '):22} {value}" for key, value in found.items()), found)
    return int(found["leaked_mb"] > 5 or found["lost_commits"] > 0 or found["unauthorised_accepted"] > 0)


def _fuzz(given: argparse.Namespace) -> int:
    from coordinator.bench import fuzz

    with tempfile.TemporaryDirectory() as scratch:
        found = fuzz.measure(given.minutes * 60, given.seed, Path(scratch))
    _show(given, fuzz.told(found), found)
    return int(found["failures"] > 0)


def _catchup(given: argparse.Namespace) -> None:
    from coordinator.bench import catchup

    with tempfile.TemporaryDirectory() as scratch:
        bundle = given.bundle or catchup.build_bundle(Path(scratch) / "bundle")
        found = catchup.measure(bundle, given.rounds, given.reports, given.pool, Path(scratch))
    _show(given, catchup.told(found), found)


def _activation(given: argparse.Namespace) -> None:
    from coordinator import task as task_file
    from coordinator.bench import activation, split
    from coordinator.build.layers import Training
    from coordinator.demo.packaged import packaged_model

    model, task = given.model or packaged_model(), task_file.read(given.data / "labels.json", 64)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = split.build_bundle(model, Path(scratch) / "bundle", given.data, task, Training("lora-fa", given.precision), 6)
        found = activation.measure(activation.Fleets(bundle, given.data, given.rounds), given.seeds, given.rates)
    _show(given, activation.told(found), found)


def _blocks(given: argparse.Namespace) -> None:
    from coordinator.bench import blocks

    if given.devices < 1 or not 0 < given.slack < 10:
        raise ConfigError("--devices must be at least 1, and --slack above 0 and below 10")
    found = blocks.measure(given.devices, given.slack)
    _show(given, blocks.told(found), found)


def _precisions(given: argparse.Namespace) -> None:
    from coordinator import task as task_file
    from coordinator.bench import precisions
    from coordinator.demo.packaged import packaged_model
    from zo import examples

    task = task_file.read(given.data / "labels.json")
    held_out, private = (examples.read(given.data / f"{split}.jsonl", task).examples for split in ("validation", "train"))
    with tempfile.TemporaryDirectory() as scratch:
        bundle = precisions.build_all(given.model or packaged_model(), Path(scratch) / "bundle", task, given.trainable, held_out)
        found = precisions.measure(bundle, private, given.repeats)
    _show(given, precisions.told(found), found)


def _split(given: argparse.Namespace) -> None:
    from coordinator import task as task_file
    from coordinator.bench import split
    from coordinator.bench.fleets import Fleets
    from coordinator.build.layers import Training
    from coordinator.demo.packaged import packaged_model
    from zo.plan import Shape

    task = task_file.of_data(given.data, given.max_tokens)
    training = Training(given.trainable, given.precision or ("fp32" if given.trainable == "full" else "int8"))
    with tempfile.TemporaryDirectory() as scratch:
        bundle = split.build_bundle(given.model or packaged_model(), Path(scratch) / "bundle", given.data, task, training, given.stages)
        stated = (
            Shape((given.directions, *given.counts), tuple(given.cuts), given.joint, given.clean) if given.cuts or given.clean else None
        )
        fleets = Fleets(bundle, given.data, given.rounds, stated)
        found = split.measure(fleets, given.seeds, given.body_seeds, given.plot, given.rates, given.batches)
        if given.long:
            found |= split.long_run(bundle, given.data, given.long, stated, given.long_rate)
    _show(given, split.told(found), found)


def _autopilot(given: argparse.Namespace) -> None:
    from coordinator.bench import autopilot
    from coordinator.demo.packaged import packaged_model

    found = autopilot.measure(given.data, given.model or packaged_model(), given.seeds, given.rounds, given.max_tokens)
    _show(given, autopilot.told(found), found)


def _fleet(given: argparse.Namespace) -> int:
    from coordinator.bench import fleet

    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch) / "fleet"
        folder.mkdir(parents=True)
        found = fleet.measure(folder, fleet.BERT_BASE, given.rounds, given.base)
    _show(given, fleet.told(found), found)
    return int(not found["digests_equal"] or found["over_budget_mb"] > 0 or not found["all_blocks_covered"])


def _ranks(given: argparse.Namespace) -> None:
    from coordinator import task as task_file
    from coordinator.bench import rank_costs, rank_sides, ranks
    from coordinator.build.build import build
    from coordinator.build.layers import Training
    from coordinator.demo.packaged import packaged_model
    from zo.bundle import open_bundle

    task = task_file.of_data(given.data, given.max_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        model = given.model or packaged_model()
        fleets = ranks.Fleets(model, Path(scratch), given.data, task, given.precision, given.rounds)
        found = ranks.measure(fleets, given.seeds) | {"by_rank": rank_costs.measure(fleets.bundles[rank_sides.RANKS], given.repeats)}
        if not given.model:
            build(model, Path(scratch) / "large", task, Training(precision=given.precision, ranks=ranks.LARGE), [])
            found["by_large_rank"] = rank_costs.measure(open_bundle(Path(scratch) / "large"), given.repeats)
    _show(given, ranks.told(found), found)


def _round(given: argparse.Namespace) -> None:
    from coordinator.bench import catchup, reports

    with tempfile.TemporaryDirectory(dir=given.disk) as scratch:
        bundle = given.bundle or catchup.build_bundle(Path(scratch) / "bundle")
        found = reports.measure(bundle, given.reports, given.repeats, Path(scratch))
    _show(given, reports.told(found), found)


def _coordinator(given: argparse.Namespace) -> None:
    from coordinator.bench import catchup, throughput

    with tempfile.TemporaryDirectory(dir=given.disk) as scratch:
        bundle = given.bundle or catchup.build_bundle(Path(scratch) / "bundle")
        found = throughput.measure(bundle, given.agents, given.rounds, given.at_once, Path(scratch))
    _show(given, throughput.told(found), found)


def _linear_probe(given: argparse.Namespace) -> None:
    from coordinator.bench import linear_probe

    found = linear_probe.measure(given.bundle, given.data)
    _show(given, linear_probe.told(found), found)


def _show(given: argparse.Namespace, text: str, found: dict[str, Any]) -> None:
    """The figures for a person and, where that is asked for, as one JSON object behind."""
    print(text)
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
