"""Coming to the fleet's parameters after an absence, by the cheapest way for this device's line and processor."""

import logging
from collections.abc import Callable

from zo import wire
from zo.catchup import cheapest, replay_speed, seconds
from zo.checkpoint import Checkpoint
from zo.messages import CheckpointRequest, FileChunk, Offer
from zo.parameters import Parameters
from zo.replica import Diverged

log = logging.getLogger(__name__)


def described(offer: Offer, link_speed: float, replay_speed: float) -> str:
    """An offer for a person: its bytes, and what it takes."""
    return f"{offer.way.name.lower()} {offer.size / 1e3:.1f} kB, {seconds(offer, link_speed, replay_speed):.1f} s"


def choose(offers: tuple[Offer, ...], entry: int, parameters: Parameters, link_speed: float) -> Offer:
    """The cheapest offer for a device at an entry; the log says what was chosen and why."""
    speed = replay_speed(parameters)
    chosen = cheapest(offers, link_speed, speed)
    others = "; ".join(described(offer, link_speed, speed) for offer in offers if offer is not chosen)
    log.info(
        "catching up from entry %d to %d by %s%s (at %.0f kB/s and %.0f million signs/s)",
        entry,
        chosen.entry,
        described(chosen, link_speed, speed),
        f" rather than {others}" if others else "",
        link_speed / 1e3,
        speed / 1e6,
    )
    return chosen


def fetch(ask: Callable[[CheckpointRequest], FileChunk], run: int, offer: Offer) -> Checkpoint:
    """The checkpoint of an offer. Diverged where what arrives is another, or none."""
    body, size = bytearray(), 1
    other = Diverged(f"the checkpoint at entry {offer.entry} is not the one offered")
    while len(body) < size:
        piece = ask(CheckpointRequest(run, offer.way, offer.entry, len(body)))
        body += piece.content
        size = piece.size
        if not piece.content or size > offer.size:
            raise other
    try:
        found = wire.decoder(Checkpoint)(bytes(body))
    except wire.WireError as error:
        raise Diverged(f"the checkpoint at entry {offer.entry} cannot be read: {error}") from None
    if (found.entry, found.digest) != (offer.entry, offer.digest):
        raise other
    return found
