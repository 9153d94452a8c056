"""`python -m edge_agent.bench.replay`: seconds that a device with one core takes to replay entries, or to restore a checkpoint."""

import argparse
import json
import os
import sys
import time
from pathlib import Path


def main() -> int:
    """Print {"seconds", "digest", "replay_speed"}."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("file", type=Path, help="wire form of a Tile or a Checkpoint")
    parser.add_argument("kind", choices=["entries", "checkpoint"])
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before numpy starts its threads
    from zo import catchup, wire
    from zo.bundle import open_bundle
    from zo.checkpoint import Checkpoint
    from zo.ledger import Tile
    from zo.replica import Replica

    bundle = open_bundle(given.bundle)
    body = given.file.read_bytes()
    parameters = bundle.parameters()
    began = time.perf_counter()
    if given.kind == "checkpoint":
        checkpoint = wire.decoder(Checkpoint)(body)
        Replica(parameters, checkpoint.genesis, bundle.initial_tensors).restore(checkpoint)
    else:
        replica = Replica(parameters, bytes(32), bundle.initial_tensors)
        for entry in wire.decoder(Tile)(body).entries:
            replica.apply(entry)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "digest": parameters.digest().hex(), "replay_speed": catchup.replay_speed(parameters)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
