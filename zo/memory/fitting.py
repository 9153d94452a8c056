"""What fits into a budget: the largest model, count of directions, batch and length; the largest runs of a bundle."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from zo.memory.engine import Device
from zo.memory.methods import Method, Work
from zo.memory.shapes import ModelShape, scaled

WIDEST, STEP = 1 << 14, 16


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest count up to `most` that fits, where all below one that fits do; 0 where none does."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_model(method: Method, work: Work, device: Device, budget: float, family: Mapping[str, ModelShape]) -> str:
    """The name of the model with most parameters that fits; empty where none does."""
    fitting = [name for name, model in family.items() if method(model, work, device).total <= budget]
    return max(fitting, key=lambda name: family[name].parameters, default="")


def largest_scaled(method: Method, work: Work, device: Device, budget: float) -> int:
    """Parameters of the largest Llama of any width that fits (`shapes.scaled`); 0 where none does."""
    width = STEP * largest(lambda count: method(scaled(STEP * count), work, device).total <= budget, WIDEST // STEP)
    return scaled(width).parameters if width else 0


def most_directions(method: Method, model: ModelShape, work: Work, device: Device, budget: float, most: int = 4096) -> int:
    """Side by side."""
    return largest(lambda count: method(model, replace(work, directions=max(1, count)), device).total <= budget, most)


def most_examples(method: Method, model: ModelShape, work: Work, device: Device, budget: float, most: int = 4096) -> int:
    """In a batch."""
    return largest(lambda count: method(model, replace(work, examples=max(1, count)), device).total <= budget, most)


def most_tokens(method: Method, model: ModelShape, work: Work, device: Device, budget: float) -> int:
    """Of an example, up to the positions that the model has."""
    return largest(lambda count: method(model, replace(work, tokens=max(1, count)), device).total <= budget, model.positions)
