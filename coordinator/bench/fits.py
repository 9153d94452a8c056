"""`scripts/bench fits`: how much larger a model fits without backprop, by budget of memory; as a table and a picture."""

import argparse
from pathlib import Path
from typing import Any

from zo.memory import units
from zo.memory.engine import Device
from zo.memory.fitting import largest_scaled
from zo.memory.methods import METHODS, Work

BUDGETS = tuple(256e6 * 2**power for power in range(6))  # bytes: 256 MB to 8 GB
CURVE = tuple(256e6 * 2 ** (power / 8) for power in range(41))
AGAINST = "backprop, full, Adam"
SHOWN = (
    AGAINST,
    "backprop, full, SGD",
    "backprop, LoRA, Adam",
    "backprop, LoRA, Adam, checkpoints, w4 base",
    "MeZO, full",
    "FedSPZO, adapters, int8 base",
    "FedSPZO, adapters, w4 base",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--examples", type=int, default=8, help="a step [8]")
    parser.add_argument("--tokens", type=int, default=128, help="of an example [128]")
    parser.add_argument("--plot", type=Path, help="write a picture")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(Work(given.examples, given.tokens), given.plot)


def measure(work: Work, plot: Path | None) -> dict[str, Any]:
    """Parameters of the largest model by method and budget, and times as many as backprop with Adam has. plot: file for a picture."""
    device = Device()
    largest = {name: {round(each): largest_scaled(METHODS[name], work, device, each) for each in BUDGETS} for name in METHODS}
    times = {
        name: {size: round(count / largest[AGAINST][size], 1) if largest[AGAINST][size] else None for size, count in found.items()}
        for name, found in largest.items()
    }
    if plot:
        _draw(work, device, plot)
    return {"examples": work.examples, "tokens": work.tokens, "largest_parameters": largest, "times_backprop_adam": times}


def told(found: dict[str, Any]) -> str:
    """A table for a person: millions of parameters, and in brackets times backprop's."""
    lines = [f"{found['examples']} examples of {found['tokens']} tokens; largest model, million parameters (times as many as {AGAINST})"]
    lines.append(f"{'':44}" + "".join(f"{units.told(size):>16}" for size in BUDGETS))
    for name, sizes in found["largest_parameters"].items():
        times = found["times_backprop_adam"][name]
        cells = [f"{count / 1e6:.0f} ({times[size]})" if times[size] else f"{count / 1e6:.0f}" for size, count in sizes.items()]
        lines.append(f"{name:44}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _draw(work: Work, device: Device, plot: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for name in SHOWN:
        counts = [largest_scaled(METHODS[name], work, device, each) / 1e6 for each in CURVE]
        axes.plot([each / 1e9 for each in CURVE], counts, "--" if name.startswith("backprop") else "-", label=name)
    axes.set(xscale="log", yscale="log", xlabel="memory, GB", ylabel="largest model that fits, million parameters")
    axes.set_xticks([each / 1e9 for each in BUDGETS], [units.told(each) for each in BUDGETS])
    axes.minorticks_off()
    axes.set_title(f"{work.examples} examples of {work.tokens} tokens a step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(plot)
