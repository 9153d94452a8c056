"""Catching up from tiles: static files that anybody may hand out, under a head that the coordinator has signed (zo.tiles)."""

import logging
from collections.abc import Callable

from edge_agent.state import State
from zo.replica import Replica
from zo.tile_head import Head, HeadRefused, read_head
from zo.tiles import TILE, Tiles, TilesUnavailable

log = logging.getLogger(__name__)


def follow(
    location: str, key: bytes, state: State, replica: Replica, go_on: Callable[[], None], spend: Callable[[int], object] = lambda size: None
) -> bool:
    """Bring a replica as far as the tiles go; False where they cannot be had, or must not be followed, as the log then says.

    Over more than a tile the checkpoint is taken, if the head states one that is further on: it spares the replay, and a new
    device, which has no history that a fork could leave, also the entries. Diverged where an entry or
    the checkpoint does not lead to the digest that it states. `go_on` is called between entries, `spend` with the bytes that came
    over the network.
    """
    tiles, last = Tiles(location), followed(state, key, replica.genesis)
    try:
        head = tiles.head(key, replica.genesis, last)
        stated, checkpoint, place = head.checkpoint, None, (replica.entry, replica.head)
        if stated and stated.entry > replica.entry and head.entries - replica.entry > TILE:
            if last or replica.entry:
                tiles.entries(head, replica.entry, replica.head, last)  # finds a fork, before anything is followed
            checkpoint = tiles.checkpoint(head)
            place, last = (checkpoint.entry, checkpoint.head), None
        entries = tiles.entries(head, *place, last)  # first: a checkpoint that does not lead to the head must not be gone to
        if checkpoint and stated:
            replica.restore(checkpoint)
            log.info("%s: checkpoint at entry %d, %.1f kB", location, replica.entry, stated.size / 1e3)
        before = replica.entry
        for entry in entries:
            go_on()
            replica.apply(entry)
        log.info("%s: entries %d to %d of %d", location, before + 1, replica.entry, head.entries)
    except (HeadRefused, TilesUnavailable) as error:
        log.warning("%s; the coordinator is asked instead", error)
        return False
    finally:
        spend(tiles.received)
    state.save_tiles_head(head.encoded)
    return True


def followed(state: State, key: bytes, genesis: bytes) -> Head | None:
    """The head that was followed before, in this run; None where there is none."""
    kept = state.tiles_head()
    try:
        head = read_head(kept, key) if kept else None
    except HeadRefused:
        return None  # it is of another key, or torn
    return head if head and head.genesis == genesis else None
