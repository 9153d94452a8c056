"""What our engine takes: forward passes only, through ONNX Runtime (docs/memory.md derives the formulas)."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zo import ranks
from zo.memory.shapes import ModelShape, table_bytes, weight_bytes
from zo.memory.units import FLOAT

if TYPE_CHECKING:
    from zo.manifest import Manifest

HEAD_ROOM = 8 << 20  # bytes that the branches of the head may take in one run
SESSIONS = 15_000_000  # bytes of sessions without their weights, and of the kernels that they run
SCORES = 2  # of attention are held at once: as they are, and masked or normalised


@dataclass(frozen=True)
class Need:
    """Bytes at the peak, by term.

    imports: the process with its libraries, sessions without weights. base: weights that are never trained, of the active blocks.
    trainables: what is trained, its branches or gradients. optimiser: its state. activations: of one run. logits: and the loss.
    caches: outputs that are kept between runs.
    """

    imports: int
    base: int
    trainables: int
    optimiser: int
    activations: int
    logits: int
    caches: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Device:
    """What is the same for all models on a device, or was measured of one of them there.

    imports: bytes resident before any weights. hidden: hidden states of a row that are held at once beside the widest values of
    a block; None: as usual for the precision. The defaults were measured on x86-64 with onnxruntime 1.32.
    """

    imports: int = 73_000_000 + SESSIONS
    hidden: float | None = None

    def held(self, precision: str) -> float:
        """Hidden states of a row that are held at once."""
        return self.hidden if self.hidden is not None else USUAL_HIDDEN[precision]


USUAL_HIDDEN = {"fp32": 10.0, "w8": 10.0, "w4": 6.5, "int8": 6.5}


def row_bytes(model: ModelShape, tokens: int, hidden: float) -> float:
    """Bytes that a row (a token of an example in a branch) takes while one block runs, texts being `tokens` long.

    The feed-forward part and attention follow each other, so the larger of the two counts.
    """
    feed_forward = (2 + model.gated) * model.feed_forward
    attention = SCORES * model.heads * tokens
    return FLOAT * (max(feed_forward, attention) + hidden * model.width)


def base_bytes(model: ModelShape, precision: str) -> int:
    """The base with its tables.

    Matrices are packed into private memory; tables stay mapped, and count in full, as where every word has been met.
    """
    packed = weight_bytes(precision, model.blocks * model.block_weights + model.head_weights, model.width)
    return packed + table_bytes(precision, model.tables, model.width)


def need(
    manifest: "Manifest",
    rows: int,
    tokens: int,
    device: Device,
    kept: int = 0,
    pairs: int = 1,
    head: int = 0,
    active: int | None = None,
    rank: int = 0,
) -> Need:
    """Of an agent that trains a bundle: runs of `rows` rows, texts of `tokens` tokens; `pairs` directions side by side.

    Of weights that are trained in place, those of a block are held twice for a moment, when a checkpoint is gone to.
    kept: bytes of stage outputs that are kept (`planning.kept_bytes`, and the prefix). head: directions tried of it alone.
    active: blocks that are tried, all if left out; where weights are trained in place, others are held in the base's few bits, if it
    has such graphs. rank: to which adapters are cut (0: the largest); values of all slices are held, and once more side by side, but
    branches only of what is within the rank.
    BundleError where the manifest does not state the model's dimensions.
    """
    model, in_place = manifest.dimensions, manifest.trainable == "full"
    size = {kind: sum(group.size for group in manifest.groups if group.kind == kind) for kind in ("body", "head")}
    blocks = sum(group.kind == "body" for group in manifest.groups) // max(1, len(manifest.ranks))
    within = ranks.prefix(manifest, rank)
    tried = sum(group.size for group in manifest.groups if group.kind == "body" and group.id in within)
    if active is not None and (manifest.optional or not in_place):
        tried = tried * active // max(1, blocks)
    held = size["body"] * (2 if manifest.ranks else 1)
    base = base_bytes(model, manifest.precision)
    if in_place:
        base -= weight_bytes(manifest.precision, tried, model.width)
    scored = rows if not manifest.task.labels else rows // tokens
    classes = len(manifest.task.labels) or model.vocabulary
    return Need(
        imports=device.imports,
        base=base,
        trainables=FLOAT * (size["head"] + (tried + size["body"] // max(1, blocks) if in_place else held + 2 * pairs * tried)),
        optimiser=0,
        activations=round(rows * row_bytes(model, tokens, device.held(manifest.precision))),
        logits=2 * FLOAT * scored * classes + min(HEAD_ROOM, 4 * FLOAT * head * size["head"]),
        caches=kept,
    )
