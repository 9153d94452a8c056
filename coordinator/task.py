"""Task files: what a model is to be trained for (docs/operator.md)."""

import json
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zo.consistency import MOST_LABELS, MOST_TOKENS
from zo.errors import ConfigError, DataError
from zo.manifest import Task
from zo.structure import StructureError, encodable, from_plain

DEFAULT_MAX_TOKENS = 128


@dataclass(frozen=True)
class TaskFile:
    """The keys of a task file. labels: one describing sentence a label. label_count: instead, where no sentences are known.

    label_words: instead, for a causal model, the word that it is to say after the prompt, each one token.
    """

    labels: tuple[str, ...] = ()
    label_count: int = 0
    label_words: tuple[str, ...] = ()
    template: str = "{text}"
    max_tokens: int = DEFAULT_MAX_TOKENS
    head: Literal["prototypes", "linear", "label-words"] | None = None


def of_data(folder: Path, max_tokens: int) -> Task:
    """The task of a folder of examples: of its labels.json; language modelling where it has none. DataError where there is no folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with train.jsonl and validation.jsonl")
    labels = folder / "labels.json"
    return read(labels if labels.exists() else None, max_tokens)


def read(path: Path | None, max_tokens: int | None = None) -> Task:
    """The task of a .json or .toml file, or of a bare labels.json list; language modelling without a file or labels.

    max_tokens: instead of the file's.
    """
    plain: Any = {} if path is None else _plain(path)
    if isinstance(plain, list):
        if not plain:
            raise ConfigError(f"{path}: a list of label sentences needs at least two; a language model needs no task file")
        plain = {"labels": plain}
    if isinstance(plain, dict) and max_tokens is not None:
        plain = plain | {"max_tokens": max_tokens}
    try:
        given: TaskFile = from_plain(TaskFile, plain)
    except StructureError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not 0 <= given.label_count <= MOST_LABELS:
        raise ConfigError(f"{path}: label_count = {given.label_count} must be from 0 to {MOST_LABELS}")
    if given.label_words and (given.labels or given.label_count):
        raise ConfigError(f"{path}: label_words stand instead of labels and label_count; leave those out")
    head = given.head or ("label-words" if given.label_words else "prototypes" if given.labels else "linear")
    if (head == "label-words") != bool(given.label_words):
        raise ConfigError(f"{path}: label_words and head = 'label-words' go together, but head is {head!r}")
    labels = given.labels or given.label_words or tuple(f"label {number}" for number in range(given.label_count))
    if labels and not 2 <= len(labels) <= MOST_LABELS:
        raise ConfigError(f"{path}: a classification task needs at least two labels, and at most {MOST_LABELS}, not {len(labels)}")
    for number, label in enumerate(labels):
        if not label.strip() or not encodable(label):
            raise ConfigError(f"{path}: label {number}, {label!r}, must be a text that is not empty")
    if len(set(labels)) != len(labels):
        raise ConfigError(f"{path}: label {Counter(labels).most_common(1)[0][0]!r} is there more than once; each needs words of its own")
    if given.labels and given.label_count not in (0, len(given.labels)):
        raise ConfigError(f"{path}: label_count = {given.label_count}, but there are {len(given.labels)} labels")
    check_max_tokens(given.max_tokens, path if max_tokens is None and path else "--max-tokens")
    if "{text}" not in given.template or not encodable(given.template):
        raise ConfigError(f"{path}: template {given.template!r} is no text that contains {{text}}")
    if not labels:
        return Task("language-modelling", given.max_tokens, "vocabulary")
    return Task("classification", given.max_tokens, head, labels, given.template)


def check_max_tokens(number: int, where: object) -> None:
    """ConfigError, which begins with `where`, if texts cannot be cut at so many."""
    if not 2 <= number <= MOST_TOKENS:
        raise ConfigError(f"{where}: max_tokens = {number} must be from 2 to {MOST_TOKENS}")


def _plain(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check the path after --task") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no valid task file: {error}") from None
