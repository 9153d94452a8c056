"""What devices that lag behind are offered, and that it costs what is said."""

from collections.abc import Callable

import numpy as np
import pytest

from coordinator.memory_store import MemoryStore
from coordinator.offers import RENEWED_AFTER, Offers
from coordinator.summary import NOTHING_DONE
from zo import wire
from zo.bundle import Bundle
from zo.checkpoint import Checkpoint, signs
from zo.ledger import Entry
from zo.messages import Offer, Way
from zo.replica import Replica
from zo.terms import Term


class Fleet:
    """A run in memory, its replica at the last entry, and what is offered."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.store = bundle, MemoryStore()
        self.run = self.store.open_run("run", bundle.folder, bundle.digest)
        self.replica = self.fresh()
        self.offers = Offers(self.store, self.run.id, self.replica)

    def fresh(self) -> Replica:
        return Replica(self.bundle.parameters(), self.run.genesis, self.bundle.initial_tensors)

    def go_on(self, entries: int, seeds: int = 0, directions: int = 4) -> None:
        """Some entries more, on seeds of their own or from so many."""
        for _ in range(entries):
            number = self.replica.entry + 1
            first = number % seeds * 4 if seeds else number << 32
            terms = (Term(tuple(self.replica.sizes), first, np.resize([number, -2, 1, 700], directions)),)
            entry = Entry(number, number, 1, terms)
            self.replica.parameters.add(terms)
            cost = signs(terms, self.replica.sizes)
            self.store.commit(self.run.id, entry, self.replica.head, cost, NOTHING_DONE | {"round": number})
            self.replica.advance(entry)

    def ways(self, entry: int) -> dict[Way, Offer]:
        found = self.offers.after(entry, self.replica.parameters.digest())
        assert len({offer.way for offer in found}) == len(found)
        return {offer.way: offer for offer in found}

    def body(self, offer: Offer, most: int = 777) -> bytes | None:
        content = b""
        while True:
            piece = self.offers.piece(offer.way, offer.entry, len(content), most)
            if piece is None:
                return None
            assert len(piece.content) <= most
            content += piece.content
            if len(content) >= piece.size:
                assert len(content) == piece.size
                return content

    def taken(self, offer: Offer) -> tuple[Replica, int, int]:
        """A replica that went that way from the bundle, the bytes that it took in, and the signs that it made."""
        replica, size, made = self.fresh(), 0, 0
        if offer.way is not Way.ENTRIES:
            body = self.body(offer)
            assert body is not None
            checkpoint = wire.decoder(Checkpoint)(body)
            size, made = len(body), signs(checkpoint.terms, replica.sizes)
            replica.restore(checkpoint)
            assert (replica.entry, replica.parameters.digest()) == (offer.entry, offer.digest)
        for entry in self.store.entries(self.run.id, replica.entry):
            replica.apply(entry)
            size, made = size + len(wire.encode(entry)), made + signs(entry.terms, replica.sizes)
        return replica, size, made


@pytest.fixture
def fleet(bert_bundle: Bundle) -> Fleet:
    return Fleet(bert_bundle)


@pytest.mark.parametrize("later", [0, 1, RENEWED_AFTER, RENEWED_AFTER + 1])
def test_every_way_costs_what_was_said_and_leads_to_the_same_parameters(later: int, fleet: Fleet) -> None:
    fleet.go_on(10)
    fleet.ways(0)
    fleet.go_on(later)
    found = fleet.ways(0)
    at = 10 if later <= RENEWED_AFTER else 10 + later
    assert {way: offer.entry for way, offer in found.items()} == {Way.FOLD: at, Way.SNAPSHOT: at, Way.ENTRIES: 10 + later}
    for offer in found.values():
        replica, size, made = fleet.taken(offer)
        assert (offer.size, offer.signs) == (size, made)
        assert replica.parameters.digest() == fleet.replica.parameters.digest()
        assert (replica.entry, replica.head) == (10 + later, fleet.replica.head)
    assert found[Way.ENTRIES].digest == fleet.replica.parameters.digest()
    assert len({offer.size for offer in found.values()}) == 3


class Narrow(Offers):
    """Sends small entries only."""

    LARGEST_ENTRY = 2000


def test_who_is_just_before_an_entry_that_is_too_large_is_offered_what_is_beyond_it(fleet: Fleet) -> None:
    fleet.offers = Narrow(fleet.store, fleet.run.id, fleet.replica)
    fleet.go_on(3)
    fleet.ways(0)
    fleet.go_on(1, directions=2000)
    for entry in (0, 3):
        assert {way: offer.entry for way, offer in fleet.ways(entry).items()} == {Way.FOLD: 4, Way.SNAPSHOT: 4}
    fleet.go_on(1)
    assert fleet.ways(4).keys() == {Way.ENTRIES}
    assert fleet.ways(3)[Way.SNAPSHOT].entry == 4


def test_nothing_is_offered_where_nothing_is_missing(fleet: Fleet) -> None:
    assert fleet.ways(0) == {}
    fleet.go_on(3)
    assert fleet.ways(3) == {}


def test_who_is_past_the_checkpoint_is_offered_entries_only(fleet: Fleet) -> None:
    fleet.go_on(5)
    fleet.ways(0)
    fleet.go_on(5)
    assert fleet.ways(4).keys() == {Way.ENTRIES, Way.FOLD, Way.SNAPSHOT}
    for entry in (5, 7, 9):
        assert fleet.ways(entry).keys() == {Way.ENTRIES}
        assert fleet.ways(entry)[Way.ENTRIES].size == fleet.store.cost(fleet.run.id, entry).size


def test_the_fold_of_a_pool_stays_short_while_the_entries_grow(fleet: Fleet) -> None:
    fleet.go_on(8, seeds=8)
    first = fleet.ways(0)
    fleet.go_on(8 * RENEWED_AFTER, seeds=8)
    found = fleet.ways(0)
    assert found[Way.FOLD].signs == first[Way.FOLD].signs
    assert found[Way.FOLD].size < 2 * first[Way.FOLD].size < found[Way.ENTRIES].size


def test_where_every_group_is_sent_by_values_there_is_no_fold(fleet: Fleet) -> None:
    fleet.replica.folding.without = set(fleet.replica.sizes)
    fleet.go_on(2)
    assert fleet.ways(0).keys() == {Way.ENTRIES, Way.SNAPSHOT}


def test_checkpoints_made_before_are_held_for_one_generation(fleet: Fleet) -> None:
    generations = []
    for _ in range(3):
        fleet.go_on(RENEWED_AFTER + 1, seeds=8)
        generations.append(fleet.ways(0))
        for way in (Way.FOLD, Way.SNAPSHOT):
            held = [fleet.body(each[way]) is not None for each in generations]
            assert held == ([False] * (len(generations) - 2) + [True, True])[-len(generations) :]
    assert fleet.offers.piece(Way.ENTRIES, fleet.replica.entry, 0, 10) is None
    assert fleet.offers.piece(Way.FOLD, 1, 0, 10) is None


@pytest.mark.parametrize("offset", [lambda size: size, lambda size: size + 5, lambda size: 2**64 - 1])
def test_beyond_the_end_of_a_checkpoint_there_is_nothing(offset: Callable[[int], int], fleet: Fleet) -> None:
    fleet.go_on(2)
    size = fleet.ways(0)[Way.SNAPSHOT].size
    piece = fleet.offers.piece(Way.SNAPSHOT, 2, offset(size), 10)
    assert piece is not None
    assert (piece.content, piece.size) == (b"", size)


def test_compacted_entries_are_not_offered_and_the_checkpoints_are_not_before_them(fleet: Fleet) -> None:
    fleet.go_on(6)
    assert fleet.ways(0)[Way.FOLD].entry == 6
    fleet.go_on(4)
    fleet.store.add_checkpoint(fleet.run.id, fleet.replica.checkpoint())
    fleet.go_on(2)
    assert fleet.ways(0)[Way.FOLD].entry == 6
    fleet.store.compact(fleet.run.id, 10)
    for entry in (0, 9):
        found = fleet.ways(entry)
        assert {way: offer.entry for way, offer in found.items()} == {Way.FOLD: 12, Way.SNAPSHOT: 12}
    assert fleet.ways(10)[Way.ENTRIES].size == fleet.store.cost(fleet.run.id, 10).size
    assert fleet.ways(12) == {}
