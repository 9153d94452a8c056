"""The published MeZO step (arXiv 2305.17333, algorithm 1) in plain PyTorch, on the same BERT: what we are compared with.

Every weight of the encoder's blocks is perturbed with Gaussian noise that is drawn again from the seed each time, in the authors' own
expressions (`zo_perturb_parameters`, `zo_update`); the embeddings are left alone, as we leave them. The model is written out with
torch's own fused attention, GELU and LayerNorm.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

from zo.batches import Batch

EPS, RATE = 1e-3, 1e-6


class MezoTorch:
    """A BERT encoder, mean pooling, a linear head, and MeZO steps on one batch; one thread."""

    def __init__(self, model: Path, batch: Batch) -> None:
        torch.set_num_threads(1)
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        self.heads, self.blocks, self.epsilon = config["num_attention_heads"], config["num_hidden_layers"], config["layer_norm_eps"]
        self.weights = load_file(model / "model.safetensors")
        self.weights["head"] = torch.randn(2, config["hidden_size"]) * 0.02
        self.trained = [name for name in self.weights if name.startswith("encoder.layer") or name == "head"]
        self.fields = {name: torch.from_numpy(array) for name, array in batch.fields.items()}
        self.seed = 0

    @torch.inference_mode()
    def step(self) -> float:
        """Both probes and the update; returns the projected gradient."""
        self.seed += 1
        self._perturb(1)
        above = self.loss()
        self._perturb(-2)
        below = self.loss()
        self._perturb(1)
        slope = float(above - below) / (2 * EPS)
        torch.manual_seed(self.seed)
        for name in self.trained:
            values = self.weights[name]
            z = torch.normal(mean=0, std=1, size=values.shape)
            self.weights[name] = values - RATE * (slope * z)
        return slope

    def loss(self) -> torch.Tensor:
        """Mean cross-entropy of the batch."""
        w, fields = self.weights, self.fields
        ids = fields["input_ids"]
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][fields["token_type_ids"]], "embeddings.LayerNorm")
        mask = fields["attention_mask"].bool()
        for number in range(self.blocks):
            x = self._block(x, mask, f"encoder.layer.{number}")
        kept = mask.unsqueeze(-1).float()
        pooled = (x * kept).sum(1) / kept.sum(1)
        return functional.cross_entropy(pooled @ w["head"].T, fields["labels"])

    def _block(self, x: torch.Tensor, mask: torch.Tensor, name: str) -> torch.Tensor:
        rows, tokens, width = x.shape
        split = [
            self._linear(x, f"{name}.attention.self.{part}").view(rows, tokens, self.heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        ]
        mixed = functional.scaled_dot_product_attention(*split, attn_mask=mask[:, None, None])
        mixed = mixed.transpose(1, 2).reshape(rows, tokens, width)
        x = self._norm(x + self._linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        wide = functional.gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.epsilon)

    def _perturb(self, scale: int) -> None:
        torch.manual_seed(self.seed)
        for name in self.trained:
            values = self.weights[name]
            z = torch.normal(mean=0, std=1, size=values.shape)
            self.weights[name] = values + scale * z * EPS
