"""`scripts/bench split`: what equal progress costs plain MeZO and FedSPZO (arXiv 2502.10239), in simulated fleets on real data.

Cost is counted in forward passes of the full model on EXAMPLES examples, and in seconds of the devices' work. Both sides get the
same data, shares and probe sizes, as many forward passes, and each the best rate and batch size of the same sweep.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator import task as task_file
from coordinator.bench import linear_probe, workload
from coordinator.bench.fleets import DEVICES, EXAMPLES, TURNS, Fleets, Trace
from coordinator.bench.standard_error import standard_error
from coordinator.build.layers import Training
from zo.bundle import Bundle
from zo.manifest import PRECISIONS, TRAINABLE_SETS
from zo.plan import Shape

SWEEP = (0.5, 1, 2, 4, 8)  # times the default rate


def options(parser: argparse.ArgumentParser) -> None:
    workload.add_data(parser, "folder with train, validation .jsonl and, for classification, labels.json")
    workload.add_model(parser)
    parser.add_argument("--trainable", choices=TRAINABLE_SETS, default="lora-fa", help="[lora-fa]")
    parser.add_argument("--precision", choices=PRECISIONS, help="[int8; fp32 for 'full']")
    parser.add_argument("--max-tokens", type=int, default=64, help="[64]")
    parser.add_argument("--seeds", type=int, default=3, help="for the savings [3]")
    parser.add_argument("--body-seeds", type=int, default=5, help="for what the body gains over the head alone; 0: not measured [5]")
    parser.add_argument("--rounds", type=int, default=100, help="of 8 devices, 2 probes each [100]")
    parser.add_argument("--stages", type=int, help="that the blocks are cut into [2]")
    parser.add_argument("--cuts", type=int, nargs="+", default=[], help="stages at which parts begin [planned]")
    parser.add_argument("--counts", type=int, nargs="+", default=[], help="directions of those parts")
    parser.add_argument("--directions", type=int, default=1, help="of the lowest part [1]")
    parser.add_argument("--joint", action="store_true", help="the joint form")
    parser.add_argument("--clean", action="store_true", help="the clean form")
    parser.add_argument("--rates", type=float, nargs="+", default=SWEEP, help="times the default, of both sides [0.5 1 2 4 8]")
    parser.add_argument("--batches", type=int, nargs="+", default=[EXAMPLES], help=f"examples in a batch, of both sides [{EXAMPLES}]")
    parser.add_argument("--long", type=int, default=0, metavar="ROUNDS", help="compare a run of so many with the linear probe")
    parser.add_argument("--long-rate", type=float, default=1.0, help="its rate, times the default [1]")
    parser.add_argument("--plot", type=Path, help="write a picture of loss against compute")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    task = task_file.of_data(given.data, given.max_tokens)
    training = Training(given.trainable, given.precision or ("fp32" if given.trainable == "full" else "int8"))
    bundle = workload.build_bundle(workload.model(given), folder / "bundle", given.data, task, training, given.stages)
    stated = Shape((given.directions, *given.counts), tuple(given.cuts), given.joint, given.clean) if given.cuts or given.clean else None
    fleets = Fleets(bundle, given.data, given.rounds, stated)
    found = measure(fleets, given.seeds, given.body_seeds, given.plot, given.rates, given.batches)
    return found | (long_run(bundle, given.data, given.long, stated, given.long_rate) if given.long else {})


def savings(
    fleets: Fleets, seeds: Sequence[int], rates: Sequence[float] = SWEEP, batches: Sequence[int] = (EXAMPLES,)
) -> tuple[list[dict[str, Any]], list[Trace]]:
    """By seed: the loss that plain MeZO comes to at its best rate and batch size, and what that loss costs both sides. And all runs."""
    found, traces = [], []
    sweep = [(rate, batch) for batch in batches for rate in rates]
    for seed in seeds:
        sides = {"mezo": [fleets.run(fleets.plain, seed, rate, batch=batch) for rate, batch in sweep]}
        target = min(min(trace.losses) for trace in sides["mezo"])
        sides["fedspzo"] = [fleets.run(fleets.shape, seed, rate, batch=batch, target=target) for rate, batch in sweep]
        best = {name: min(each, key=lambda trace: trace.cost(target)) for name, each in sides.items()}
        (plain, plain_seconds), (cut, cut_seconds) = (best[name].cost(target) for name in ("mezo", "fedspzo"))
        row = {"seed": seed, "loss": round(target, 4), "forwards": {"mezo": round(plain, 1), "fedspzo": round(cut, 1)}}
        row |= {"rate": {name: each.rate for name, each in best.items()}, "batch": {name: each.examples for name, each in best.items()}}
        row |= {"saving": round(plain / cut, 2), "saving_seconds": round(plain_seconds / cut_seconds, 2)}
        found.append(row | {"tried": {name: [each.least() for each in runs] for name, runs in sides.items()}})
        traces += [trace for each in sides.values() for trace in each]
    return found, traces


def body_gain(fleets: Fleets, seeds: Sequence[int]) -> dict[str, Any]:
    """Validation loss with the head's directions only, less that with both, at equal probes and batches; paired by seed."""

    def loss(seed: int, body: float) -> float:
        return fleets.run(fleets.shape, seed, 1.0, body, rounds=fleets.rounds, looks=()).losses[-1]

    losses = [[loss(seed, body) for body in (0.0, 1.0)] for seed in seeds]
    gains = [head - both for head, both in losses]
    mean = {"mean": round(statistics.fmean(gains), 4), "se": round(standard_error(gains), 4)}
    return mean | {"losses": {"head only": [round(each[0], 4) for each in losses], "both": [round(each[1], 4) for each in losses]}}


