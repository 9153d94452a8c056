#!/usr/bin/env python3
"""Whether Hugging Face PEFT gives the logits that our engine does, with adapters that `edge-coordinator export --peft` writes.

usage: PYTHONPATH=.:tests scripts/peft_parity.py

Run by hand, with torch, transformers and peft installed. Tiny models are made from a seed, trained at random for some entries, exported,
and loaded by peft onto the model that their bundle was built from: every rank of bundles with ranks, and one without. What peft saves is
then what a bundle begins with. Exits with 1 where logits differ by more than 1e-4.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from test_export import batch, trained
from torch.nn.functional import normalize

from coordinator import peft as ours
from coordinator.bench import tiny_models
from coordinator.build.build import build
from coordinator.build.layers import Training
from zo.bundle import Bundle, open_bundle
from zo.engine import Engine
from zo.parameters import Parameters

CLOSE = 1e-4
WRAPPED = {
    "bert": transformers.BertModel,
    "bert-classifier": transformers.BertForSequenceClassification,
    "llama": transformers.LlamaForCausalLM,
    "llama-tied": transformers.LlamaForCausalLM,
}
CASES = [
    (model, trainable, ranks)
    for model in WRAPPED
    for trainable, ranks in (("lora", (1, 2, 4)), ("lora-fa", (1, 2, 4)), ("lora-fa", ()), ("lora", ()))
]


def logits(model: str, loaded: torch.nn.Module, bundle: Bundle, parameters: Parameters) -> np.ndarray:
    """Of a model that peft has wrapped, on the batch that the tests use: [rows, classes]."""
    fields = {name: torch.tensor(values) for name, values in batch(bundle).fields.items() if name not in ("labels", "positions")}
    found = loaded(**fields)
    if model == "bert":
        mask = fields["attention_mask"][..., None]
        pooled = (found.last_hidden_state * mask).sum(1) / mask.sum(1)
        prototypes, bias = (torch.tensor(parameters.tensor(f"head.{name}")) for name in ("prototypes", "bias"))
        return (20 * normalize(pooled) @ normalize(prototypes).T + bias).numpy()
    rows = found.logits.numpy()
    return rows if model == "bert-classifier" else rows.reshape(-1, rows.shape[-1])[batch(bundle).fields["positions"]]


def difference(model: str, trainable: str, ranks: tuple[int, ...], scratch: Path) -> float:
    """The largest, over the ranks and over what is begun with again."""
    config, weights, task = tiny_models.MODELS[model]
    folder = tiny_models.save(scratch / "model", config, weights)
    training = Training(trainable, rank=4, alpha=8.0, run_key=7, ranks=ranks)  # type: ignore[arg-type]
    build(folder, scratch / "bundle", task, training, tiny_models.examples(task))
    bundle = open_bundle(scratch / "bundle")
    run, found = trained(bundle, scratch), []
    for rank in (0, *ranks):
        out = scratch / f"rank-{rank}"
        ours.export(bundle, run.replica, "run", out, rank)
        settings = {"num_labels": len(task.labels)} if model == "bert-classifier" else {}
        base = WRAPPED[model].from_pretrained(folder, **settings).eval()
        loaded = peft.PeftModel.from_pretrained(base, out).eval()
        expected = Engine(bundle, run.parameters, rank=rank).forward(batch(bundle))[1]
        found.append(float(np.abs(logits(model, loaded, bundle, run.parameters) - expected).max()))
    loaded.save_pretrained(scratch / "saved")  # of the last rank, the largest
    adapter = ours.read(scratch / "saved")
    again = dataclasses.replace(training, trainable="lora", rank=adapter.rank, alpha=adapter.alpha, adapter=adapter)
    build(folder, scratch / "again", task, again, tiny_models.examples(task))
    begun = open_bundle(scratch / "again")
    parameters = begun.parameters()
    for group in begun.manifest.groups:
        if group.kind == "head":  # prototypes are no part of an adapter
            parameters.load(group.id, run.parameters.flat(bundle.manifest.groups[-1].id))
    found.append(float(np.abs(Engine(begun, parameters).forward(batch(begun))[1] - expected).max()))
    return max(found)


def main() -> int:
    worst = 0.0
    with torch.no_grad():
        for case in CASES:
            with tempfile.TemporaryDirectory() as scratch:
                found = difference(*case, Path(scratch))
            print(f"{case[0]:16} {case[1]:8} ranks {case[2] or 'one'!s:10} {found:.2e}", flush=True)
            worst = max(worst, found)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}: largest difference {worst:.2e}")
    return int(not worst < CLOSE)


if __name__ == "__main__":
    sys.exit(main())
