"""BERT family (BERT, MiniLM): an encoder for classification with label prototypes or a linear head."""

import math
from typing import Any

import numpy as np

from coordinator.build import adapters, dimensions, head
from coordinator.build.layers import Layers
from zo.errors import BundleError
from zo.manifest import Task

ACTIVATIONS: dict[str, dict[str, Any]] = {"gelu": {}, "gelu_new": {"approximate": "tanh"}, "gelu_pytorch_tanh": {"approximate": "tanh"}}


class Bert:
    """Embeddings, post-norm blocks, pooling, and the head of the task."""

    def __init__(self, config: dict[str, Any], layers: Layers, task: Task) -> None:
        self.layers, self.task, self.weights = layers, task, layers.checkpoint
        self.blocks: int = config["num_hidden_layers"]
        self.width: int = config["hidden_size"]
        self.heads: int = config["num_attention_heads"]
        dimensions.divisible("hidden_size", self.width, "num_attention_heads", self.heads)
        self.epsilon = dimensions.positive(config, "layer_norm_eps")
        self.positions: int = config["max_position_embeddings"]
        for tensor, rows in (
            ("embeddings.word_embeddings.weight", "vocab_size"),
            ("embeddings.position_embeddings.weight", "max_position_embeddings"),
            ("encoder.layer.0.intermediate.dense.weight", "intermediate_size"),
        ):
            dimensions.match(self.weights, tensor, {rows: config[rows], "hidden_size": self.width})
        if config["hidden_act"] not in ACTIVATIONS:
            raise BundleError(f"activation {config['hidden_act']!r} is not known for BERT; known are {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[config["hidden_act"]]
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise BundleError("only absolute position embeddings are known for BERT")
        if task.head not in ("prototypes", "linear"):
            raise BundleError("a BERT model is built for classification with prototypes or a linear head; give a task with labels")

    def embed(self) -> str:
        """Words + positions + segments, normalised: [1, batch, tokens, width]."""
        g, ids = self.layers.graph, self.layers.tokens("input_ids")
        words = self.layers.embedding(ids, "embeddings.word_embeddings.weight")
        segments = self.layers.embedding(self.layers.tokens("token_type_ids"), "embeddings.token_type_embeddings.weight")
        name = "embeddings.position_embeddings.weight"
        places = g.op("Slice", g.weight(name, self.weights[name]), g.indices(0), g.op("Shape", ids, start=1, end=2), g.indices(0))
        summed = g.op("Add", g.op("Add", words, segments), places)
        return g.op("Unsqueeze", self.layers.norm(summed, "embeddings.LayerNorm", self.epsilon), g.indices(0))

    def block(self, number: int, x: str) -> str:
        """Self-attention and feed-forward, each followed by LayerNorm."""
        g, layers, name = self.layers.graph, self.layers, f"encoder.layer.{number}"
        attended = layers.linear(self._attend(f"{name}.attention.self", x), f"{name}.attention.output.dense")
        x = layers.norm(g.op("Add", x, attended), f"{name}.attention.output.LayerNorm", self.epsilon)
        wide = g.op("Gelu", layers.linear(x, f"{name}.intermediate.dense"), **self.activation)
        return layers.norm(g.op("Add", x, layers.linear(wide, f"{name}.output.dense")), f"{name}.output.LayerNorm", self.epsilon)

    def select(self, x: str) -> str:
        """One row an example: the mean for prototypes, the pooler's (or the mean) for a linear head."""
        if self.task.head == "prototypes" or "pooler.dense.weight" not in self.weights:
            return head.mean_over_tokens(self.layers, x)
        return self.layers.graph.op("Tanh", self.layers.linear(head.first_token(self.layers, x), "pooler.dense"))

    def head(self, x: str) -> None:
        """Label prototypes, or a linear layer (the checkpoint's own where it fits, else small and random)."""
        classes = len(self.task.labels)
        if self.task.head == "prototypes":
            logits = head.prototype_logits(self.layers, x, classes, self.width)
        else:
            weight, bias = head.initial_weight(self.layers, self.width, classes), np.zeros(classes, np.float32)
            if "classifier.weight" in self.weights and self.weights["classifier.weight"].shape == weight.T.shape:
                weight, bias = self.weights["classifier.weight"].T, self.weights["classifier.bias"]
            if (adapter := self.layers.training.adapter) and adapter.head and adapter.head[0].shape == weight.shape:
                weight, bias = adapter.head
            logits = head.linear_logits(self.layers, x, weight, bias)
        head.finish(self.layers, logits, classes)

    def _attend(self, name: str, x: str) -> str:
        """Multi-head attention over real tokens; adapters on query and value."""
        g, layers = self.layers.graph, self.layers
        width = self.width // self.heads

        def split(y: str, order: list[int]) -> str:
            return g.op("Transpose", g.op("Reshape", y, g.indices(0, 0, 0, self.heads, width)), perm=order)

        query = split(adapters.linear(layers, x, f"{name}.query"), [0, 1, 3, 2, 4])
        key = split(layers.linear(x, f"{name}.key", bias_matters=False), [0, 1, 3, 4, 2])
        value = split(adapters.linear(layers, x, f"{name}.value"), [0, 1, 3, 2, 4])
        scores = g.op("Mul", g.op("MatMul", query, key), g.constant(1 / math.sqrt(width)))
        mixed = g.op("MatMul", g.op("Softmax", g.op("Add", scores, layers.once("padding", self._padding)), axis=-1), value)
        return g.op("Reshape", g.op("Transpose", mixed, perm=[0, 1, 3, 2, 4]), g.indices(0, 0, 0, self.width))

    def _padding(self) -> str:
        """0 for real tokens, -1e9 for padding: [batch, 1, 1, tokens]."""
        g = self.layers.graph
        mask = g.op("Cast", self.layers.tokens("attention_mask"), to=1)
        return g.op("Unsqueeze", g.op("Mul", g.op("Sub", mask, g.constant(1.0)), g.constant(1e9)), g.indices(1, 2))
