"""A replica comes to the same state by every way, refuses what does not lead there, and says where it is."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import ABSENT, LAYOUT, LIMIT, PROPERTY, cancelling_terms, flat_group, made, start, tensors, term_lists

from zo import wire
from zo.checkpoint import Checkpoint, GroupValues
from zo.group import Group
from zo.lattice import RangeError
from zo.ledger import Entry, chain, fold, rollback
from zo.replica import Diverged, LedgerError, Replica
from zo.terms import Term

GENESIS = bytes(range(32))
# 12, 160 and 3200 bytes of values: the first group is given up at once, the last hardly ever.
TINY = (flat_group(3, group=3, name="x"), flat_group(40, group=0, name="y"), flat_group(800, group=9, name="z"))
LAYOUTS = st.sampled_from((LAYOUT, TINY))
HISTORIES = st.lists(st.one_of(term_lists(), cancelling_terms()), max_size=4)


def replica(groups: tuple[Group, ...] = LAYOUT, genesis: bytes = GENESIS) -> Replica:
    return Replica(made(groups), genesis, lambda: tensors(groups, start(groups)))


def entries_of(histories: list[list[Term]], groups: tuple[Group, ...] = LAYOUT) -> list[Entry]:
    """Entries, every second one with the digest after it."""
    entries, parameters = [], made(groups)
    for number, terms in enumerate(histories, start=1):
        parameters.add(terms)
        entries.append(Entry(number, 10 + number, 3, tuple(terms), parameters.digest() if number % 2 else None))
    return entries


def followed(entries: list[Entry], groups: tuple[Group, ...] = LAYOUT, there: Replica | None = None) -> Replica:
    there = there or replica(groups)
    for entry in entries:
        there.apply(entry)
    return there


@dataclass(frozen=True)
class Where:
    """All that says where a replica is."""

    entry: int
    head: bytes
    digest: bytes


def where(there: Replica) -> Where:
    return Where(there.entry, there.head, there.parameters.digest())


def sent(checkpoint: Checkpoint) -> Checkpoint:
    """As another machine gets it."""
    return wire.decoder(Checkpoint)(wire.encode(checkpoint))


def term(step: int, *groups: int, seed: int = 0) -> Term:
    return Term(groups or (0, 3, 9), seed, np.array([step]))


HISTORY = entries_of([[term(5, seed=7), term(-3, 9)], [], [term(900, 0, seed=8)], [term(-5, seed=7), term(2, 3, seed=9)]])
BUNDLE = where(replica())


# --- every way leads to the same state ---


@PROPERTY
@given(HISTORIES, LAYOUTS, st.data())
def test_every_way_leads_to_the_same_state(histories: list[list[Term]], groups: tuple[Group, ...], data: st.DataObject) -> None:
    """Replaying; one fold; a checkpoint and the rest; a snapshot and the rest: the same bits and the same identity."""
    entries = entries_of(histories, groups)
    end = where(followed(entries, groups))
    cut = data.draw(st.integers(0, len(entries)))
    half_way = followed(entries[:cut], groups)
    for checkpoint in (half_way.checkpoint(), half_way.snapshot()):
        restored = replica(groups)
        restored.restore(sent(checkpoint))
        assert where(restored) == where(half_way)
        assert where(followed(entries[cut:], groups, restored)) == end
    folded = made(groups)
    folded.add(fold(each for entry in entries for each in entry.terms))
    assert folded.digest() == end.digest


@PROPERTY
@given(HISTORIES, LAYOUTS, st.data())
def test_a_replica_may_be_saved_and_restored_any_number_of_times(
    histories: list[list[Term]], groups: tuple[Group, ...], data: st.DataObject
) -> None:
    """Each save is made by the replica restored from the one before; groups are given up on the way."""
    entries = entries_of(histories, groups)
    straight, there = replica(groups), replica(groups)
    given_up = set[int]()
    for entry in entries:
        straight.apply(entry)
        there.apply(entry)
        for _ in range(data.draw(st.integers(0, 2))):
            saved = sent(data.draw(st.sampled_from((there.checkpoint, there.snapshot)))())
            there = data.draw(st.sampled_from((there, replica(groups))))  # over what it holds, or from the bundle
            there.restore(saved)
            assert given_up <= {given.group for given in saved.values}
            given_up = {given.group for given in saved.values}
        assert where(there) == where(straight)
    last = replica(groups)
    last.restore(sent(there.checkpoint()))
    assert where(last) == where(straight)


@PROPERTY
@given(HISTORIES.filter(bool), LAYOUTS, st.data())
def test_a_rollback_is_exact_after_a_checkpoint_too(histories: list[list[Term]], groups: tuple[Group, ...], data: st.DataObject) -> None:
    entries = entries_of(histories, groups)
    to = data.draw(st.integers(0, len(entries) - 1))
    before, after = where(followed(entries[:to], groups)), followed(entries, groups)
    restored = replica(groups)
    restored.restore(sent(after.checkpoint()))
    undo = Entry(len(entries) + 1, 99, 0, rollback(entries[to:]), before.digest)
    restored.apply(undo)
    again = replica(groups)
    again.restore(sent(restored.checkpoint()))
    assert where(again) == where(restored) == Where(len(entries) + 1, chain(after.head, undo.header), before.digest)


@PROPERTY
@given(HISTORIES, LAYOUTS)
def test_a_checkpoint_holds_each_group_once_and_is_never_much_longer_than_a_snapshot(
    histories: list[list[Term]], groups: tuple[Group, ...]
) -> None:
    there = followed(entries_of(histories, groups), groups)
    checkpoint, snapshot = there.checkpoint(), there.snapshot()
    in_terms = {group for each in checkpoint.terms for group in each.groups}
    in_values = {given.group for given in checkpoint.values}
    assert not in_terms & in_values
    assert in_terms | in_values <= there.sizes.keys()
    assert {given.group: len(given.values) for given in snapshot.values} == {id_: 4 * size for id_, size in there.sizes.items()}
    assert snapshot.terms == ()
    assert len(wire.encode(checkpoint)) <= 1.3 * len(wire.encode(snapshot))
    identity = (there.genesis, there.entry, there.head, there.parameters.digest())
    assert all((c.genesis, c.entry, c.head, c.digest) == identity for c in (checkpoint, snapshot))


def test_a_checkpoint_stays_short_however_many_rounds_there_were() -> None:
    """Seeds of their own: without a bound, 60 rounds of 200 steps a group would be ten times the values."""
    there, rng = replica(TINY), np.random.default_rng(0)
    snapshot = len(wire.encode(there.snapshot()))
    for number in range(1, 61):
        terms = tuple(Term((group.id,), number << 32, rng.integers(-90, 90, 200)) for group in TINY)
        there.apply(Entry(number, number, 1, terms))
        if number % 9 == 0:
            assert len(wire.encode(there.checkpoint())) <= 1.1 * snapshot
    restored = replica(TINY)
    restored.restore(sent(there.checkpoint()))
    assert where(restored) == where(there)
    assert there.checkpoint().terms == ()


def test_with_a_pool_a_checkpoint_never_has_more_steps_a_group_than_the_pool() -> None:
    there, rng = replica(LAYOUT), np.random.default_rng(0)
    for number in range(1, 61):
        slot = 8 * int(rng.integers(4))
        there.apply(Entry(number, number, 1, tuple(Term((group.id,), slot, rng.integers(-90, 90, 8)) for group in LAYOUT)))
    checkpoint = there.checkpoint()
    assert {group for each in checkpoint.terms for group in each.groups} == {0, 3, 9}
    for group in LAYOUT:
        assert sum(each.steps.size for each in checkpoint.terms if group.id in each.groups) <= 32


def test_to_ask_for_a_checkpoint_changes_nothing() -> None:
    there = followed(HISTORY)
    before = where(there)
    assert there.checkpoint() == there.checkpoint()
    there.snapshot()
    assert where(there) == before


# --- going on ---


def test_the_identity_is_the_chain_over_the_headers() -> None:
    there, head = replica(), GENESIS
    assert (there.entry, there.head) == (0, GENESIS)
    for entry in HISTORY:
        there.apply(entry)
        head = chain(head, entry.header)
        assert (there.entry, there.head) == (entry.number, head)


def test_to_advance_is_to_apply_without_adding() -> None:
    applied, advanced = followed(HISTORY), replica()
    for entry in HISTORY:
        advanced.parameters.add(entry.terms)
        advanced.advance(entry)
    assert where(advanced) == where(applied)
    assert advanced.checkpoint() == applied.checkpoint()


@pytest.mark.parametrize("number", [0, 1, 2, 4, 2**64 - 1])
def test_an_entry_that_does_not_follow_changes_nothing(number: int) -> None:
    there = followed(HISTORY[:2])
    before = where(there)
    with pytest.raises(LedgerError, match=f"entry {number} does not follow entry 2"):
        there.apply(replace(HISTORY[2], number=number))
    assert where(there) == before
    assert where(followed(HISTORY[2:], there=there)) == where(followed(HISTORY))


def test_the_first_entry_is_number_one() -> None:
    with pytest.raises(LedgerError, match="does not follow entry 0"):
        replica().apply(HISTORY[1])


def test_an_entry_that_the_parameters_cannot_take_changes_nothing() -> None:
    there = followed(HISTORY[:2])
    before = where(there)
    with pytest.raises(RangeError, match="'a'"):
        there.apply(Entry(3, 13, 1, (term(1), term(2 * LIMIT, 3)), b"d" * 32))
    assert where(there) == before
    assert where(followed(HISTORY[2:], there=there)) == where(followed(HISTORY))
    assert there.checkpoint() == followed(HISTORY).checkpoint()


def test_an_entry_whose_digest_is_not_reached_was_applied_all_the_same() -> None:
    """Whoever gets Diverged knows which entry it is at; its parameters are what they are."""
    there, wanted = replica(), replica()
    wanted.parameters.add([term(4)])
    entry = Entry(1, 1, 1, (term(4),), b"d" * 32)
    with pytest.raises(Diverged, match="entry 1"):
        there.apply(entry)
    assert where(there) == Where(1, chain(GENESIS, entry.header), wanted.parameters.digest())


def test_a_value_that_rots_is_noticed_at_the_next_digest_and_not_before() -> None:
    there = followed(HISTORY[:1])
    rotten = there.parameters.flat(9).copy()
    rotten[5] += 2.0**-30
    there.parameters.load(9, rotten)
    there.apply(HISTORY[1])
    with pytest.raises(Diverged, match="entry 3"):
        there.apply(HISTORY[2])
    with pytest.raises(Diverged):
        there.check(where(followed(HISTORY[:3])).digest)
    there.reset()
    assert where(followed(HISTORY, there=there)) == where(followed(HISTORY))


def test_to_check_is_to_compare() -> None:
    there = followed(HISTORY)
    there.check(there.parameters.digest())
    with pytest.raises(Diverged):
        there.check(bytes(32))


# --- back to the bundle ---


@PROPERTY
@given(HISTORIES, LAYOUTS)
def test_a_reset_leads_back_to_the_bundle_in_place(histories: list[list[Term]], groups: tuple[Group, ...]) -> None:
    entries, fresh = entries_of(histories, groups), replica(groups)
    there = followed(entries, groups)
    live = there.parameters.tensors()
    there.reset()
    assert where(there) == where(fresh)
    assert there.checkpoint() == fresh.checkpoint()
    assert all(np.shares_memory(there.parameters.tensor(name), values) for name, values in live.items())
    assert where(followed(entries, groups, there)) == where(followed(entries, groups))


def test_a_reset_forgets_which_groups_were_given_up() -> None:
    there = followed(entries_of([[Term((0,), 0, np.arange(1, 200))]], TINY), TINY)
    assert {given.group for given in there.checkpoint().values} == {0}
    there.reset()
    there.apply(Entry(1, 1, 1, (term(1),)))
    assert there.checkpoint().values == ()
    assert {group for each in there.checkpoint().terms for group in each.groups} == {0, 3, 9}


# --- restoring what cannot be restored ---


def changed_values(checkpoint: Checkpoint, change: Callable[[bytes], bytes]) -> Checkpoint:
    first, *rest = checkpoint.values
    return replace(checkpoint, values=(replace(first, values=change(first.values)), *rest))


def bad_checkpoints() -> Mapping[str, Checkpoint]:
    good = followed(HISTORY).checkpoint()
    snapshot = followed(HISTORY).snapshot()
    return {
        "wrong digest": replace(good, digest=bytes(32)),
        "wrong digest of values": replace(snapshot, digest=bytes(32)),
        "another step": replace(good, terms=(*good.terms, term(1, 9, seed=99))),
        "a term less": replace(good, terms=good.terms[1:]),
        "another value": changed_values(snapshot, lambda data: struct.pack("<f", 1.0) + data[4:]),
        "too few values": changed_values(snapshot, lambda data: data[:-4]),
        "too many values": changed_values(snapshot, lambda data: data + bytes(4)),
        "part of a value": changed_values(snapshot, lambda data: data[:-1]),
        "no values": changed_values(snapshot, lambda data: b""),
        "off the lattice": changed_values(snapshot, lambda data: data[:-4] + struct.pack("<f", 0.3)),
        "minus zero": changed_values(snapshot, lambda data: struct.pack("<f", -0.0) + data[4:]),
        "not a number": changed_values(snapshot, lambda data: struct.pack("<f", float("nan")) + data[4:]),
        "a group less": replace(snapshot, values=snapshot.values[:-1]),
        "out of range": replace(good, terms=(*good.terms, term(2 * LIMIT, 9))),
        "out of range after values": replace(snapshot, terms=(term(2 * LIMIT, 9),)),
        "sums too large to be exact": replace(good, terms=(term(2**53), term(2**53, seed=1))),
    }


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("kind", bad_checkpoints())
def test_a_checkpoint_that_cannot_be_reached_leaves_the_replica_at_the_bundle(kind: str, after: int) -> None:
    there = followed(HISTORY[:after])
    with pytest.raises(Diverged):
        there.restore(bad_checkpoints()[kind])
    assert where(there) == BUNDLE
    assert there.checkpoint() == replica().checkpoint()
    there.restore(followed(HISTORY).checkpoint())
    assert where(there) == where(followed(HISTORY))


@pytest.mark.parametrize("after", [0, 2])
def test_a_checkpoint_of_another_ledger_changes_nothing(after: int) -> None:
    there, other = followed(HISTORY[:after]), replica(genesis=b"o" * 32)
    before = where(there)
    with pytest.raises(LedgerError, match="another ledger"):
        there.restore(followed(HISTORY, there=other).checkpoint())
    assert where(there) == before
    assert where(followed(HISTORY[after:], there=there)) == where(followed(HISTORY))


def test_the_message_says_which_entry_could_not_be_reached() -> None:
    with pytest.raises(Diverged, match="entry 4 do not have the digest"):
        replica().restore(bad_checkpoints()["wrong digest"])
    with pytest.raises(Diverged, match="values of group 0"):
        replica().restore(bad_checkpoints()["too few values"])


@pytest.mark.parametrize("after", [0, 3])
def test_whatever_the_parameters_held_a_restored_replica_is_at_the_checkpoint(after: int) -> None:
    good = followed(HISTORY).checkpoint()
    there = followed(HISTORY[:after])
    there.parameters.add([term(77, seed=123)])
    there.restore(good)
    assert where(there) == where(followed(HISTORY))


# --- a part of the groups ---


def test_a_replica_of_some_groups_follows_the_restriction_of_the_ledger() -> None:
    part, whole = followed([replace(entry, digest=None) for entry in HISTORY], LAYOUT[:2]), followed(HISTORY)
    for group in LAYOUT[:2]:
        assert part.parameters.group_digest(group.id) == whole.parameters.group_digest(group.id)
    restored = replica(LAYOUT[:2])
    restored.restore(sent(part.checkpoint()))
    assert where(restored) == where(part)
    assert {group for each in part.checkpoint().terms for group in each.groups} == {0, 3}


def test_the_base_is_read_when_it_is_needed_only() -> None:
    read: list[int] = []

    def base() -> Mapping[str, Any]:
        read.append(1)
        return tensors(LAYOUT, start(LAYOUT))

    there = Replica(made(), GENESIS, base)
    followed(HISTORY, there=there)
    assert not read
    there.reset()
    assert read == [1]


def test_terms_on_groups_that_nobody_holds_are_part_of_the_identity_only() -> None:
    there = followed([Entry(1, 1, 1, (term(5, ABSENT),))])
    assert there.head != GENESIS
    assert there.parameters.digest() == BUNDLE.digest
    assert there.checkpoint().terms == there.checkpoint().values == ()


def test_values_of_groups_that_nobody_holds_are_not_kept() -> None:
    good, there = followed(HISTORY).checkpoint(), replica()
    there.restore(replace(good, values=(GroupValues(ABSENT, b"?"),)))
    assert there.checkpoint() == good


def test_an_entry_that_cannot_be_written_down_changes_nothing() -> None:
    there = replica()
    with pytest.raises(struct.error):
        there.apply(Entry(1, 1, -1, (term(1),)))
    assert where(there) == BUNDLE


def test_a_replica_whose_bundle_cannot_be_read_again_does_not_claim_an_entry_it_never_reached() -> None:
    gone = True

    def base() -> Mapping[str, Any]:
        if gone:
            raise OSError("gone")
        return tensors(LAYOUT, start(LAYOUT))

    there = Replica(made(), GENESIS, base)
    followed(HISTORY, there=there)
    with pytest.raises(OSError, match="gone"):
        there.reset()
    assert (there.entry, there.head) == (0, GENESIS)
    gone = False
    there.restore(followed(HISTORY).checkpoint())
    assert where(there) == where(followed(HISTORY))
