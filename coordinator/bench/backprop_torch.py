"""Training with gradients in plain PyTorch, on the lowest blocks of the same BERT: what `scripts/bench equal-memory` compares with."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch.nn import functional

from coordinator.bench.mezo_torch import MezoTorch
from zo.batches import Batch

RANK, COSINE_SCALE = 8, 20.0


class BackpropTorch(MezoTorch):
    """An encoder cut to `blocks` blocks, mean pooling, label prototypes, Adam; one thread. Embeddings are frozen.

    adapters: LoRA on query and value; else all weights of the blocks are trained. labels: the sentences that prototypes begin at.
    """

    def __init__(self, model: Path, blocks: int, adapters: bool, labels: Batch, rate: float) -> None:
        torch.set_num_threads(1)
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        self.heads, self.blocks, self.epsilon = config["num_attention_heads"], blocks, config["layer_norm_eps"]
        kept = [f"encoder.layer.{number}." for number in range(blocks)]
        with safe_open(model / "model.safetensors", "pt") as file:
            self.weights = {name: file.get_tensor(name) for name in file.keys() if name.startswith(("embeddings.", *kept))}  # noqa: SIM118
        self.adapters, width = {}, config["hidden_size"]
        trained: list[torch.Tensor] = []
        for name in list(self.weights):
            if adapters and name.endswith(("query.weight", "value.weight")):
                self.adapters[name.removesuffix(".weight")] = (torch.randn(RANK, width) / width**0.5, torch.zeros(width, RANK))
            elif not adapters and not name.startswith("embeddings."):
                self.weights[name] = self.weights[name].clone().requires_grad_()
                trained.append(self.weights[name])
        trained += [each.requires_grad_() for pair in self.adapters.values() for each in pair]
        with torch.inference_mode():
            pooled = self._pooled(labels)
        self.prototypes = pooled.clone().requires_grad_()
        self.bias = torch.zeros(len(pooled), requires_grad=True)
        self.optimiser = torch.optim.Adam([*trained, self.prototypes, self.bias], lr=rate)

    def train(self, batch: Batch) -> float:
        """One step; returns the loss."""
        loss = functional.cross_entropy(self._logits(batch), torch.from_numpy(batch.fields["labels"]))
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    @torch.inference_mode()
    def balanced_accuracy(self, batches: Sequence[Batch]) -> float:
        """Mean over the classes of the share of their examples that are labelled rightly."""
        hits = np.concatenate([(self._logits(batch).argmax(1).numpy() == batch.fields["labels"]) for batch in batches])
        labels = np.concatenate([batch.fields["labels"] for batch in batches])
        return float(np.mean([hits[labels == each].mean() for each in np.unique(labels)]))

    def _logits(self, batch: Batch) -> torch.Tensor:
        pooled, prototypes = (functional.normalize(each, dim=-1) for each in (self._pooled(batch), self.prototypes))
        return COSINE_SCALE * pooled @ prototypes.T + self.bias

    def _pooled(self, batch: Batch) -> torch.Tensor:
        w, fields = self.weights, {name: torch.from_numpy(array) for name, array in batch.fields.items()}
        ids, mask = fields["input_ids"], fields["attention_mask"].bool()
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][fields["token_type_ids"]], "embeddings.LayerNorm")
        for number in range(self.blocks):
            x = self._block(x, mask, f"encoder.layer.{number}")
        kept = mask.unsqueeze(-1).float()
        return (x * kept).sum(1) / kept.sum(1)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = super()._linear(x, name)
        if name in self.adapters:
            a, b = self.adapters[name]
            y = y + 2.0 * (x @ a.T) @ b.T
        return y
