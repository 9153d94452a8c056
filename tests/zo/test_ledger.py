"""A ledger folds to what replaying it gives, and its chain names one history."""

import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY, cancelling_terms, made, term_lists

from zo.ledger import GENESIS, Entry, Ledger, chain, fold, rollback
from zo.terms import Term, collect

HISTORIES = st.lists(st.one_of(term_lists(), cancelling_terms()), max_size=4)


def ledger_of(histories: list[list[Term]]) -> Ledger:
    ledger = Ledger()
    for number, terms in enumerate(histories, start=1):
        ledger.append(Entry(number, 10 + number, 3, tuple(terms)))
    return ledger


@PROPERTY
@given(HISTORIES, st.data())
def test_folding_gives_the_bits_that_replaying_gives(histories: list[list[Term]], data: st.DataObject) -> None:
    ledger = ledger_of(histories)
    stop = data.draw(st.integers(0, len(histories)))
    replayed, folded = made(), made()
    for entry in ledger.entries[:stop]:
        replayed.add(entry.terms)
    folded.add(ledger.fold(stop))
    assert folded.digest() == replayed.digest()
    if stop == len(histories):
        assert ledger.fold() == ledger.fold(stop)


@PROPERTY
@given(HISTORIES)
def test_a_fold_holds_each_seed_of_a_group_once_and_no_longer_folds(histories: list[list[Term]]) -> None:
    folded = ledger_of(histories).fold()
    for group in (0, 3, 9, 77):
        terms = [term for term in folded if group in term.groups]
        seeds = [seed for term in terms for seed in term.seeds.tolist()]
        assert len(set(seeds)) == len(seeds)
        assert all((term.steps != 0).all() for term in terms)
        assert sorted(seeds) == collect([t for terms in histories for t in terms], group)[0].tolist()
    assert fold(folded) == folded


@PROPERTY
@given(term_lists(), st.data())
def test_the_fold_does_not_depend_on_the_order_of_terms(terms: list[Term], data: st.DataObject) -> None:
    assert fold(data.draw(st.permutations(terms))) == fold(terms)


def test_groups_with_identical_arrays_share_one_and_others_do_not() -> None:
    shared, own = np.array([4, -5, 6]), np.array([1])
    folded = fold([Term((2, 8), 0, shared[:1]), Term((8, 2), 1, shared[1:]), Term((5,), 0, shared), Term((7,), 0, own)])
    assert folded == (Term((2, 5, 8), 0, shared), Term((7,), 0, own))


def test_with_a_pool_of_seeds_the_fold_stays_as_short_as_the_pool() -> None:
    rng = np.random.default_rng(0)
    terms = [Term((3,), int(rng.integers(16)), rng.integers(-50, 50, int(rng.integers(1, 5)))) for _ in range(500)]
    assert sum(term.steps.size for term in fold(terms)) <= 20


@PROPERTY
@given(HISTORIES.filter(bool), st.data())
def test_rolling_back_restores_the_digest_but_not_the_identity(histories: list[list[Term]], data: st.DataObject) -> None:
    ledger, parameters = ledger_of(histories), made()
    heads, digests = [GENESIS], [parameters.digest()]
    for entry in ledger.entries:
        parameters.add(entry.terms)
        heads.append(chain(heads[-1], entry))
        digests.append(parameters.digest())
    to = data.draw(st.integers(0, len(histories) - 1))
    undo = rollback(ledger.entries[to:])
    ledger.append(Entry(len(histories) + 1, 99, 0, undo))
    parameters.add(undo)
    assert parameters.digest() == digests[to]
    assert ledger.head not in heads
    replayed = made()
    replayed.add(ledger.fold())
    assert replayed.digest() == digests[to]


def test_appending_advances_the_chain() -> None:
    ledger = Ledger()
    assert ledger.head == GENESIS == bytes(32)
    first, second = Entry(1, 1, 2, (Term((0,), 5, np.array([1])),)), Entry(2, 1, 2, ())
    ledger.append(first)
    ledger.append(second)
    assert ledger.entries == [first, second]
    assert ledger.head == chain(chain(GENESIS, first), second)


@pytest.mark.parametrize("number", [-1, 0, 1, 2, 4, 2**64])
def test_an_entry_that_does_not_follow_the_last_is_refused_and_nothing_changes(number: int) -> None:
    ledger = ledger_of([[], []])
    head = ledger.head
    with pytest.raises(ValueError, match="does not follow entry 2"):
        ledger.append(Entry(number, 1, 1, ()))
    assert (len(ledger.entries), ledger.head) == (2, head)


def test_the_first_entry_is_number_one() -> None:
    with pytest.raises(ValueError, match="does not follow entry 0"):
        Ledger().append(Entry(2, 1, 1, ()))


@pytest.mark.parametrize("bad", [{"round": -1}, {"contributors": -1}, {"contributors": 2**32}, {"round": 2**64}])
def test_an_entry_that_cannot_be_written_down_leaves_the_ledger_as_it_was(bad: dict[str, int]) -> None:
    ledger = ledger_of([[]])
    head = ledger.head
    with pytest.raises((struct.error, ValueError)):
        ledger.append(replace(Entry(2, 1, 1, ()), **bad))
    assert (len(ledger.entries), ledger.head) == (1, head)


def test_the_chain_depends_on_the_state_before_and_on_every_field() -> None:
    entry = Entry(1, 2, 3, (Term((4, 5), 6, np.array([7, -8])), Term((9,), 10, np.array([11]))))
    a, b = entry.terms
    changed = [
        replace(entry, number=2),
        replace(entry, round=3),
        replace(entry, contributors=4),
        replace(entry, terms=(b, a)),
        replace(entry, terms=(a,)),
        replace(entry, terms=(a, b, b)),
        replace(entry, terms=(Term((5, 4), 6, a.steps), b)),
        replace(entry, terms=(Term((4,), 6, a.steps), b)),
        replace(entry, terms=(Term((4, 5), 7, a.steps), b)),
        replace(entry, terms=(Term((4, 5), 6, np.array([7, 8])), b)),
        replace(entry, terms=(Term((4, 5), 6, np.array([7])), Term((4, 5), 7, np.array([-8])), b)),
    ]
    heads = {chain(GENESIS, each) for each in [entry, *changed]} | {chain(b"\1" * 32, entry)}
    assert len(heads) == len(changed) + 2


def test_the_bytes_under_the_chain_are_fixed_width_and_little_endian() -> None:
    entry = Entry(1, 2, 3, (Term((4, 2**32 - 1), 2**64 - 2, np.array([7, -2])),))
    wanted = bytes.fromhex(
        "0100000000000000 0200000000000000 03000000 01000000"  # number, round, contributors, count of terms
        "02000000 feffffffffffffff 02000000"  # count of groups, first seed, count of steps
        "04000000 ffffffff 0700000000000000 feffffffffffffff"  # groups, steps
    )
    assert entry.canonical_bytes() == wanted
    assert chain(GENESIS, entry) == hashlib.blake2b(bytes(32) + wanted, digest_size=32).digest()
