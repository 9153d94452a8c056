"""Llama family: a causal model with grouped-query attention, RoPE, RMSNorm and SwiGLU, for language or for label words."""

import math
from typing import Any

import numpy as np

from coordinator.build import adapters, dimensions, head
from coordinator.build.layers import Layers
from zo.errors import BundleError
from zo.manifest import Task


class Llama:
    """Embeddings, pre-norm blocks, selection of positions, and the vocabulary head."""

    def __init__(self, config: dict[str, Any], layers: Layers, task: Task) -> None:
        self.layers, self.task, self.weights = layers, task, layers.checkpoint
        self.blocks: int = config["num_hidden_layers"]
        self.width: int = config["hidden_size"]
        self.heads: int = config["num_attention_heads"]
        self.kv_heads: int = config.get("num_key_value_heads") or self.heads
        self.head_width: int = config.get("head_dim") or self.width // self.heads
        dimensions.divisible("num_attention_heads", self.heads, "num_key_value_heads", self.kv_heads)
        if not config.get("head_dim"):
            dimensions.divisible("hidden_size", self.width, "num_attention_heads", self.heads)
        dimensions.divisible("head_dim", self.head_width, "halves of a rotation", 2)
        self.epsilon = dimensions.positive(config, "rms_norm_eps")
        self.positions: int = config["max_position_embeddings"]
        self.vocabulary: int = config["vocab_size"]
        for tensor, name, rows in (
            ("embed_tokens", "vocab_size", self.vocabulary),
            ("layers.0.self_attn.q_proj", "num_attention_heads x head_dim", self.heads * self.head_width),
            ("layers.0.self_attn.k_proj", "num_key_value_heads x head_dim", self.kv_heads * self.head_width),
            ("layers.0.mlp.up_proj", "intermediate_size", config["intermediate_size"]),
        ):
            dimensions.match(self.weights, f"{tensor}.weight", {name: rows, "hidden_size": self.width})
        self.tied: bool = config.get("tie_word_embeddings", False)
        if not isinstance(self.tied, bool):
            raise ValueError(f"tie_word_embeddings must be true or false, not {self.tied!r}")
        self.theta = _rope_theta(config)
        if config.get("hidden_act", "silu") != "silu":
            raise BundleError(f"activation {config['hidden_act']!r} is not known for Llama; known is 'silu'")
        if task.head not in ("vocabulary", "label-words"):
            raise BundleError(
                "a Llama model is built for language modelling or label words; leave the labels out of the task, or give label_words"
            )

    def embed(self) -> str:
        """Words: [1, batch, tokens, width]."""
        g = self.layers.graph
        return g.op("Unsqueeze", self.layers.embedding(self.layers.tokens("input_ids"), "embed_tokens.weight"), g.indices(0))

    def block(self, number: int, x: str) -> str:
        """Self-attention and gated feed-forward, each on normalised input and added back."""
        g, layers, name = self.layers.graph, self.layers, f"layers.{number}"
        x = g.op("Add", x, self._attend(f"{name}.self_attn", layers.norm(x, f"{name}.input_layernorm", self.epsilon)))
        y = layers.norm(x, f"{name}.post_attention_layernorm", self.epsilon)
        gate = layers.linear(y, f"{name}.mlp.gate_proj")
        wide = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), layers.linear(y, f"{name}.mlp.up_proj"))
        return g.op("Add", x, layers.linear(wide, f"{name}.mlp.down_proj"))

    def select(self, x: str) -> str:
        """The positions where a next token is to be predicted: of a classification the last of each example."""
        if self.task.head == "label-words":
            return head.last_token(self.layers, x, self.width)
        return head.chosen_positions(self.layers, x, self.width)

    def head(self, x: str) -> None:
        """Final norm and the vocabulary; an untied vocabulary matrix is trained in `full`. Of label words only their rows, trained."""
        x = self.layers.norm(x, "norm", self.epsilon)
        if self.task.head == "label-words":
            ids = head.token_ids(self.weights.tokenizer(), self.task.labels)
            rows = self.weights["embed_tokens.weight" if self._shares_vocabulary else "lm_head.weight"][ids]
            logits = head.linear_logits(self.layers, x, rows.T, np.zeros(len(ids), np.float32))
            return head.finish(self.layers, logits, len(ids))
        if self._shares_vocabulary:
            logits = self.layers.frozen_linear(x, "lm_head.tied", self.weights["embed_tokens.weight"].T)
        else:
            logits = self.layers.linear(x, "lm_head")
        head.finish(self.layers, logits, self.vocabulary)

    @property
    def _shares_vocabulary(self) -> bool:
        return self.tied or "lm_head.weight" not in self.weights

    def _attend(self, name: str, x: str) -> str:
        """Causal grouped-query attention; adapters on query and value. Padding is on the right, so it is never attended to."""
        g, layers = self.layers.graph, self.layers
        shared = self.heads // self.kv_heads

        def split(y: str, *heads: int) -> str:  # -> [P, batch, kv heads, query heads a kv head, tokens, head width]
            return g.op("Transpose", g.op("Reshape", y, g.indices(0, 0, 0, *heads, self.head_width)), perm=[0, 1, 3, 4, 2, 5])

        query = self._rotate(split(adapters.linear(layers, x, f"{name}.q_proj"), self.kv_heads, shared))
        key = self._rotate(split(layers.linear(x, f"{name}.k_proj"), self.kv_heads, 1))
        value = split(adapters.linear(layers, x, f"{name}.v_proj"), self.kv_heads, 1)
        scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 2, 3, 5, 4]))
        scores = g.op(
            "Add", g.op("Mul", scores, g.constant(1 / math.sqrt(self.head_width))), layers.once("future", lambda: self._future(x))
        )
        mixed = g.op("Transpose", g.op("MatMul", g.op("Softmax", scores, axis=-1), value), perm=[0, 1, 4, 2, 3, 5])
        return layers.linear(g.op("Reshape", mixed, g.indices(0, 0, 0, self.heads * self.head_width)), f"{name}.o_proj")

    def _rotate(self, y: str) -> str:
        """Rotary positions in the Hugging Face layout: the two halves of a head are rotated against each other."""
        g = self.layers.graph
        first, second = g.op("Split", y, axis=-1, num_outputs=2, outputs=2)
        turned = g.op("Concat", g.op("Neg", second), first, axis=-1)
        angles = np.outer(np.arange(self.task.max_tokens), self.theta ** (-np.arange(0, self.head_width, 2) / self.head_width))
        cosine, sine = (self._table(name, np.tile(table, 2), y) for name, table in (("cosine", np.cos(angles)), ("sine", np.sin(angles))))
        return g.op("Add", g.op("Mul", y, cosine), g.op("Mul", turned, sine))

    def _table(self, name: str, values: np.ndarray, y: str) -> str:
        g = self.layers.graph
        table = g.weight(f"rope.{name}", values.astype(np.float32))
        return self.layers.once(name, lambda: g.op("Slice", table, g.indices(0), g.op("Shape", y, start=4, end=5), g.indices(0)))

    def _future(self, x: str) -> str:
        """0 where a token may look, -1e9 at tokens after it: [tokens, tokens]."""
        g = self.layers.graph
        tokens = g.op("Shape", x, start=2, end=3)
        square = g.op("Expand", g.constant(-1e9), g.op("Concat", tokens, tokens, axis=0))
        return g.op("Trilu", square, g.constant(1, np.int64), upper=1)


def _rope_theta(config: dict[str, Any]) -> float:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rotary scaling must be a table, not {rope!r}")
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise BundleError(f"rotary scaling {rope} is not known; known is plain RoPE with rope_theta")
    return dimensions.positive(rope if "rope_theta" in rope else config, "rope_theta", 10000.0)
