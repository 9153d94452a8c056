"""Evaluation of the global model in a process of its own, so that rounds never wait for it.

`python -m coordinator.evaluation` reads requests as JSON lines {"entry": n, "split": "validation"} on standard input
and answers each with one line of metrics, `gain` over entry 0 among them. A split's file is read when it is first asked for.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from coordinator import replay
from coordinator.sqlite_store import SqliteStore
from zo.batches import Batch
from zo.engine import Engine
from zo.errors import UserError
from zo.evaluation import Rows, answers, batches, compared, evaluate


def _prefixes(engine: Engine, batches: list[Batch]) -> dict[str, Any]:
    """As "prefixes", the metrics of every rank but the largest, where the bundle has ranks."""
    found = {}
    for rank in engine.manifest.ranks[:-1]:
        with engine.cut(rank):
            found[str(rank)] = evaluate(engine, batches)
    return {"prefixes": found} if found else {}


def main() -> int:
    """Answer requests until standard input ends."""
    parser = argparse.ArgumentParser(description="evaluate a run's model at the entries asked for")
    for flag in ("--store", "--run", "--validation", "--test"):
        parser.add_argument(flag, default="")
    parser.add_argument("--most", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    try:
        store = SqliteStore(Path(given.store))
        run = store.run(given.run)
        bundle = replay.opened(run)
        replica = replay.replica(store, run, bundle, 0)
        engine = Engine(bundle, replica.parameters, threads=given.threads)
        read: dict[str, list[Batch]] = {}
        start: dict[str, Rows] = {}
        for line in sys.stdin:
            request = json.loads(line)
            split = request["split"]
            if split not in read:
                read[split] = batches(bundle, Path(getattr(given, split)), given.most if split == "validation" else 0)
                replay.move(replica, store, run, 0)
                start[split] = answers(engine, read[split])
            replay.move(replica, store, run, request["entry"])
            found = answers(engine, read[split]) if request["entry"] else start[split]
            print(json.dumps(compared(start[split], found, bundle.manifest.task) | _prefixes(engine, read[split])), flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
