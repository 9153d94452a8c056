"""What an agent's folder knows, put to use: the common model, and the personal one where the device has trained alone.

Only reads, so that it can go on beside a working agent.
"""

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import journal
from edge_agent.overlay import Overlay, common_parameters
from edge_agent.precision import held, open_held
from edge_agent.state import POSITION, split
from zo import evaluation, manifest, wire
from zo.batches import collate, encode
from zo.bundle import read_manifest
from zo.checkpoint import Checkpoint
from zo.engine import Engine
from zo.errors import BundleError, DataError, StorageError
from zo.examples import Example
from zo.lattice import RangeError
from zo.manifest import Precision

log = logging.getLogger(__name__)


class Models:
    """The common model of a state folder, and the overlay that makes it personal: None where there is no local ledger.

    bundle: its folder; the newest in the state folder if empty. precision: of the base; see `open_held`. A UserError says
    what is missing, damaged or does not fit.
    """

    def __init__(self, state: Path, bundle: str = "", precision: Precision | None = None) -> None:
        if not state.is_dir():
            raise StorageError(f"{state} is not a folder; give the agent's with --state")
        self.bundle = open_held(Path(bundle) if bundle else _newest_bundle(state), precision)
        position = _position(state / POSITION)
        self.entry = position.entry if position else 0
        self.parameters = common_parameters(self.bundle, position)
        self.engine = Engine(self.bundle, self.parameters)
        path = state / journal.NAME
        try:
            ledger = journal.read(path, self.bundle.digest)
            if ledger and path.stat().st_size > ledger.size:
                log.warning("%s: what follows round %d cannot be read, and is left out", path, len(ledger.entries))
            self.overlay = Overlay.of(ledger.entries) if ledger else None
            self.rounds = len(ledger.entries) if ledger else 0
            if self.overlay:
                with self.overlay.on(self.parameters):
                    pass
        except RangeError as error:
            raise StorageError(f"{path} does not fit on the fleet's parameters ({error}); remove it, or choose another --state") from None
        except ValueError as error:
            raise StorageError(f"{path} cannot be used ({error}); 'edge-agent train --local' begins a new one") from None

    def evaluate(self, data: Path) -> dict[str, dict[str, Any]]:
        """Metrics (zo.evaluation) on a labelled file of the common model and, where there is one, the personal model, by name."""
        batches = evaluation.batches(self.bundle, data)
        found = {"common": {"entry": self.entry} | evaluation.evaluate(self.engine, batches)}
        if self.overlay:
            with self.overlay.on(self.parameters):
                found["personal"] = {"rounds": self.rounds} | evaluation.evaluate(self.engine, batches)
        return found

    def predict(self, lines: Iterable[bytes], common: bool = False) -> Iterator[dict[str, Any]]:
        """Label, its sentence and probability for every line, plain text or an object with "text"; None of each for a blank one.

        common: even where there is a personal model. DataError names a line that cannot be used.
        """
        task, tokenizer = self.bundle.manifest.task, self.bundle.tokenizer()
        if not task.labels:
            raise BundleError(f"{self.bundle.folder} is a language model, which has no labels to predict; use 'edge-agent evaluate'")
        with self.overlay.on(self.parameters) if self.overlay and not common else contextlib.nullcontext():
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    yield {"label": None, "sentence": None, "probability": None}
                    continue
                batch = collate(encode(_example(number, line), task, tokenizer), task)
                logits = self.engine.forward(batch)[1][0].astype(np.float64)
                odds = np.exp(logits - logits.max())
                label = int(odds.argmax())
                yield {"label": label, "sentence": task.labels[label], "probability": round(float(odds[label] / odds.sum()), 6)}


def told(found: dict[str, dict[str, Any]]) -> str:
    """Metrics for a person."""
    made = {"common": "at the fleet's entry {entry}", "personal": "with {rounds} rounds of its own"}
    shown = "loss {loss:.4f}, accuracy {accuracy:.4f}, balanced {balanced_accuracy:.4f}, {rows} rows"
    return "\n".join(f"{name} model ({made[name].format(**figures)}): {shown.format(**figures)}" for name, figures in found.items())


def _newest_bundle(state: Path) -> Path:
    found = [path.parent for path in state.glob(f"bundles/*/{manifest.FILE}") if _complete(path.parent)]
    if not found:
        raise BundleError(f"{state} holds no bundle; name its folder with --bundle")
    return max(found, key=lambda folder: folder.stat().st_mtime)


def _complete(folder: Path) -> bool:
    """Whether it holds a bundle with a base, and not one that is being downloaded."""
    try:
        return bool(held(folder, read_manifest(folder)))
    except BundleError:
        return False


def _position(path: Path) -> Checkpoint | None:
    """The fleet's position that an agent last saved; None where there is none."""
    try:
        return wire.decoder(Checkpoint)(split(path)[1])
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StorageError(f"{path} cannot be used ({error}); start the agent of this folder, which makes it again") from None


def _example(number: int, line: bytes) -> Example:
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise DataError(f"line {number} of standard input is not UTF-8; convert it") from None
    if not text.startswith("{"):
        return Example(text, 0)
    try:
        record = json.loads(text)
        text, pair = record["text"], record.get("text_pair")
        if text.strip() and (text + (pair or "")).encode():  # no half of a surrogate pair in it
            return Example(text, 0, pair)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DataError(f'line {number} of standard input is not like {{"text": "..."}}; correct it, or give plain lines')
