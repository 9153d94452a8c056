"""BERT and Llama forward passes in float64, straight from the papers and Hugging Face's tensor names: no graphs, no stages.

A batch is the dict of `Batch.fields`. Trainable tensors go by their names in a bundle and take the place of the weights.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.random import Philox

Tensors = Mapping[str, np.ndarray]
FROZEN_A = 2**32 - 1  # the group whose directions are the frozen A matrices


class NumpyModel:
    """A model of one architecture. weights: by Hugging Face name. rank, alpha, run_key: of the adapters."""

    def __init__(self, config: dict[str, Any], weights: Tensors, head: str, *, rank: int, alpha: float, run_key: int) -> None:
        self.config, self.head, self.rank, self.scale, self.run_key = config, head, rank, alpha / rank, run_key
        prefix = {"bert": "bert.", "llama": "model."}[config["model_type"]]
        self.weights = {name.removeprefix(prefix): np.asarray(values, np.float64) for name, values in weights.items()}
        self.width, self.heads, self.blocks = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
        self.head_width = config.get("head_dim") or self.width // self.heads
        self.tensors: dict[str, np.ndarray] = {}

    def loss(self, tensors: Tensors, fields: Tensors) -> float:
        """Mean cross-entropy over the labels, in nats."""
        logits = self.logits(tensors, fields)
        rows = np.arange(len(logits))
        return float(np.mean(_log_sum_exp(logits) - logits[rows, fields["labels"]]))

    def logits(self, tensors: Tensors, fields: Tensors) -> np.ndarray:
        """[rows, classes]."""
        self.tensors = {name: np.asarray(values, np.float64) for name, values in tensors.items()}
        return self._bert(fields) if self.config["model_type"] == "bert" else self._llama(fields)

    # --- BERT: post-norm blocks ---

    def _bert(self, fields: Tensors) -> np.ndarray:
        tokens = fields["input_ids"].shape[1]
        x = self._weight("embeddings.word_embeddings.weight")[fields["input_ids"]]
        x = x + self._weight("embeddings.position_embeddings.weight")[:tokens]
        x = x + self._weight("embeddings.token_type_embeddings.weight")[fields["token_type_ids"]]
        x = self._layer_norm(x, "embeddings.LayerNorm")
        real = fields["attention_mask"].astype(bool)
        for number in range(self.blocks):
            name = f"encoder.layer.{number}"
            query, key, value = (
                self._linear(x, f"{name}.attention.self.{part}", {"query": 2 * number, "value": 2 * number + 1}.get(part))
                for part in ("query", "key", "value")
            )
            mixed = self._attention(query, key, value, self.heads, np.where(real, 0.0, -np.inf)[:, None, None, :])
            x = self._layer_norm(x + self._linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
            wide = _gelu(self._linear(x, f"{name}.intermediate.dense"))
            x = self._layer_norm(x + self._linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        if self.head == "linear":
            return np.tanh(self._linear(x[:, 0], "pooler.dense")) @ self._head("weight") + self._head("bias")
        pooled = np.array([row[keep].mean(axis=0) for row, keep in zip(x, real, strict=True)])
        return 20 * _unit(pooled) @ _unit(self._head("prototypes")).T + self._head("bias")

    def _head(self, name: str) -> np.ndarray:
        """The head's own tensor; the checkpoint's classifier where none is given."""
        if f"head.{name}" in self.tensors:
            return self.tensors[f"head.{name}"]
        return self.weights[f"classifier.{name}"].T

    # --- Llama: pre-norm blocks, rotary positions, grouped queries ---

    def _llama(self, fields: Tensors) -> np.ndarray:
        x = self._weight("embed_tokens.weight")[fields["input_ids"]]
        tokens = x.shape[1]
        future = np.where(np.tri(tokens, dtype=bool), 0.0, -np.inf)
        for number in range(self.blocks):
            name = f"layers.{number}.self_attn"
            y = self._rms_norm(x, f"layers.{number}.input_layernorm")
            query, key = self._rotated(self._linear(y, f"{name}.q_proj", 2 * number)), self._rotated(self._linear(y, f"{name}.k_proj"))
            value = self._linear(y, f"{name}.v_proj", 2 * number + 1)
            x = x + self._linear(self._attention(query, key, value, self.config["num_key_value_heads"], future), f"{name}.o_proj")
            name = f"layers.{number}.mlp"
            y = self._rms_norm(x, f"layers.{number}.post_attention_layernorm")
            gate = self._linear(y, f"{name}.gate_proj")
            x = x + self._linear(gate / (1 + np.exp(-gate)) * self._linear(y, f"{name}.up_proj"), f"{name}.down_proj")
        x = self._rms_norm(x, "norm").reshape(-1, self.width)[fields["positions"]]
        if self.config["tie_word_embeddings"]:
            return x @ self._weight("embed_tokens.weight").T
        return self._linear(x, "lm_head")

    def _rotated(self, x: np.ndarray) -> np.ndarray:
        """Each pair (i, i + half) of a head, as a complex number, turned by its position's angle."""
        head = self.head_width
        half = head // 2
        y = x.reshape(*x.shape[:2], -1, head)
        turn = np.exp(1j * np.arange(x.shape[1])[:, None, None] * self.config["rope_theta"] ** (-np.arange(half) / half))
        turned = (y[..., :half] + 1j * y[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1).reshape(x.shape)

    # --- what both are made of ---

    def _weight(self, name: str) -> np.ndarray:
        return self.tensors[name] if name in self.tensors else self.weights[name]

    def _linear(self, x: np.ndarray, name: str, adapter: int | None = None) -> np.ndarray:
        """x W^T + b, and the adapter's scale x A B. adapter: which one of the model this layer has."""
        weight = self.tensors.get(f"{name}.weight")  # [in, out] in a bundle, [out, in] in a checkpoint
        y = x @ (self.weights[f"{name}.weight"].T if weight is None else weight)
        if f"{name}.bias" in self.weights:
            y = y + self._weight(f"{name}.bias")
        if f"{name}.lora_B" not in self.tensors:
            return y
        assert adapter is not None
        a = self.tensors[f"{name}.lora_A"] if f"{name}.lora_A" in self.tensors else self.frozen_a(adapter, x.shape[-1])
        return y + self.scale * (x @ a @ self.tensors[f"{name}.lora_B"])

    def frozen_a(self, adapter: int, width: int) -> np.ndarray:
        """The signs of one direction, over the root of the width: [width, rank]."""
        words = Philox(key=np.array([self.run_key << 32 | FROZEN_A, adapter], np.uint64)).random_raw(-(-width * self.rank // 64))
        bits = [int(words[place // 64]) >> place % 64 & 1 for place in range(width * self.rank)]
        return (2.0 * np.reshape(bits, (width, self.rank)) - 1) / math.sqrt(width)

    def _attention(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, kv_heads: int, mask: np.ndarray) -> np.ndarray:
        head = self.head_width
        query, key, value = (y.reshape(*y.shape[:2], -1, head).swapaxes(1, 2) for y in (query, key, value))
        key, value = (np.repeat(y, self.heads // kv_heads, axis=1) for y in (key, value))
        scores = query @ key.swapaxes(2, 3) / math.sqrt(head) + mask
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = shares / shares.sum(axis=-1, keepdims=True) @ value
        return mixed.swapaxes(1, 2).reshape(mixed.shape[0], -1, self.heads * head)

    def _layer_norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        return y * self._weight(f"{name}.weight") + self._weight(f"{name}.bias")

    def _rms_norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.config["rms_norm_eps"]) * self._weight(f"{name}.weight")


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _log_sum_exp(x: np.ndarray) -> np.ndarray:
    largest = x.max(axis=-1)
    return largest + np.log(np.exp(x - largest[:, None]).sum(axis=-1))
