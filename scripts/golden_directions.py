"""Write tests/zo/golden_directions.json: digests of directions, by which a port to another language proves itself.

Each row holds SHA-256 over the direction as int8 bytes, +1 or -1. Run with the package installed; the file changes
only if the definition of a direction changes, which breaks every ledger there is.
"""

import hashlib
import json
from itertools import product
from pathlib import Path

import numpy as np

from zo import directions

RUN_KEYS = (0, 1, 0x80000001, 2**32 - 1)
GROUPS = (0, 7, 2**32 - 1)
SEEDS = (0, 1, 2**32, 2**53 + 1, 2**64 - 1)
SIZES = (1, 63, 64, 65, 1000, 100_003)


def rows() -> list[dict[str, int | str]]:
    """Every run key, group and seed together; the sizes go round, so that each seed meets each size."""
    found: list[dict[str, int | str]] = []
    for place, (run_key, group, seed) in enumerate(product(RUN_KEYS, GROUPS, SEEDS)):
        size = SIZES[place % len(SIZES)]
        direction = directions.signs(run_key, group, np.array([seed], np.uint64), 0, size)[0].astype(np.int8)
        sha256 = hashlib.sha256(direction.tobytes()).hexdigest()
        found.append({"run_key": run_key, "seed": seed, "group": group, "size": size, "sha256": sha256})
    return found


if __name__ == "__main__":
    path = Path(__file__).parent.parent / "tests" / "zo" / "golden_directions.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows()) + "\n]\n")
    print(f"wrote {path}")
