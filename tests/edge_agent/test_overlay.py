"""The personal overlay: on and off without a trace, wherever the fleet has gone meanwhile."""

import numpy as np
import pytest
from conftest import Bundles
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.overlay import Overlay, Personal, common_parameters
from zo.bundle import Bundle
from zo.errors import StorageError
from zo.group import Group, Tensor
from zo.lattice import LIMIT, RangeError
from zo.ledger import Entry, genesis
from zo.parameters import Parameters
from zo.replica import Replica
from zo.terms import Term

GROUPS = (
    Group(0, "body", -20, (Tensor("a", (5, 7)), Tensor("b", (3,)))),
    Group(1, "body", -20, (Tensor("c", (130,)),)),
    Group(4, "head", -12, (Tensor("d", (2, 2)),)),
)
LOCAL, FLEET = genesis(bytes(32), b"local"), genesis(bytes(32), b"fleet")

terms = st.builds(
    lambda groups, seed, steps: Term(tuple(sorted(groups)), seed, np.array(steps, np.int64)),
    st.sets(st.sampled_from([0, 1, 4]), min_size=1),
    st.integers(2**62, 2**62 + 5),
    st.lists(st.integers(-(2**12), 2**12), max_size=6),
)
ledgers = st.lists(st.lists(terms, max_size=3).map(tuple), max_size=6).map(
    lambda rounds: tuple(Entry(number, number, 1, each) for number, each in enumerate(rounds, 1))
)


def parameters() -> Parameters:
    generator = np.random.default_rng(0)
    return Parameters(
        7, GROUPS, {t.name: np.ldexp(generator.integers(-(2**18), 2**18, t.shape), g.log2_unit) for g in GROUPS for t in g.tensors}
    )


@settings(max_examples=60, deadline=None)
@given(local=ledgers, fleet=ledgers)
def test_the_fleet_may_move_on_under_an_overlay(local: tuple[Entry, ...], fleet: tuple[Entry, ...]) -> None:
    here, there, overlay = parameters(), parameters(), Overlay.of(local)
    overlay.add(here)
    for entry in fleet:
        here.add(entry.terms)
        there.add(entry.terms)
    personal = here.digest()
    overlay.remove(here)
    assert here.digest() == there.digest()
    overlay.add(here)
    for entry in local:
        there.add(entry.terms)
    assert here.digest() == there.digest() == personal


def test_an_overlay_is_on_inside_the_with() -> None:
    here, overlay = parameters(), Overlay((Term((0, 1, 4), 3, np.array([5, -2])),))
    before = here.digest()
    with overlay.on(here):
        assert here.digest() != before
    assert here.digest() == before
    with pytest.raises(InterruptedError), overlay.on(here):
        raise InterruptedError
    assert here.digest() == before


def test_what_leaves_the_range_changes_nothing() -> None:
    here, overlay = parameters(), Overlay((Term((0, 1), 3, np.array([5])), Term((4,), 3, np.array([LIMIT]))))
    before = here.digest()
    with pytest.raises(RangeError):
        overlay.add(here)
    assert here.digest() == before
    with pytest.raises(RangeError), overlay.on(here):
        pass
    with pytest.raises(RangeError):
        overlay.remove(here)
    assert here.digest() == before


# --- on a bundle, and on the fleet's position ---


def change(number: int, size: int = 40) -> tuple[Term, ...]:
    steps = np.random.default_rng(number).integers(-size, size, 3)
    return (Term((0, 1), 1000 * number, steps), Term((2,), 1000 * number, 3 * steps))


@pytest.fixture
def fleet(bert_bundle: Bundle) -> Replica:
    """The fleet at entry 4."""
    replica = Replica(bert_bundle.parameters(), FLEET, bert_bundle.initial_tensors)
    for number in range(1, 5):
        replica.apply(Entry(number, number, 8, change(number)))
    return replica


def train(personal: Personal, rounds: range) -> tuple[Entry, ...]:
    return tuple(personal.commit(change(number), stated=number % 2 == 0) for number in rounds)


def test_a_ledger_begun_alone_is_followed_on_the_fleet_and_back(bert_bundle: Bundle, fleet: Replica) -> None:
    alone = Personal(bert_bundle, None, 1)
    alone.follow(LOCAL, ())
    entries = train(alone, range(11, 14))
    assert [entry.digest is not None for entry in entries] == [False, True, False]
    assert [entry.number for entry in entries] == [1, 2, 3]

    joined = Personal(bert_bundle, fleet.checkpoint(), 1)
    joined.follow(LOCAL, entries)
    entries += train(joined, range(14, 17))
    overlay = Overlay.of(entries)
    with overlay.on(fleet.parameters):
        assert fleet.parameters.digest() == joined.parameters.digest()

    again = Personal(bert_bundle, None, 1)
    again.follow(LOCAL, entries)  # with the digests stated above the fleet
    expected = bert_bundle.parameters()
    overlay.add(expected)
    assert again.parameters.digest() == expected.digest()


def test_a_digest_that_is_not_reached_is_said_and_the_terms_count(bert_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    personal = Personal(bert_bundle, None, 1)
    personal.follow(LOCAL, (Entry(1, 1, 1, change(1), bytes(32)), Entry(2, 2, 1, change(2))))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "entry 1 do not have the digest stated" in caplog.text
    expected = bert_bundle.parameters()
    expected.add((*change(1), *change(2)))
    assert personal.parameters.digest() == expected.digest()


@pytest.mark.parametrize("on_fleet", [False, True])
def test_a_change_beyond_the_range_is_not_taken(on_fleet: bool, bert_bundle: Bundle, fleet: Replica) -> None:
    personal = Personal(bert_bundle, fleet.checkpoint() if on_fleet else None, 1)
    personal.follow(LOCAL, ())
    before = personal.parameters.digest()
    with pytest.raises(RangeError):
        personal.commit((Term((0,), 5, np.array([2 * LIMIT])),), stated=True)
    assert (personal.parameters.digest(), personal.alone.entry) == (before, 0)


def test_the_common_parameters_are_the_fleets(bert_bundle: Bundle, fleet: Replica) -> None:
    for position in (fleet.checkpoint(), fleet.snapshot()):
        assert common_parameters(bert_bundle, position).digest() == fleet.parameters.digest()
    assert common_parameters(bert_bundle, None).digest() == bert_bundle.parameters().digest()


def test_a_position_of_another_bundle_is_refused(bundles: Bundles, fleet: Replica) -> None:
    with pytest.raises(StorageError, match=r"cannot be reached from .*--bundle"):
        common_parameters(bundles("bert-classifier"), fleet.checkpoint())
