"""From examples to batches of token ids, padded on the right."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from zo.examples import Example
from zo.manifest import Task

BUCKET = 8  # lengths are padded to a multiple of this, so that few shapes occur
LONGEST_TOKEN = 64  # characters; more of a text than this times max_tokens is never looked at for classification


@dataclass(frozen=True)
class Encoded:
    """One training example as token ids. types: segment of each token. label: class index; -1 for language modelling.

    key: its number among the device's examples; -1 where nobody counts them.
    """

    ids: np.ndarray
    types: np.ndarray
    label: int
    key: int = -1


@dataclass(frozen=True)
class Batch:
    """Arrays by graph input name. keys, lengths: of the examples in them (lengths in tokens, without padding)."""

    fields: dict[str, np.ndarray]
    keys: np.ndarray
    lengths: np.ndarray

    @property
    def examples(self) -> int:
        """Count of examples."""
        return len(self.keys)

    @property
    def tokens(self) -> int:
        """Padded length."""
        return int(self.fields["input_ids"].shape[1])

    @property
    def losses(self) -> int:
        """Count of rows whose mean is the loss."""
        return len(self.fields["labels"])

    def repeated(self, times: int) -> "Batch":
        """The same examples several times, one copy after the other."""
        fields = {name: np.concatenate([array] * times) for name, array in self.fields.items()}
        if "positions" in fields:
            fields["positions"] += np.repeat(np.arange(times), self.losses) * self.examples * self.tokens
        return Batch(fields, np.tile(self.keys, times), np.tile(self.lengths, times))

    def split(self, most: int) -> list["Batch"]:
        """The same examples in as few batches of at most `most` as can be, of nearly equal size; padding stays as it is."""
        count = -(-self.examples // most)
        stops = [self.examples * number // count for number in range(count + 1)]
        return [self._part(start, stop) for start, stop in pairwise(stops)]

    def _part(self, start: int, stop: int) -> "Batch":
        if (start, stop) == (0, self.examples):
            return self
        fields = {name: array[start:stop] for name, array in self.fields.items() if name not in ("positions", "labels")}
        places = self.fields.get("positions", np.arange(self.examples) * self.tokens)
        mine = (places >= start * self.tokens) & (places < stop * self.tokens)
        if "positions" in self.fields:
            fields["positions"] = places[mine] - start * self.tokens
        return Batch(fields | {"labels": self.fields["labels"][mine]}, self.keys[start:stop], self.lengths[start:stop])


def encode(example: Example, task: Task, tokenizer: Tokenizer) -> list[Encoded]:
    """Token ids of an example: one for classification, consecutive windows for language modelling."""
    if task.kind == "language-modelling":
        tokenizer.no_truncation()
        ids = np.array(tokenizer.encode(example.text, add_special_tokens=False).ids, np.int32)
        starts = range(0, len(ids) - 1, task.max_tokens)
        windows = [ids[start : start + task.max_tokens + 1] for start in starts]
        return [Encoded(window, np.zeros(len(window), np.int8), -1) for window in windows if len(window) > 1]
    longest = LONGEST_TOKEN * task.max_tokens
    text, pair = example.text[:longest], (example.text_pair or "")[:longest]
    fields = {"{text}": text, "{text_pair}": pair}
    prompt = re.sub(r"\{text(_pair)?\}", lambda found: fields[found[0]], task.template)
    separate = pair if pair and "{text_pair}" not in task.template else None
    tokenizer.enable_truncation(task.max_tokens, direction="left" if task.head == "label-words" else "right")
    found = tokenizer.encode(prompt, separate)
    return [Encoded(np.array(found.ids, np.int32), np.array(found.type_ids, np.int8), -1 if example.label is None else example.label)]


def collate(rows: Sequence[Encoded], task: Task) -> Batch:
    """Pad to the longest row (rounded up to BUCKET, at most max_tokens) and lay out what the graphs take (int64)."""
    causal = task.kind == "language-modelling"
    lengths = np.array([len(row.ids) - causal for row in rows])
    tokens = min(-(-lengths.max() // BUCKET) * BUCKET, task.max_tokens)
    ids, types = np.zeros((2, len(rows), tokens), np.int64)
    for place, row in enumerate(rows):
        ids[place, : lengths[place]] = row.ids[: lengths[place]]
        types[place, : lengths[place]] = row.types[: lengths[place]]
    real = np.arange(tokens) < lengths[:, None]
    if causal:
        labels = np.concatenate([row.ids[1:] for row in rows]).astype(np.int64)
        fields = {"input_ids": ids, "positions": np.flatnonzero(real), "labels": labels}
    else:
        labels = np.array([row.label for row in rows], np.int64)
        fields = {"input_ids": ids, "token_type_ids": types, "attention_mask": real.astype(np.int64), "labels": labels}
    return Batch(fields, np.array([row.key for row in rows]), lengths)
