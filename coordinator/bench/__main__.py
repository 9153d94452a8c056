"""`scripts/bench`: measurements as ratios inside one run; `--json` prints one object as the last line."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from coordinator.bench import scratch
from zo import cli

BENCHMARKS = {  # name: its module, what it measures
    "step": ("step", "whole training steps over two plain runs of the same base; and against PyTorch's MeZO"),
    "cost": ("cost", "what a step costs against size: tokens, directions side by side, parameters, devices"),
    "perturb": ("perturb", "one pass of parameters.add over numpy's w += c on the same count of floats"),
    "replay": ("replay", "many terms in one addition, as in catching up"),
    "linear-probe": ("linear_probe", "what logistic regression on the frozen encoder reaches, for comparison"),
    "memory": ("memory", "peak resident memory of an agent over plain inference, and of the engine by max_rows"),
    "fits": ("fits", "how much larger a model fits without backprop, by budget of memory (predicted)"),
    "equal-memory": ("equal_memory", "the whole model trained forward-only, against what backprop can train in that memory"),
    "prediction": ("prediction", "predicted against measured peak resident memory, over a grid of shapes"),
    "budget": ("budget", "an agent in one memory cgroup with a process that takes and frees memory; needs root"),
    "crash": ("crash", "kill a coordinator and agents, or cut their power, again and again; audit the ledger"),
    "catchup": ("catchup", "bytes and seconds to come back after many rounds, by entries, fold and snapshot"),
    "activation": ("activation", "what equal progress costs when devices train some blocks each, on real data"),
    "blocks": ("blocks", "which blocks each device trains: how quickly and how well random fleets are allocated"),
    "precisions": ("precisions", "time, memory and signal of every base precision; which gives most signal a second"),
    "split": ("split", "what equal progress costs plain MeZO and split perturbation, on real data"),
    "ranks": ("ranks", "one adapter for devices of unequal rank, against its peers, on real data"),
    "autopilot": ("autopilot", "runs with every setting at 'auto' against the best of a sweep by hand, on real data"),
    "fleet": ("fleet", "eight agents of which none can hold a model, and together train all of it; and the same with room"),
    "round": ("reports", "what a report costs the coordinator without the network; the commit by its reports"),
    "coordinator": ("throughput", "reports a second that one coordinator takes from a fleet, all of it connected"),
    "soak": ("soak", "devices that come, go and are revoked, hostile messages, a coordinator that dies every minute"),
    "fuzz": ("fuzz", "broken input for every parser"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. Of the benchmarks, only the one that is asked for is imported."""
    arguments = sys.argv[1:] if arguments is None else arguments
    top, commands = cli.parser("scripts/bench", __doc__ or "")
    for name, (module, text) in BENCHMARKS.items():
        parser = commands.add_parser(name, help=text)
        if name in arguments:
            benchmark = import_module(f"coordinator.bench.{module}")
            benchmark.options(parser)
            parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
            parser.set_defaults(command=partial(_run, benchmark))
    return cli.run(top, arguments)


def _run(benchmark: ModuleType, given: argparse.Namespace) -> int:
    """Its `run` makes figures in a folder, which its `told` says to a person; by its `failed`, a bar of correctness is not met.

    The last two are left out where a list of the figures will do, and where there is no such bar.
    """
    with scratch.folder(given) as folder:
        found = benchmark.run(given, folder)
    print(getattr(benchmark, "told", _listed)(found))
    if given.json:
        print(json.dumps(_finite(found), allow_nan=False))
    return int(hasattr(benchmark, "failed") and benchmark.failed(found))


def _finite(found: Any) -> Any:
    """The figures as JSON can hold them: it has no nan, which the standard error of a single seed is."""
    if isinstance(found, Mapping):
        return {key: _finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _listed(found: dict[str, Any]) -> str:
    width = max(map(len, found)) + 1
    return "\n".join(f"{key.replace('_', ' '):{width}} {value}" for key, value in found.items())


if __name__ == "__main__":
    sys.exit(main())
