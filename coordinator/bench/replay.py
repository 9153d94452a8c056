"""`scripts/bench replay`: many terms in one pass over the weights, as in catching up, with and without the compiled kernel."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.bench import perturb
from coordinator.bench.perturb import adding, kernels
from zo.timing import alternating

REPLAYED = 32  # terms in one addition


def options(parser: argparse.ArgumentParser) -> None:
    perturb.options(parser, repeats=3)


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(given.elements, given.repeats)


def measure(elements: int, repeats: int) -> dict[str, Any]:
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


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    text = f"{found['terms']} terms over {found['elements']:,} values, ns a value and term:\n"
    return text + f"compiled {found['ns_per_element_term']}, numpy {found['ns_per_element_term_numpy']}"
