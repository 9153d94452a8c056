"""The ways for a device to come to the fleet's parameters: entries, a fold, a snapshot; each with what it costs."""

from dataclasses import dataclass

from coordinator.store import Store
from zo import wire
from zo.checkpoint import Checkpoint, signs
from zo.messages import FileChunk, Offer, Way
from zo.replica import Replica

RENEWED_AFTER = 64  # entries; until then the checkpoints made last are offered, and the few entries after them


@dataclass(frozen=True)
class _Ready:
    """A checkpoint ready to be sent."""

    body: bytes
    signs: int
    digest: bytes


class Offers:
    """What devices that lag behind are offered. replica: the fleet's, at the last entry."""

    LARGEST_ENTRY = 1 << 19  # bytes; a device is not sent what is more, as a long way back may be

    def __init__(self, store: Store, run: int, replica: Replica) -> None:
        self.store, self.run, self.replica = store, run, replica
        self._entry = -1  # where the newest checkpoints are
        self._ready: dict[tuple[Way, int], _Ready] = {}  # also those made before, which somebody may be fetching

    def after(self, entry: int, digest: bytes) -> tuple[Offer, ...]:
        """All ways on from an entry, in full: size and signs include the entries that have to follow a checkpoint.

        digest: of the parameters at the last entry.
        """
        last = self.replica.entry
        if entry == last:
            return ()
        self._renew()
        rest, offers = self.store.cost(self.run, self._entry), []
        for (way, at), ready in self._ready.items():
            if at == self._entry > entry:
                offers.append(Offer(way, at, len(ready.body) + rest.size, ready.signs + rest.signs, ready.digest))
        cost = self.store.cost(self.run, entry)
        if entry >= self.store.compacted(self.run) and cost.largest <= self.LARGEST_ENTRY:
            offers.append(Offer(Way.ENTRIES, last, cost.size, cost.signs, digest))
        return tuple(offers)

    def piece(self, way: Way, entry: int, offset: int, most: int) -> FileChunk | None:
        """A piece of the checkpoint of an offer; None where it is not held any more."""
        ready = self._ready.get((way, entry))
        return None if ready is None else FileChunk(ready.body[offset : offset + most], len(ready.body))

    def _renew(self) -> None:
        entry = self.replica.entry
        if (
            self._entry < 0
            or entry - self._entry > RENEWED_AFTER
            or self._entry < self.store.compacted(self.run)
            or self.store.cost(self.run, self._entry).largest > self.LARGEST_ENTRY  # none can go on from there
        ):
            self._ready = {key: ready for key, ready in self._ready.items() if key[1] == self._entry}
            self._entry = entry
            fold = self.replica.checkpoint()
            if fold.terms:
                self._ready[Way.FOLD, entry] = self._encoded(fold)
            self._ready[Way.SNAPSHOT, entry] = self._encoded(self.replica.snapshot())

    def _encoded(self, checkpoint: Checkpoint) -> _Ready:
        return _Ready(wire.encode(checkpoint), signs(checkpoint.terms, self.replica.sizes), checkpoint.digest)
