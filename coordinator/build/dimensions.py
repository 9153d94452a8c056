"""What config.json of a Hugging Face folder says of a model's dimensions, checked before anything is made of it."""

import math
from collections.abc import Mapping
from typing import Any

from coordinator.build.checkpoint import Checkpoint
from zo.consistency import MOST_BLOCKS

NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings")
LEFT_OUT = ("num_key_value_heads", "head_dim")  # in many models, or null
MOST = 2**31 - 1


def check(config: Mapping[str, Any]) -> None:
    """ValueError, naming the key, where a dimension is no whole number from 1 on; KeyError where one is missing."""
    for key in (*NEEDED, *(key for key in LEFT_OUT if config.get(key) is not None)):
        value, most = config[key], MOST_BLOCKS if key == "num_hidden_layers" else MOST
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(f"{key} must be a whole number from 1 to {most}, not {value!r}")


def divisible(name: str, value: int, by: str, parts: int) -> None:
    """ValueError, naming both, where a dimension does not fall into that many equal parts."""
    if value % parts:
        raise ValueError(f"{name} = {value} is not divisible by {by} = {parts}")


def match(weights: Checkpoint, tensor: str, said: Mapping[str, int]) -> None:
    """ValueError, naming both, where a tensor is not as large as the config says. said: its dimensions in order, by what they are there."""
    shape = weights.shape(tensor)
    if shape != tuple(said.values()):
        claimed = ", ".join(f"{name} = {value}" for name, value in said.items())
        raise ValueError(f"{claimed}, but tensor {tensor!r} of the model is {' x '.join(map(str, shape))}")


def positive(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number above 0. ValueError where it is none; KeyError where it is missing without a default."""
    value = config[key] if default is None else config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{key} must be a number above 0, not {value!r}")
    return float(value)
