"""`scripts/bench perturb` and `replay`: what a pass of `parameters.add` over the weights costs, with and without the compiled kernel."""

import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from zo import kernel, kernel_numpy
from zo.timing import alternating

RUN_KEY, GROUP, UNIT = 0, 0, 2.0**-20
REPLAYED = 32  # terms in one addition


def kernels() -> dict[str, ModuleType]:
    """The numpy kernel, and the compiled one where it was built."""
    found: dict[str, ModuleType] = {"numpy": kernel_numpy}
    if kernel.COMPILED:
        from zo import kernel_compiled

        found["compiled"] = kernel_compiled
    return found


def perturb(elements: int, repeats: int) -> dict[str, Any]:
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


def replay(elements: int, repeats: int) -> dict[str, Any]:
    """Many terms in one addition, as in catching up: nanoseconds a value and term, on one core."""
    values, made = np.zeros(elements, np.float32), kernels()
    taken = alternating([adding(each, values, REPLAYED) for each in made.values()], repeats)
    per_term = {name: round(each * 1e6 / elements / REPLAYED, 3) for name, each in zip(made, taken, strict=True)}
    return {
        "elements": elements,
        "terms": REPLAYED,
        "ns_per_element_term": per_term.get("compiled"),
        "ns_per_element_term_numpy": per_term["numpy"],
    }


def adding(made: ModuleType, values: np.ndarray, terms: int) -> Callable[[], None]:
    """A pass over the values with that many terms; every second one undoes the one before."""
    seeds, steps = np.arange(terms, dtype=np.uint64), np.arange(3, 3 + terms, dtype=np.int64)
    turns = itertools.cycle((steps, -steps))
    return lambda: made.add_in_place(RUN_KEY, GROUP, seeds, next(turns), values, 0, UNIT, kernel.CHUNK)
