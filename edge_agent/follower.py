"""Staying with the fleet's ledger: catching up, applying entries, saving the position, and rebuilding what has gone wrong."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from edge_agent import catchup
from edge_agent.config import AgentConfig
from edge_agent.link import Rejoin
from edge_agent.state import State
from zo.checkpoint import Checkpoint, signs
from zo.ledger import Entry, short
from zo.manifest import Precision
from zo.messages import CatchUpRequest, JoinReply, Offer, Profile, Way, WorkRequest
from zo.replica import Replica

log = logging.getLogger(__name__)


class Follower:
    """A replica that is kept with the ledger of the run that was joined, and its position on the disk.

    ask: a call to the coordinator. go_on: called between entries; what it raises ends the work. save_every: seconds
    between saved positions, where the write budget allows them. The replica's ValueErrors (Diverged among them) mean that it
    must be rebuilt.
    """

    def __init__(
        self,
        replica: Replica,
        joined: JoinReply,
        state: State,
        config: AgentConfig,
        ask: Callable[[Any], Any],
        go_on: Callable[[], None],
        save_every: float,
    ) -> None:
        self.replica, self.joined, self._state, self._config = replica, joined, state, config
        self._ask, self._go_on, self._save_every = ask, go_on, save_every
        self.spend: Callable[[int], object] = lambda size: None  # told the bytes that came over the network from elsewhere
        self._promised: Offer | None = None
        self._tiles = config.tiles if joined.tiles_key else ""
        self._saved_at, self.position_size = time.monotonic(), 0

    def catch_up(self) -> None:
        """Come to the fleet's parameters from where this device is, or was when it last saved, by the cheapest way."""
        replica, saved = self.replica, self._saved()
        if self._tiles:
            if saved:
                replica.restore(saved)
            saved = None
            self._follow_tiles()
        place: Checkpoint | Replica = saved or replica
        try:
            offers = self._ask(CatchUpRequest(self.joined.run, self.joined.device, place.entry, short(place.head))).offers
        except Rejoin:
            if not place.entry:
                raise
            self._forget(f"entry {place.entry} is not of the coordinator's history")
            return self.catch_up()
        if replica.missing:  # their values could not be held
            offers = tuple(offer for offer in offers if offer.way is not Way.SNAPSHOT)
        if saved:
            again = signs(saved.terms, replica.sizes)
            offers = tuple(dataclasses.replace(offer, signs=offer.signs + again) if offer.way is Way.ENTRIES else offer for offer in offers)
        self._promised = catchup.choose(offers, place.entry, replica.parameters, self._config.link_speed) if offers else None
        if self._promised and self._promised.way is not Way.ENTRIES:
            replica.restore(catchup.fetch(self._ask, self.joined.run, self._promised))
        elif saved:
            replica.restore(saved)
        self._check_promise()

    def request(self, precision: Precision, profile: Profile, rank: int = 0) -> WorkRequest:
        """What asks for work from here, for that base and rank."""
        return WorkRequest(self.joined.run, self.joined.device, self.replica.entry, short(self.replica.head), precision, profile, rank)

    def apply(self, entries: Iterable[Entry]) -> None:
        """Go along with the ledger. ValueError where that cannot be."""
        for entry in entries:
            self._go_on()
            self.replica.apply(entry)
            self._check_promise()
        if time.monotonic() - self._saved_at >= self._save_every:
            self.save()

    def rebuild(self, why: str) -> None:
        """Trust neither the parameters in memory, nor those on the disk, nor tiles: back to the bundle."""
        self._tiles = ""
        self._forget(why)

    def save(self) -> None:
        """Save the position."""
        if self.replica.entry:
            checkpoint = self.replica.checkpoint()
            self._state.save_position(checkpoint)
            self.position_size = sum(len(g.values) for g in checkpoint.values) + sum(8 * t.steps.size for t in checkpoint.terms)
        self._saved_at = time.monotonic()

    def _forget(self, why: str) -> None:
        self._state.forget_position(why)
        self._promised = None
        self.replica.reset()

    def _follow_tiles(self) -> None:
        """Begin with the tiles. A head followed before that the coordinator does not know (its store was restored) is forgotten."""
        from edge_agent import tile_source  # what speaks HTTP takes 3 MB, and few agents need it

        key = self.joined.tiles_key
        if tile_source.follow(self._tiles, key, self._state, self.replica, self._go_on, self.spend):
            return
        known = tile_source.followed(self._state, key, self.joined.genesis)
        if known is None:
            return
        try:
            self._ask(CatchUpRequest(self.joined.run, self.joined.device, known.entries, short(known.chain)))
        except Rejoin:
            self._state.save_tiles_head(b"")

    def _saved(self) -> Checkpoint | None:
        """The position on the disk, where it is of use."""
        saved = None if self.replica.entry else self._state.position()
        if saved and saved.genesis != self.joined.genesis:
            self._state.forget_position("it is of another run")
            return None
        return saved

    def _check_promise(self) -> None:
        """Diverged where catching up has led elsewhere than the coordinator said."""
        if self._promised and self.replica.entry >= self._promised.entry:
            if self.replica.entry == self._promised.entry:
                self.replica.check(self._promised.digest)
            log.info("caught up: entry %d", self.replica.entry)
            self._promised = None
