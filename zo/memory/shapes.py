"""The dimensions of a transformer, and those of published models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zo.memory.units import FLOAT

SEGMENTS = 2  # of an encoder's texts
BLOCK = 32  # weights that share a scale in w8 and w4


@dataclass(frozen=True)
class ModelShape:
    """A transformer. kv_heads: heads of keys and values. feed_forward: width between the two or, gated, three matrices of a block.

    tied: the vocabulary is scored with the embeddings. encoder: bidirectional, with biases and learnt positions (BERT).
    head_width: of each head, where the heads are not together as wide as the model.
    """

    blocks: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    gated: bool = False
    tied: bool = True
    encoder: bool = False
    head_width: int | None = None

    @property
    def query_width(self) -> int:
        """Of queries, and of what attention mixes."""
        return self.heads * self.head_width if self.head_width else self.width

    @property
    def kv_width(self) -> int:
        """Of keys and of values."""
        return self.query_width // self.heads * self.kv_heads

    @property
    def block_weights(self) -> int:
        """Weights of the matrices of one block: query, key, value, output, and the feed-forward part."""
        return 2 * self.width * (self.query_width + self.kv_width) + (2 + self.gated) * self.width * self.feed_forward

    @property
    def tables(self) -> int:
        """Values that are looked up by row: words and, in an encoder, positions and segments."""
        return self.width * (self.vocabulary + (self.positions + SEGMENTS if self.encoder else 0))

    @property
    def head_weights(self) -> int:
        """Weights of a vocabulary matrix of its own."""
        return 0 if self.encoder or self.tied else self.width * self.vocabulary

    @property
    def parameters(self) -> int:
        """All but norms and biases, which are less than a thousandth."""
        return self.tables + self.blocks * self.block_weights + self.head_weights

    def adapters(self, rank: int) -> int:
        """Values of B of the adapters on query and value, in all blocks; those of A are `2 * blocks * width * rank`."""
        return self.blocks * rank * (self.query_width + self.kv_width)


def of_config(config: Mapping[str, Any]) -> ModelShape:
    """From the config.json of a Hugging Face folder (BERT or Llama). KeyError where it lacks a dimension."""
    encoder = config["model_type"] == "bert"
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_width = int(config.get("head_dim") or width // heads)
    return ModelShape(
        blocks=int(config["num_hidden_layers"]),
        width=width,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        feed_forward=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        positions=int(config["max_position_embeddings"]),
        gated=not encoder,
        tied=encoder or bool(config.get("tie_word_embeddings", False)),
        encoder=encoder,
        head_width=head_width if heads * head_width != width else None,
    )


def scaled(width: int) -> ModelShape:
    """A Llama of any width, for curves: as many blocks as width / 128, heads of 64, 32,000 words, tied."""
    heads = max(1, width // 64)
    return ModelShape(max(1, width // 128), width, heads, heads, width * 8 // 3, 32_000, 2048, gated=True)


def _bert(blocks: int, width: int) -> ModelShape:
    return ModelShape(blocks, width, max(1, width // 64), max(1, width // 64), 4 * width, 30_522, 512, encoder=True)


def _opt(blocks: int, width: int, heads: int) -> ModelShape:
    return ModelShape(blocks, width, heads, heads, 4 * width, 50_272, 2048)


def _llama(blocks: int, width: int, heads: int, kv_heads: int, feed_forward: int, vocabulary: int, tied: bool) -> ModelShape:
    return ModelShape(blocks, width, heads, kv_heads, feed_forward, vocabulary, 2048, gated=True, tied=tied)


PUBLISHED: dict[str, ModelShape] = {
    "minilm-l6": ModelShape(6, 384, 12, 12, 1536, 30_522, 512, encoder=True),
    "minilm-l12": ModelShape(12, 384, 12, 12, 1536, 30_522, 512, encoder=True),
    "bert-tiny": _bert(2, 128),
    "bert-mini": _bert(4, 256),
    "bert-small": _bert(4, 512),
    "bert-medium": _bert(8, 512),
    "bert-base": _bert(12, 768),
    "bert-large": _bert(24, 1024),
    "opt-125m": _opt(12, 768, 12),
    "opt-1.3b": _opt(24, 2048, 32),
    "opt-2.7b": _opt(32, 2560, 32),
    "opt-6.7b": _opt(32, 4096, 32),
    "opt-13b": _opt(40, 5120, 40),
    "llama-135m": _llama(30, 576, 9, 3, 1536, 49_152, True),  # SmolLM
    "llama-360m": _llama(32, 960, 15, 5, 2560, 49_152, True),  # SmolLM
    "llama-1b": _llama(16, 2048, 32, 8, 8192, 128_256, True),  # Llama 3.2
    "llama-3b": _llama(28, 3072, 24, 8, 8192, 128_256, True),  # Llama 3.2
    "llama-7b": _llama(32, 4096, 32, 32, 11_008, 32_000, False),  # Llama 2
    "llama-13b": _llama(40, 5120, 40, 40, 13_824, 32_000, False),  # Llama 2
}


def weight_bytes(precision: str, weights: int, width: int) -> int:
    """Of matrices that are never trained. width: of a row, which has one scale in int8."""
    each = {"fp32": FLOAT, "w8": 1 + FLOAT / BLOCK, "w4": 0.5 + FLOAT / BLOCK, "int8": 1 + FLOAT / width}
    return round(weights * each[precision])


def table_bytes(precision: str, values: int, width: int) -> int:
    """Of tables that are looked up: but for fp32 in int8, with a scale a row."""
    return values * FLOAT if precision == "fp32" else values + values // width * FLOAT
