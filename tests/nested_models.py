"""Plain numpy models with adapters in rank slices, of which the first dimensions count."""

from collections.abc import Mapping

import numpy as np
from numpy_models import NumpyModel

from coordinator.bench import tiny_models
from zo import ranks
from zo.bundle import Bundle


class NestedModel(NumpyModel):
    """Of the tensors of a bundle with ranks, cut to one of them."""

    pieces: dict[str, tuple[ranks.Piece, ...]]
    cut = 0

    def logits(self, tensors: Mapping[str, np.ndarray], fields: Mapping[str, np.ndarray]) -> np.ndarray:
        whole = dict(tensors)
        for name, pieces in self.pieces.items():
            joined = np.concatenate([whole.pop(piece.tensor) for piece in pieces])[: self.cut]
            whole[name] = joined.T if name.endswith("lora_A") else joined
        return super().logits(whole, fields)

    def frozen_a(self, adapter: int, width: int) -> np.ndarray:
        """Drawn dimension by dimension: that of a smaller rank is its beginning."""
        flat = super().frozen_a(adapter, width).reshape(-1)
        return flat.reshape(self.rank, width).T[:, : self.cut]


def nested_model(model: str, bundle: Bundle, cut: int) -> NestedModel:
    """Of a bundle of the fixtures, cut to this rank."""
    config, weights, task = tiny_models.MODELS[model]
    manifest = bundle.manifest
    made = NestedModel(config, weights, task.head, rank=manifest.rank, alpha=manifest.alpha, run_key=manifest.run_key)
    made.pieces, made.cut = ranks.pieces(manifest), cut or manifest.rank
    return made
