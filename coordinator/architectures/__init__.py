"""One file an architecture: how its blocks are computed, and the names of its weights in a Hugging Face folder.

To add one, write a class with `blocks`, `width`, `positions`, `embed`, `block`, `select` and `head` in the manner of
`bert.py`, and list it here under its config's `model_type`.
"""

from collections.abc import Callable
from typing import Any, Protocol

from coordinator.architectures.bert import Bert
from coordinator.architectures.llama import Llama
from coordinator.build.layers import Layers
from zo.manifest import Task


class Architecture(Protocol):
    """What `build.chain` asks of an architecture. blocks, width, positions: as in the model's config."""

    blocks: int
    width: int
    positions: int

    def embed(self) -> str:
        """From batch fields to hidden states [1, batch, tokens, width]."""

    def block(self, number: int, x: str) -> str:
        """One block: [P, batch, tokens, width] to the same."""

    def select(self, x: str) -> str:
        """The rows that the head needs: [P, rows, width]."""

    def head(self, x: str) -> None:
        """Logits and loss; ends the last stage."""


ARCHITECTURES: dict[str, Callable[[dict[str, Any], Layers, Task], Architecture]] = {"bert": Bert, "llama": Llama}
