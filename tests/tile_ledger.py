"""A ledger of two full tiles and a part of a third, for tests of tiles."""

import numpy as np

from zo.ledger import Entry, chain
from zo.terms import Term
from zo.tiles import TILE

GENESIS, BUNDLE = bytes(range(32)), bytes(range(32, 64))
LAST = 2 * TILE + 44


def entries(count: int, fork_after: int = LAST) -> list[Entry]:
    """A ledger; two with different `fork_after` part there."""
    steps = {n: n if n <= fork_after else -n for n in range(1, count + 1)}
    return [Entry(n, 10 + n, 3, (Term((0,), n, np.array([step, 1])),)) for n, step in steps.items()]


def chains(ledger: list[Entry]) -> list[bytes]:
    """The identity after every entry, from none on."""
    found = [GENESIS]
    for entry in ledger:
        found.append(chain(found[-1], entry.header))
    return found


LEDGER = entries(LAST)
CHAINS = chains(LEDGER)
