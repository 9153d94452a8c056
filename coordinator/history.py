"""Going through a run's ledger: what happened, what changed, whether it is true, going back, and folding the past."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from coordinator import replay
from coordinator.store import Conflict, RunRow, Store
from coordinator.summary import NOTHING_DONE
from zo import ledger
from zo.bundle import Bundle
from zo.checkpoint import signs
from zo.errors import ConfigError, StorageError
from zo.ledger import Entry, chain
from zo.replica import Replica
from zo.terms import Term
from zo.tiles import Tiles


def entry_at(store: Store, run: RunRow, round_number: int) -> int:
    """The entry that closed a round; 0 before the first. ConfigError where that round is not closed."""
    if round_number == 0:
        return 0
    rounds = {header.round: header.number for header, _ in store.headers(run.id)}
    if round_number not in rounds:
        raise ConfigError(f"run {run.name!r} has closed rounds 1 to {max(rounds, default=0)}, not {round_number}; 0 is the bundle")
    return rounds[round_number]


def log(store: Store, run: RunRow) -> list[dict[str, Any]]:
    """One row an entry, oldest first: what the audit trail says of it, compacted or not."""
    rows = []
    compacted = store.compacted(run.id)
    for (header, head), summary in zip(store.headers(run.id), store.summaries(run.id), strict=False):  # a round may close between the two
        rows.append(
            {
                "entry": header.number,
                "round": header.round,
                "contributors": header.contributors,
                "digest": header.digest.hex() if header.digest else None,
                "terms_digest": header.terms_digest.hex(),
                "chain": head.hex(),
                "compacted": header.number <= compacted,
                "rolled_back_to": summary.get("rolled_back_to"),
            }
        )
    return rows


def diff(store: Store, run: RunRow, bundle: Bundle, first: int, second: int) -> list[dict[str, Any]]:
    """What changed from one entry to another, by group: values that differ, root mean square and largest change."""
    replica = replay.replica(store, run, bundle, first)
    before = {group: replica.parameters.flat(group).copy() for group in replica.sizes}
    replay.move(replica, store, run, second)
    rows = []
    for group in bundle.manifest.groups:
        change = replica.parameters.flat(group.id).astype(np.float64) - before[group.id]
        rows.append(
            {
                "group": group.id,
                "kind": group.kind,
                "values": group.size,
                "changed": int(np.count_nonzero(change)),
                "rms": float(np.sqrt(np.mean(change**2))),
                "largest": float(np.abs(change).max()),
            }
        )
    return rows


def verify(entries: Iterable[Entry], heads: Iterable[bytes] | None, replica: Replica) -> int:
    """Apply entries to a replica, comparing every digest stated; gives how many there were. heads: the identity after each, compared too.

    StorageError names the first entry that is wrong.
    """
    compared = 0
    for entry, head in zip(entries, itertools.repeat(None) if heads is None else heads, strict=heads is not None):
        try:
            replica.apply(entry)
        except ValueError as error:
            raise StorageError(f"entry {entry.number}: {error}") from None
        if head not in (None, replica.head):
            raise StorageError(f"entry {entry.number}: its terms are not those that the hash chain covers")
        compared += entry.digest is not None
    return compared


def _verified(compacted: int, digests: int, replica: Replica) -> dict[str, Any]:
    return {
        "entries": replica.entry,
        "compacted": compacted,
        "digests": digests,
        "digest": replica.parameters.digest().hex(),
        "chain": replica.head.hex(),
    }


def verify_run(store: Store, run: RunRow, bundle: Bundle) -> dict[str, Any]:
    """Recompute every digest of a run from its bundle (or the checkpoint of compacted entries) and its ledger.

    StorageError where something is not what it is said to be.
    """
    if bundle.digest != run.bundle_digest:
        raise StorageError(f"{bundle.folder} is not the bundle that run {run.name!r} was begun with")
    compacted = store.compacted(run.id)
    replica = replay.replica(store, run, bundle, compacted)
    heads = [head for _, head in store.headers(run.id, compacted)]
    compared = verify(store.walk(run.id, compacted, compacted + len(heads)), heads, replica)
    return {"run": run.name} | _verified(compacted, compared, replica)


def verify_tiles(tiles: Tiles, key: bytes, bundle: Bundle) -> dict[str, Any]:
    """Recompute every digest from a bundle and the tiles alone, from the first entry on. key: 32 bytes that check the head.

    HeadRefused, TilesUnavailable or StorageError where something is not what it is said to be.
    """
    head = tiles.head(key)
    if head.bundle != bundle.digest:
        raise StorageError(f"{bundle.folder} is not the bundle that these tiles were begun with")
    replica = Replica(bundle.parameters(), head.genesis, bundle.initial_tensors)
    compared = verify(tiles.entries(head, 0, head.genesis), None, replica)  # the tiles have checked the hash chain
    return _verified(0, compared, replica)


def rollback(store: Store, run: RunRow, bundle: Bundle, to: int) -> Entry:
    """Append an entry that takes the parameters back, exactly, to where they were when round `to` closed.

    The round that is open now is closed by it; reports it had are dropped. Compacted where that is too long ago.
    """
    back_to = entry_at(store, run, to)
    if back_to < store.compacted(run.id):
        store.entries(run.id, back_to, 1)  # raises Compacted, and says up to where
    replica = replay.replica(store, run, bundle, back_to)
    digest, terms = replica.parameters.digest(), tuple[Term, ...]()
    last, head, round_number = back_to, replica.head, to + 1
    while True:  # only what is new each time, or a run whose rounds close faster than this takes could never be overtaken
        new = store.entries(run.id, last)
        for each in new:
            last, head, round_number = each.number, chain(head, each.header), each.round + 1
        terms = (*terms, *ledger.rollback(new))
        entry = Entry(last + 1, round_number, 0, terms, digest)
        summary = NOTHING_DONE | {"round": round_number, "rolled_back_to": to, "digest": digest.hex()}
        try:
            store.commit(run.id, entry, head, signs(terms, replica.sizes), summary)
        except Conflict:  # a round has closed meanwhile
            continue
        store.add_event(run.id, "rolled back", f"entry {entry.number} takes the parameters back to round {to}")
        return entry


def compact(store: Store, run: RunRow, entry: int, keep: int = 0) -> int:
    """Fold the entries up to one at which there is a checkpoint; gives how many lost their terms.

    Headers, digests and the hash chain stay; so do checkpoints at the best entry, for export, and at the one that others are compared
    with. keep: see `replay.drop_checkpoints`.
    """
    for wanted in replay.wanted_entries(store, run.id) - set(store.checkpoints(run.id)):
        if store.compacted(run.id) < wanted < entry:
            store.add_checkpoint(run.id, replay.replica(store, run, replay.opened(run), wanted).checkpoint())
    dropped = store.compact(run.id, entry)
    replay.drop_checkpoints(store, run.id, keep)
    return dropped


def compact_all_but(store: Store, run: RunRow, bundle: Bundle, keep: int) -> int:
    """Fold all but the last `keep` entries; gives how many lost their terms."""
    entry = store.head(run.id)[0] - keep
    if entry <= store.compacted(run.id):
        return 0
    if entry not in store.checkpoints(run.id):
        store.add_checkpoint(run.id, replay.replica(store, run, bundle, entry).checkpoint())
    return compact(store, run, entry)


def compact_when_due(store: Store, run: RunRow, keep: int, most: int | None = None) -> int:
    """Fold old entries once a checkpoint is `keep` entries behind the last; gives how many lost their terms.

    most: the last entry that may be folded, where others still need what is above.
    """
    last, compacted = store.head(run.id)[0], store.compacted(run.id)
    stop = last - keep if most is None else min(most, last - keep)
    due = [entry for entry in store.checkpoints(run.id) if compacted < entry <= stop]
    return compact(store, run, due[-1], keep) if due else 0
