"""`scripts/bench perturb`: what a pass of `parameters.add` over the weights costs, with and without the compiled kernel."""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from zo import kernel, kernel_numpy
from zo.timing import alternating

RUN_KEY, GROUP, UNIT = 0, 0, 2.0**-20


def options(parser: argparse.ArgumentParser, repeats: int = 9) -> None:
    parser.add_argument("--elements", type=int, default=50_000_000, help="[50000000]")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"[{repeats}]")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(given.elements, given.repeats)


def kernels() -> dict[str, ModuleType]:
    """The numpy kernel, and the compiled one where it was built."""
    found: dict[str, ModuleType] = {"numpy": kernel_numpy}
    if kernel.COMPILED:
        from zo import kernel_compiled

        found["compiled"] = kernel_compiled
    return found


def measure(elements: int, repeats: int) -> dict[str, Any]:
    """One term over `elements` floats, over numpy's `w += c` on as many: fractions of its bandwidth."""
    values, made = np.zeros(elements, np.float32), kernels()
    plain = np.zeros(elements, np.float32)
    calls: dict[str, Callable[[], Any]] = {"w += c": lambda: np.add(plain, np.float32(1e-6), out=plain)}
    calls |= {name: adding(each, values, 1) for name, each in made.items()}
    taken = dict(zip(calls, alternating(list(calls.values()), repeats), strict=True))
    fractions = {name: round(taken["w += c"] / taken[name], 3) for name in made}
    return {
        "elements": elements,
        "milliseconds": {name: round(each, 1) for name, each in taken.items()},
        "bandwidth_fraction": fractions.get("compiled"),
        "bandwidth_fraction_numpy": fractions["numpy"],
    }


def told(found: dict[str, Any]) -> str:
    """A line for every way."""
    fractions = {"w += c": 1.0, "numpy": found["bandwidth_fraction_numpy"], "compiled": found["bandwidth_fraction"]}
    taken = found["milliseconds"].items()
    return "\n".join(f"{name:10} {each:8.1f} ms {fractions[name]:8.2f} of the bandwidth of w += c" for name, each in taken)


def adding(made: ModuleType, values: np.ndarray, terms: int) -> Callable[[], None]:
    """A pass over the values with that many terms; every second one undoes the one before."""
    seeds, steps = np.arange(terms, dtype=np.uint64), np.arange(3, 3 + terms, dtype=np.int64)
    turns = itertools.cycle((steps, -steps))
    return lambda: made.add_in_place(RUN_KEY, GROUP, seeds, next(turns), values, 0, UNIT, kernel.CHUNK)
