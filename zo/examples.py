"""Reading examples from JSONL: what cannot be used is skipped, counted and quoted."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zo.errors import DataError
from zo.manifest import Task
from zo.structure import encodable

log = logging.getLogger(__name__)

QUOTED = 3  # complaints kept in full
LONGEST_LINE = 16 * 2**20  # bytes


@dataclass(frozen=True)
class Example:
    """One line of JSONL. label: class index; None for language modelling."""

    text: str
    label: int | None = None
    text_pair: str | None = None


@dataclass
class Reading:
    """What a folder or file gave. complaints: the first few skipped lines, as `file:line: why`."""

    examples: list[Example] = field(default_factory=list)
    skipped: int = 0
    complaints: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line for the log: counts, and what was wrong with the first skipped lines."""
        told = f"; skipped {self.skipped} lines: {' | '.join(self.complaints)}" if self.skipped else ""
        return f"{len(self.examples)} examples{told}"


def files(path: Path, line: str = '{"text": "..."}') -> list[Path]:
    """A JSONL file, or every *.jsonl in a folder, in order of name. DataError if there is none, which shows a line; nor may one keep its
    reader waiting, as a pipe does.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; give a .jsonl file, or a folder of them")
    found = sorted(file for file in path.glob("*.jsonl") if not file.is_dir()) if path.is_dir() else [path]
    if not found:
        raise DataError(f"{path} holds no *.jsonl files; put lines like {line} into one")
    for file in found:
        if file.exists() and not file.is_file():
            raise DataError(f"{file} is no regular file; give a .jsonl file, or a folder of them")
    return found


def read(path: Path, task: Task) -> Reading:
    """Examples of the `files` of a path. DataError if none is usable."""
    reading = Reading()
    for file in files(path, _sample(task)):
        _read_file(file, task, reading)
    if not reading.examples:
        why = " | ".join(reading.complaints) or "no lines"
        raise DataError(f"{path} holds no usable example ({why}); expected lines like {_sample(task)}")
    return reading


def load(path: Path, task: Task) -> list[Example]:
    """What `read` gives; the log says what was skipped."""
    reading = read(path, task)
    if reading.skipped:
        log.warning("%s: %s", path, reading.summary())
    return reading.examples


def _read_file(file: Path, task: Task, reading: Reading) -> None:
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            reading.examples.append(_example(line, task))
        except ValueError as error:
            reading.skipped += 1
            if len(reading.complaints) < QUOTED:
                reading.complaints.append(f"{file.name}:{number}: {error}")


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with file.open("rb") as opened:
            number = 0
            while line := opened.readline(LONGEST_LINE + 1):
                number += 1
                yield number, line
                while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    line = opened.readline(LONGEST_LINE + 1)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; check its permissions") from None


def _example(line: bytes, task: Task) -> Example:
    """ValueError, in a few words, where the line is no example of the task."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"line is longer than {LONGEST_LINE} bytes")
    try:
        record: Any = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError(f"not JSON: {line[:40].decode(errors='replace').strip()!r}") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError('no "text"')
    if not record["text"].strip():
        raise ValueError('"text" is empty')
    pair = record.get("text_pair")
    if pair is not None and not isinstance(pair, str):
        raise ValueError('"text_pair" is not a text')
    if not encodable(record["text"] + (pair or "")):
        raise ValueError("half a surrogate pair in the text")
    return Example(record["text"], _label(record, task), pair)


def _label(record: dict[str, Any], task: Task) -> int | None:
    if task.kind == "language-modelling":
        return None
    label = record.get("label")
    if isinstance(label, str) and label in task.labels:
        return task.labels.index(label)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(task.labels):
        raise ValueError(f"unknown label {str(repr(label))[:40]} (known: 0..{len(task.labels) - 1})")
    return label


def _sample(task: Task) -> str:
    return '{"text": "..."}' if task.kind == "language-modelling" else '{"text": "...", "label": 0}'
