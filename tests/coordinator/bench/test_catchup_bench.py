"""The catch-up benchmark states sizes of what is really encoded, and chooses as an agent would."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Bundles

from coordinator.bench import catchup
from zo import wire
from zo.bundle import Bundle
from zo.catchup import cheapest
from zo.checkpoint import Checkpoint, signs
from zo.ledger import Entry
from zo.messages import Offer, Way
from zo.replica import Replica
from zo.terms import Term

REPORTS, DIRECTIONS = 3, catchup.DIRECTIONS
WAYS = ("entries", "fold", "snapshot")


def lengths(terms: tuple[Term, ...]) -> Counter[int]:
    """Steps, by group."""
    return Counter(group for term in terms for group in term.groups for _ in range(term.steps.size))


def followed(bundle: Bundle, entries: list[Entry]) -> Replica:
    """A device that took every entry."""
    replica = Replica(bundle.parameters(), bytes(32), bundle.initial_tensors)
    for entry in entries:
        replica.apply(entry)
    return replica


def offers(found: dict[str, Any], entries: list[Entry], fold: Checkpoint, sizes: dict[int, int]) -> tuple[Offer, ...]:
    cost = {"entries": sum(signs(entry.terms, sizes) for entry in entries), "fold": signs(fold.terms, sizes), "snapshot": 0}
    return tuple(Offer(Way[way.upper()], found["rounds"], found[f"{way}_bytes"], cost[way], fold.digest) for way in WAYS)


@pytest.mark.parametrize(("rounds", "pool", "chosen"), [(1, 0, "entries"), (60, 16, "fold")])
def test_sizes_are_of_what_is_sent_and_every_way_leads_to_the_same(
    rounds: int, pool: int, chosen: str, bert_bundle: Bundle, tmp_path: Path
) -> None:
    found = catchup.measure(bert_bundle.folder, rounds, REPORTS, pool, tmp_path)
    entries, replica = catchup._ledger(bert_bundle, rounds, REPORTS, pool)
    fold, snapshot = replica.checkpoint(), replica.snapshot()
    assert (found["rounds"], found["reports"], found["pool"]) == (rounds, REPORTS, pool) == (len(entries), entries[0].contributors, pool)
    assert found["values"] == sum(group.size for group in bert_bundle.manifest.groups)
    assert found["entries_bytes"] == sum(len(wire.encode(entry)) for entry in entries)
    assert found["fold_bytes"] == len(wire.encode(fold))
    assert found["snapshot_bytes"] == len(wire.encode(snapshot)) > 4 * found["values"]
    assert found["digests_equal"] is True
    assert followed(bert_bundle, entries).parameters.digest() == fold.digest == snapshot.digest != bert_bundle.parameters().digest()
    speed = found["million_signs_per_second"] * 1e6
    assert speed > 0
    assert cheapest(offers(found, entries, fold, replica.sizes), catchup.LINK_SPEED, speed).way.name.lower() == found["chosen"] == chosen
    assert found[f"{chosen}_bytes"] == min(found[f"{way}_bytes"] for way in WAYS)
    assert set(found["predicted_seconds"]) == set(WAYS)
    assert all(found[f"{way}_replay_seconds"] >= 0 for way in WAYS)
    said = catchup.told(found)
    assert said.endswith(f"an agent chooses: {chosen}")
    assert all(f"{found[f'{way}_bytes']:,}" in said for way in WAYS)


@pytest.mark.parametrize("pool", [DIRECTIONS, 2 * DIRECTIONS + 1, 8 * DIRECTIONS])
def test_with_a_pool_a_fold_never_has_more_steps_than_that(pool: int, bundles: Bundles) -> None:
    bundle = bundles("bert")
    entries, replica = catchup._ledger(bundle, 80, REPORTS, pool)
    assert all(lengths(entry.terms) for entry in entries)
    fold = replica.checkpoint().terms
    assert fold
    longest = max(lengths(fold).values())
    assert longest <= pool
    assert longest > pool - DIRECTIONS  # it is used to the full
    assert {seed for term in fold for seed in term.seeds.tolist()} <= set(range(pool))


def test_without_a_pool_a_fold_grows_until_values_are_shorter(bert_bundle: Bundle) -> None:
    _, few = catchup._ledger(bert_bundle, 2, REPORTS, 0)
    fold = few.checkpoint()
    assert (max(lengths(fold.terms).values()), fold.values) == (2 * REPORTS * DIRECTIONS, ())
    _, many = catchup._ledger(bert_bundle, 60, REPORTS, 0)
    assert many.checkpoint().values


def test_the_ledger_is_such_as_a_coordinator_commits(bert_bundle: Bundle) -> None:
    entries, _ = catchup._ledger(bert_bundle, 5, REPORTS, 0)
    assert [(entry.number, entry.round, entry.contributors) for entry in entries] == [(n, n, REPORTS) for n in range(1, 6)]
    seeds = [seed for entry in entries for term in entry.terms if 0 in term.groups for seed in term.seeds.tolist()]
    assert len(set(seeds)) == len(seeds) == 5 * REPORTS * DIRECTIONS
