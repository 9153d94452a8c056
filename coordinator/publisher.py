"""Tiles of a run that is being served: written as entries come, and handed out where that is asked for."""

import logging
import time
from pathlib import Path

from coordinator import tile_server
from coordinator.config import RunConfig
from coordinator.rounds import Rounds
from coordinator.signing import public_bytes, signing_key
from coordinator.store import Store
from coordinator.tile_writer import TileWriter
from zo.errors import StorageError
from zo.tiles import TILE

log = logging.getLogger(__name__)


class Publisher:
    """Writes the tiles of a run to `tiles.folder`, signed with the key beside the store.

    What is published lags behind the ledger by `tiles.every` seconds at most, and never leads. Trouble with the folder is told
    once, and does not hold up the run.
    """

    def __init__(self, config: RunConfig, store: Store, rounds: Rounds) -> None:
        self._settings, self._store, self._rounds = config.tiles, store, rounds
        key = signing_key(Path(f"{config.store}.tiles-key"))
        self.public_key = public_bytes(key)
        folder, run = Path(config.tiles.folder), rounds.run
        self._writer = TileWriter(folder, key, run.genesis, run.bundle_digest, rounds.ledger.replica.sizes)
        self._published = self._checkpoint = -1
        self._due, self._told = 0.0, False
        self._server = tile_server.serve(folder, config.tiles.listen) if config.tiles.listen else None
        log.info("tiles in %s are signed with the key %s", folder, self.public_key.hex())

    @property
    def complete(self) -> int:
        """The last entry of the last full tile that is published: what comes after is still needed whole."""
        return max(0, self._published) // TILE * TILE

    def publish_when_due(self) -> None:
        """Bring the folder up to the last entry, if that is new and the last time is long enough ago."""
        if self._rounds.ledger.entry != self._published and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._settings.every
            self.publish()

    def publish(self) -> None:
        """Bring the folder up to the last entry."""
        replica, run = self._rounds.ledger.replica, self._rounds.run.id
        renewed = replica.entry // TILE > self._checkpoint // TILE
        try:
            self._writer.publish(
                lambda after, most: self._store.entries(run, after, most),
                replica.entry,
                replica.head,
                replica.checkpoint() if renewed else None,
            )
            self._published, self._told = replica.entry, False
            self._checkpoint = replica.entry if renewed else self._checkpoint
        except StorageError as error:
            if not self._told:
                log.error("%s; the run goes on without tiles", error)
            self._told = True

    def close(self) -> None:
        """Publish what is left, and stop handing out."""
        if self._rounds.ledger.entry != self._published:
            self.publish()
        if self._server:
            self._server.close()