def long_run(bundle: Bundle, data: Path, rounds: int, shape: Shape | None, rate: float) -> dict[str, Any]:
    """What a long run comes to on the whole validation file, beside the best linear probe by that file: gradients, all the data."""
    fleets = Fleets(bundle, data, rounds, shape, most=0)
    trace = fleets.run(fleets.shape, 0, rate, rounds=rounds, looks=())
    probe = linear_probe.measure(bundle.folder, data)["validation"]["loss"]
    return {"long_rounds": rounds, "long_rate": rate, "final_loss": round(trace.losses[-1], 4), "linear_probe_loss": probe}


def measure(
    fleets: Fleets,
    seeds: int,
    body_seeds: int,
    plot: Path | None,
    rates: Sequence[float] = SWEEP,
    batches: Sequence[int] = (EXAMPLES,),
) -> dict[str, Any]:
    """All but the long run. plot: where a picture of loss against compute is written."""
    found: dict[str, Any] = {"shape": dataclasses.asdict(fleets.shape), "rounds": fleets.rounds, "devices": DEVICES}
    found |= fleets.measured(TURNS)
    rows, traces = savings(fleets, range(seeds), rates, batches) if seeds else ([], [])
    if rows:
        found |= {"savings": rows, "median_saving": statistics.median(row["saving"] for row in rows)}
    if body_seeds:
        found["body_gain"] = body_gain(fleets, range(body_seeds))
    if plot and traces:
        draw(traces, plot)
    return found


def draw(traces: Sequence[Trace], path: Path) -> None:
    """Validation loss against full forward passes; a line a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for trace in traces:
        colour, label = (
            ("tab:orange", "plain MeZO")
            if trace.shape == Shape(trace.shape.counts[:1])
            else ("tab:blue", "FedSPZO, until it has its best loss")
        )
        axes.plot(trace.forwards[1:], trace.losses[1:], color=colour, alpha=0.6, label=label)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys(), loc="upper right")
    axes.set(
        xlabel=f"forward passes of the full model on {EXAMPLES} examples (all devices)",
        ylabel="validation loss, nats",
        xscale="log",
        yscale="log",
    )
    axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    shape = found["shape"]
    form = "".join(f", {name}" for name in ("joint", "clean") if shape[name])
    lines = [f"directions {' x '.join(map(str, shape['counts']))}, cut before stages {list(shape['cuts'])}{form}"]
    lines.append(
        f"a split step over a plain one: {found['forward_ratio']} of its forward passes (predicted {found['forward_ratio_predicted']}),"
    )
    lines.append(f"  {found['time_ratio']} of its time")
    for row in found.get("savings", []):
        settings = {name: f"rate x {row['rate'][name]:g}, batches of {row['batch'][name]}" for name in ("mezo", "fedspzo")}
        sides = {name: f"{row['forwards'][name]} forward passes ({each})" for name, each in settings.items()}
        lines.append(f"seed {row['seed']}: validation loss {row['loss']} for {sides['mezo']} of plain MeZO")
        lines.append(f"  and {sides['fedspzo']} of FedSPZO: {row['saving']} times as many")
    if "median_saving" in found:
        lines.append(f"median saving: {found['median_saving']}")
    if "body_gain" in found:
        gain = found["body_gain"]
        lines.append(f"validation loss that the body gains over the head alone: {gain['mean']} +- {gain['se']}")
        lines += [f"  {name}: {each}" for name, each in gain["losses"].items()]
    if "final_loss" in found:
        rounds, losses = found["long_rounds"], f"{found['final_loss']}; the linear probe's {found['linear_probe_loss']}"
        lines.append(f"loss on the whole validation file after {rounds} rounds at rate x {found['long_rate']:g}: {losses}")
    return "\n".join(lines)
