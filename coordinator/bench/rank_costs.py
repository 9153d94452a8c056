"""What a step costs by rank: processor time in alternating turns, bytes of adapters and branches, the peak of a process of its own.

`python -m coordinator.bench.rank_costs BUNDLE RANK` takes some steps and prints the peak of its resident memory, in bytes.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.bench.child_process import figures
from zo.batches import Batch
from zo.bundle import Bundle, open_bundle
from zo.engine import Engine
from zo.memory import process
from zo.ranks import prefix
from zo.timing import probe_pair, random_batch

EXAMPLES, TOKENS = 8, 32
STEPS, PROCESSES = 5, 3


def measure(bundle: Bundle, repeats: int) -> dict[str, dict[str, Any]]:
    """By rank."""
    ranks, batch = bundle.manifest.ranks, _batch(bundle)
    engines = [Engine(bundle, bundle.parameters(), rank=rank) for rank in ranks]
    steps = [probe_pair(engine, batch) for engine in engines]
    taken = np.array([[_processor_time(step) for step in steps] for _ in range(repeats + 1)][1:]).T
    peaks = [[figures(__name__, bundle.folder, rank) for rank in ranks] for _ in range(PROCESSES)]
    return {
        str(rank): {
            "time_ratio": round(float(np.median(taken[place] / taken[-1])), 4),
            "adapter_bytes": _bytes(bundle, rank),
            "peak_mb": round(float(np.median([each[place] for each in peaks])) / 1e6, 2),
        }
        for place, rank in enumerate(ranks)
    }


def _processor_time(step: Callable[[], object]) -> float:
    """Seconds of this process, which has one thread: others may be at work meanwhile."""
    began = time.process_time()
    step()
    return time.process_time() - began


def _bytes(bundle: Bundle, rank: int) -> int:
    """Of the values, which every device holds whole, of their copy side by side, and of a pair of branches."""
    body = [group for group in bundle.manifest.groups if group.kind == "body"]
    whole = sum(group.size for group in body)
    return 4 * (2 * whole + 2 * sum(group.size for group in body if group.id in prefix(bundle.manifest, rank)))


def _batch(bundle: Bundle) -> Batch:
    return random_batch(bundle.manifest.task, bundle.tokenizer().get_vocab_size(), EXAMPLES, min(TOKENS, bundle.manifest.task.max_tokens))


def main() -> None:
    """See above."""
    bundle = open_bundle(Path(sys.argv[1]))
    engine = Engine(bundle, bundle.parameters(), rank=int(sys.argv[2]))
    step = probe_pair(engine, _batch(bundle))
    for _ in range(STEPS):
        step()
    print(process.peak())


if __name__ == "__main__":
    main()
