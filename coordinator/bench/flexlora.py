"""FlexLoRA (arXiv 2402.11505), forward-only: the server adds up products A B, and gives each device the best approximation of its rank.

Ours is its kinder form: what devices found is added to the sum, instead of averaging what the approximations left of it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from zo import evaluation, ranks
from zo.batches import Batch, encode
from zo.bundle import Bundle
from zo.engine import Engine
from zo.engine.stages import Values, share
from zo.examples import Example
from zo.manifest import Manifest
from zo.sampling import Sampler

MAX_ROWS = 1024


class Flex:
    """Devices of these ranks. bundle: `lora` with ranks, at a scale of 1. calibrated: probe size and signal, of the largest rank."""

    def __init__(
        self,
        bundle: Bundle,
        calibrated: Manifest,
        devices: Sequence[int],
        shares: Sequence[Sequence[Example]],
        seed: int,
        batch: int,
        balanced: bool,
    ) -> None:
        task, tokenizer = bundle.manifest.task, bundle.tokenizer()
        self._engine = Engine(bundle, bundle.parameters())
        self._devices, self._batch, self._most = devices, batch, bundle.manifest.rank
        self._samplers = [
            Sampler([row for each in held for row in encode(each, task, tokenizer)], task, balanced, np.random.default_rng([seed, device]))
            for device, held in enumerate(shares)
        ]
        body = calibrated.calibrated("body")
        self._log2_eps, self._signal = body.log2_eps, body.signal
        self._generator = np.random.default_rng([seed, 99])
        live = self._engine.live
        names = [name.removesuffix("_A") for name in ranks.pieces(bundle.manifest) if name.endswith("lora_A")]
        start = {name: live[f"{name}_A"].numpy()[0].T for name in names}  # [in, rank]
        self._basis = {name: np.linalg.qr(a)[0] for name, a in start.items()}  # all that follows stays in the span of A
        self._turn = {name: self._basis[name].T @ a for name, a in start.items()}  # A in that basis, until there is a sum
        self._sum = {name: np.zeros((self._most, live[f"{name}_B"].numpy().shape[2])) for name in names}

    def step(self, rate: float) -> None:
        """One round: each device tries one direction of B."""
        factors = self._factors()
        for device, rank in enumerate(self._devices):
            batch, change = self._samplers[device].draw(self._batch), {}
            stretch = (self._most / rank) ** 0.5  # as in our rounds: so that the loss moves as far in a probe
            eps = 2.0 ** (self._log2_eps + math.ceil(math.log2(stretch)))
            tensors: Values = {}
            for name, (a, b) in factors.items():
                change[name] = self._generator.choice([-1.0, 1.0], (rank, b.shape[1]))
                pair = np.stack([b[:rank] + eps * change[name], b[:rank] - eps * change[name]])
                tensors |= self._bound(name, a[:, :rank], pair)
            losses = self._run(batch, tensors)["loss"].numpy()
            half = float(losses[0] - losses[1]) / 2 / eps * 2.0**self._log2_eps  # as at the probe size of the largest rank
            if not np.isfinite(half):
                continue
            length = rate * 2.0**self._log2_eps * half / self._signal
            for name, direction in change.items():
                self._sum[name] -= length * (self._basis[name].T @ factors[name][0][:, :rank]) @ direction

    def metrics(self, batches: Sequence[Batch], rank: int) -> dict[str, Any]:
        """See `zo.evaluation`, of the best approximation of a rank."""
        tensors: Values = {}
        for name, (a, b) in self._factors().items():
            tensors |= self._bound(name, a[:, :rank], b[None, :rank])
        logits = (self._run(batch, tensors)["logits"].numpy()[0] for batch in batches)
        return evaluation.metrics(evaluation.judged(logits, batches), self._engine.manifest.task)

    def _factors(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """A [in, rank] and B [rank, out] by adapter, so that the first dimensions are the best approximation of the sum."""
        found = {}
        for name, total in self._sum.items():
            if not total.any():
                found[name] = (self._basis[name] @ self._turn[name], total)
                continue
            left, sizes, right = np.linalg.svd(total, full_matrices=False)
            found[name] = (self._basis[name] @ left, sizes[:, None] * right)
        return found

    def _bound(self, name: str, a: np.ndarray, b: np.ndarray) -> Values:
        values = {f"{name}_A": a.T[None], f"{name}_B": b}
        return {each: share(np.ascontiguousarray(array, np.float32)) for each, array in values.items()}

    def _run(self, batch: Batch, tensors: Values) -> Values:
        values = {name: share(array) for name, array in batch.fields.items()}
        stages = self._engine.stages
        return stages.run(values, 0, len(stages), self._engine.live | tensors, logits=True)
