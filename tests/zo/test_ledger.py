"""A ledger folds to what replaying it gives, its fold stays bounded, and its chain names one history."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY, cancelling_terms, flat_group, made, term_lists

from zo import wire
from zo.ledger import Entry, Folding, Header, chain, encoded_size, fold, genesis, rollback, short
from zo.terms import STEP_LIMIT, Term, collect, negated

HISTORIES = st.lists(st.one_of(term_lists(), cancelling_terms()), max_size=4)
GENESIS = bytes(range(32))
TINY = (flat_group(3, group=3, name="x"), flat_group(40, group=0, name="y"), flat_group(800, group=9, name="z"))
SIZES = {group.id: group.size for group in TINY}


def entries_of(histories: list[list[Term]]) -> list[Entry]:
    return [Entry(number, 10 + number, 3, tuple(terms)) for number, terms in enumerate(histories, start=1)]


def all_of(histories: list[list[Term]]) -> list[Term]:
    return [term for terms in histories for term in terms]


# --- folding ---


@PROPERTY
@given(HISTORIES)
def test_folding_gives_the_bits_that_replaying_gives(histories: list[list[Term]]) -> None:
    replayed, folded = made(), made()
    for terms in histories:
        replayed.add(terms)
    folded.add(fold(all_of(histories)))
    assert folded.digest() == replayed.digest()


@PROPERTY
@given(HISTORIES)
def test_a_fold_holds_each_seed_of_a_group_once_and_no_longer_folds(histories: list[list[Term]]) -> None:
    folded = fold(all_of(histories))
    for group in (0, 3, 9, 77):
        terms = [term for term in folded if group in term.groups]
        seeds = [seed for term in terms for seed in term.seeds.tolist()]
        assert len(set(seeds)) == len(seeds)
        assert all((term.steps != 0).all() for term in terms)
        assert sorted(seeds) == collect(all_of(histories), group)[0].tolist()
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
    entries, parameters = entries_of(histories), made()
    heads, digests = [GENESIS], [parameters.digest()]
    for entry in entries:
        parameters.add(entry.terms)
        heads.append(chain(heads[-1], entry.header))
        digests.append(parameters.digest())
    to = data.draw(st.integers(0, len(histories) - 1))
    undo = Entry(len(histories) + 1, 99, 0, rollback(entries[to:]))
    parameters.add(undo.terms)
    assert parameters.digest() == digests[to]
    assert chain(heads[-1], undo.header) not in heads
    replayed = made()
    replayed.add(fold(term for entry in [*entries, undo] for term in entry.terms))
    assert replayed.digest() == digests[to]


# --- the running fold ---


@PROPERTY
@given(HISTORIES, st.data())
def test_a_running_fold_gives_the_bits_that_replaying_gives_in_all_groups_it_has_kept(
    histories: list[list[Term]], data: st.DataObject
) -> None:
    """However often it is asked: asking is when it folds, and when groups are given up."""
    folding, replayed, given_up = Folding(SIZES), made(TINY), set[int]()
    for terms in histories:
        replayed.add(terms)
        folding.add(iter(terms))
        if data.draw(st.booleans()):
            folding.terms()
            assert given_up <= folding.without
            given_up = set(folding.without)
    folded, terms = made(TINY), folding.terms()
    folded.add(terms)
    assert given_up <= folding.without <= SIZES.keys()
    assert {group for term in terms for group in term.groups} <= SIZES.keys() - folding.without
    kept = SIZES.keys() - folding.without
    assert {group: folded.group_digest(group) for group in kept} == {group: replayed.group_digest(group) for group in kept}
    assert folding.terms() == terms


@PROPERTY
@given(HISTORIES)
def test_a_running_fold_is_the_fold_unless_groups_were_given_up(histories: list[list[Term]]) -> None:
    folding = Folding({0: 10**6, 3: 10**6, 9: 10**6})
    for terms in histories:
        folding.add(terms)
    mine = [Term(tuple(g for g in term.groups if g != 77), term.first_seed, term.steps) for term in all_of(histories)]
    assert folding.terms() == fold(mine)
    assert not folding.without


def test_a_group_is_given_up_when_its_steps_are_no_shorter_than_its_values_and_for_good() -> None:
    folding = Folding({0: 8, 1: 1000})
    steps = np.arange(1, 40)
    folding.add([Term((0, 1), 0, steps[:1]), Term((1,), 5, steps[:1])])
    assert {group for term in folding.terms() for group in term.groups} == {0, 1}
    folding.add([Term((0, 1), 100, steps)])
    assert folding.terms() == fold([Term((1,), 0, steps[:1]), Term((1,), 5, steps[:1]), Term((1,), 100, steps)])
    assert folding.without == {0}
    folding.add([Term((0,), 100, -steps), Term((0,), 0, -steps[:1])])  # nothing would be left of it
    assert folding.without == {0}
    assert all(term.groups == (1,) for term in folding.terms())
    folding.add([Term((0,), 7, steps[:1])])
    assert all(term.groups == (1,) for term in folding.terms())


def test_a_group_keeps_its_steps_while_they_are_shorter() -> None:
    """12 + 2 bytes and one a step: 17 steps take 31 bytes of the 32 that 8 values take."""
    for count, given_up in ((17, set()), (18, {0})):
        folding = Folding({0: 8})
        folding.add([Term((0,), 0, np.ones(count, np.int64))])
        assert bool(folding.terms()) is not bool(given_up)
        assert folding.without == given_up


def test_groups_that_share_their_steps_are_weighed_together() -> None:
    folding = Folding({0: 8, 1: 8, 2: 8})
    folding.add([Term((0, 1), 0, np.ones(40, np.int64)), Term((2,), 0, np.full(40, 2))])
    assert folding.terms() == (Term((0, 1), 0, np.ones(40, np.int64)),)
    assert folding.without == {2}


def held(folding: Folding) -> int:
    """Steps in memory, folded or waiting."""
    return sum(term.steps.size for term in (*folding._folded, *folding._later))


def test_with_seeds_of_their_own_a_running_fold_stays_bounded_unasked() -> None:
    """Every round has other seeds: 8000 values are never more than 32000 steps, and 2**16 more may wait."""
    sizes, largest = {0: 5000, 1: 3000}, 0
    folding = Folding(sizes)
    for number in range(150):
        folding.add([Term((0,), number << 32, np.full(1500, 3)), Term((1,), number << 32, np.full(1500, 5))])
        largest = max(largest, held(folding))
    assert largest <= 4 * 8000 + 2**16 + 3000
    assert folding.without == {0, 1}
    assert folding.terms() == ()


def test_once_all_groups_are_given_up_a_running_fold_holds_nothing_for_long() -> None:
    folding = Folding({0: 1}, {0})
    for number in range(300):
        folding.add([Term((0,), number << 32, np.ones(1000, np.int64))])
        assert held(folding) <= 2**16 + 1000
    assert folding.terms() == ()
    assert held(folding) == 0


def test_with_a_pool_a_running_fold_never_has_more_steps_a_group_than_the_pool() -> None:
    rng, pool, groups = np.random.default_rng(0), 512, {0: 10**6, 1: 10**6}
    folding = Folding(groups)
    for number in range(400):
        slot = int(rng.integers(pool // 64)) * 64
        folding.add([Term((group,), slot, rng.integers(-900, 900, 64)) for group in groups for _ in range(4)])
        if number % 7 == 0:
            folding.terms()
        assert held(folding) <= 2 * pool + 2**16 + 512
    terms = folding.terms()
    for group in groups:
        assert sum(term.steps.size for term in terms if group in term.groups) <= pool
    assert not folding.without


# Seeds close together, as those of a round are, so that a term is long: its frame then counts for little.
@PROPERTY
@given(st.lists(st.integers(0, 2**32 - 1), max_size=4, unique=True), st.lists(st.integers(-STEP_LIMIT, STEP_LIMIT), max_size=60))
def test_the_length_of_a_term_is_about_that_on_the_wire(groups: list[int], steps: list[int]) -> None:
    term = Term(tuple(groups), 2**63, np.array(steps, np.int64))
    assert abs(encoded_size(term) - len(wire.encode(term))) <= 6 + 3 * len(groups)


@pytest.mark.parametrize("bits", [6, 7, 13, 14, 20, 27, 34, 41, 48])
def test_the_length_of_steps_is_exact_where_another_byte_begins(bits: int) -> None:
    def both(step: int) -> tuple[int, int]:
        """What a thousand such steps add."""
        many, none = (Term((0,), 1, np.full(count, step)) for count in (1000, 0))
        return encoded_size(many) - encoded_size(none), len(wire.encode(many)) - len(wire.encode(none))

    for step in (2**bits - 1, 2**bits, -(2**bits), -(2**bits) - 1):
        estimated, real = both(step)
        assert 0 <= real - estimated <= 3  # the field's own tag and length


# --- the chain ---


ENTRY = Entry(1, 2, 3, (Term((4, 2**32 - 1), 2**64 - 2, np.array([7, -2])), Term((9,), 10, np.array([11]))), bytes(range(100, 132)))
TERMS_BYTES = bytes.fromhex(
    "02000000"  # count of terms
    "02000000 feffffffffffffff 02000000"  # count of groups, first seed, count of steps
    "04000000 ffffffff 0700000000000000 feffffffffffffff"  # groups, steps
    "01000000 0a00000000000000 01000000 09000000 0b00000000000000"
)
TERMS_DIGEST = hashlib.blake2b(TERMS_BYTES, digest_size=32).digest()
HEADER_BYTES = bytes.fromhex("0100000000000000 0200000000000000 03000000")  # number, round, contributors


def test_the_bytes_under_the_chain_are_fixed_width_and_little_endian() -> None:
    assert ENTRY.header == Header(1, 2, 3, TERMS_DIGEST, bytes(range(100, 132)))
    assert ENTRY.header.canonical_bytes() == HEADER_BYTES + TERMS_DIGEST + bytes(range(100, 132))
    assert replace(ENTRY, digest=None).header.canonical_bytes() == HEADER_BYTES + TERMS_DIGEST
    largest = Header(2**64 - 1, 2**64 - 2, 2**32 - 1, b"\1" * 32)
    assert largest.canonical_bytes() == bytes.fromhex("ffffffffffffffff feffffffffffffff ffffffff") + b"\1" * 32


def test_the_identity_after_an_entry_is_blake2b_over_the_one_before_and_the_header() -> None:
    wanted = hashlib.blake2b(GENESIS + HEADER_BYTES + TERMS_DIGEST + bytes(range(100, 132)), digest_size=32).digest()
    assert chain(GENESIS, ENTRY.header) == wanted
    assert wanted.hex() == "3964efd1fdedd80ec761f2edab306af34cf5ea4a5d1379751c22740ae9890998"


def test_a_header_says_what_the_chain_needs_without_the_terms() -> None:
    """What stays after compaction leads to the same identities."""
    entries = entries_of([[Term((0,), 5, np.array([1]))], [], [Term((3,), 6, np.array([2]))]])
    headers, head, compacted = [entry.header for entry in entries], GENESIS, GENESIS
    for entry, header in zip(entries, headers, strict=True):
        head, compacted = chain(head, entry.header), chain(compacted, header)
    assert head == compacted
    assert len({header.terms_digest for header in headers}) == 3


def test_the_chain_depends_on_the_state_before_and_on_every_field() -> None:
    entry = Entry(1, 2, 3, (Term((4, 5), 6, np.array([7, -8])), Term((9,), 10, np.array([11]))))
    a, b = entry.terms
    changed = [
        replace(entry, number=2),
        replace(entry, round=3),
        replace(entry, contributors=4),
        replace(entry, digest=bytes(32)),
        replace(entry, digest=b"\1" + bytes(31)),
        replace(entry, digest=bytes(31) + b"\1"),
        replace(entry, terms=()),
        replace(entry, terms=(b, a)),
        replace(entry, terms=(a,)),
        replace(entry, terms=(a, b, b)),
        replace(entry, terms=negated((a, b))),
        replace(entry, terms=(Term((5, 4), 6, a.steps), b)),
        replace(entry, terms=(Term((4,), 6, a.steps), b)),
        replace(entry, terms=(Term((4, 5), 7, a.steps), b)),
        replace(entry, terms=(Term((4, 5), 6, np.array([7, 8])), b)),
        replace(entry, terms=(Term((4, 5), 6, np.array([7])), Term((4, 5), 7, np.array([-8])), b)),
    ]
    heads = {chain(GENESIS, each.header) for each in [entry, *changed]} | {chain(b"\1" * 32, entry.header)}
    assert len(heads) == len(changed) + 2


@pytest.mark.parametrize("field", ["number", "round", "contributors", "terms_digest", "digest"])
def test_every_bit_of_a_header_changes_the_identity(field: str) -> None:
    header, width = ENTRY.header, {"number": 64, "round": 64, "contributors": 32}.get(field, 256)
    value = getattr(header, field)
    number = value if isinstance(value, int) else int.from_bytes(value, "little")
    flipped = [number ^ 1 << bit for bit in range(width)]
    others = [replace(header, **{field: n if isinstance(value, int) else n.to_bytes(32, "little")}) for n in flipped]
    assert len({chain(GENESIS, each) for each in [header, *others]}) == width + 1


def test_ledgers_of_the_same_bundle_have_different_identities_from_the_start() -> None:
    found = {genesis(bundle, nonce) for bundle in (b"\1" * 32, b"\2" * 32) for nonce in (b"\3" * 16, b"\4" * 16)}
    assert len(found) == 4
    assert genesis(b"\1" * 32, b"\3" * 16) == hashlib.blake2b(b"edge-zo ledger" + b"\1" * 32 + b"\3" * 16, digest_size=32).digest()


def test_the_short_form_is_the_first_eight_bytes() -> None:
    assert short(bytes(range(1, 33))) == 0x0807060504030201
    assert short(b"\xff" * 32) == 2**64 - 1
