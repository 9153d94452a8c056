"""Evaluation of the global model in a process of its own, which gives way to others, so that rounds never wait for it.

`python -m coordinator.evaluation` reads requests as JSON lines {"entry": n, "split": "validation", "over": m} on standard input
and answers each with one line of metrics, compared with those of entry 0 and of m. A split's file is read when it is first asked for.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator import replay
from coordinator.sqlite_store import SqliteStore
from zo.batches import Batch
from zo.engine import Engine
from zo.errors import UserError
from zo.evaluation import Rows, answers, batches, compared, evaluate

NICENESS = 10  # as agents have it by default


def _prefixes(engine: Engine, batches: list[Batch]) -> dict[str, Any]:
    """As "prefixes", the metrics of every rank but the largest, where the bundle has ranks."""
    found = {}
    for rank in engine.manifest.ranks[:-1]:
        with engine.cut(rank):
            found[str(rank)] = evaluate(engine, batches)
    return {"prefixes": found} if found else {}


class _Models:
    """The model at any entry. move: takes the engine's parameters to one."""

    def __init__(self, engine: Engine, move: Callable[[int], None]) -> None:
        self._engine, self._move = engine, move
        self._answers: dict[tuple[str, int], Rows] = {}

    def metrics(self, split: str, batches: list[Batch], entry: int, other: int) -> dict[str, Any]:
        """Of an entry, compared with those of entry 0 and of another one. The entry comes first: it may be compacted soon."""
        self._move(entry)
        prefixes = _prefixes(self._engine, batches)
        found, start, over = (self._rows(split, batches, each) for each in (entry, 0, other))
        self._answers = {(split, 0): start, (split, other): over, (split, entry): found}
        return compared(start, (other, over), found, self._engine.manifest.task) | prefixes

    def _rows(self, split: str, batches: list[Batch], entry: int) -> Rows:
        if (split, entry) not in self._answers:
            self._move(entry)
            self._answers[split, entry] = answers(self._engine, batches)
        return self._answers[split, entry]


def main() -> int:
    """Answer requests until standard input ends."""
    parser = argparse.ArgumentParser(description="evaluate a run's model at the entries asked for")
    for flag in ("--store", "--run", "--validation", "--test"):
        parser.add_argument(flag, default="")
    parser.add_argument("--most", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    os.nice(NICENESS)
    try:
        store = SqliteStore(Path(given.store))
        run = store.run(given.run)
        bundle = replay.opened(run)
        replica = replay.replica(store, run, bundle, 0)
        models = _Models(Engine(bundle, replica.parameters, threads=given.threads), lambda entry: replay.move(replica, store, run, entry))
        read: dict[str, list[Batch]] = {}
        for line in sys.stdin:
            request = json.loads(line)
            split = request["split"]
            if split not in read:
                read[split] = batches(bundle, Path(getattr(given, split)), given.most if split == "validation" else 0)
            print(json.dumps(models.metrics(split, read[split], request["entry"], request["over"])), flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
