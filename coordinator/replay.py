"""Parameters at any entry of a stored run: from the nearest checkpoint before it, along the ledger."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.autopilot import SURE
from coordinator.store import RunRow, Store
from zo.bundle import Bundle, open_bundle
from zo.errors import BundleError, StorageError
from zo.replica import LedgerError, Replica

log = logging.getLogger(__name__)

LATELY = 64  # entries: once devices have looked, all but those of a rollback tell the best


def replica(store: Store, run: RunRow, bundle: Bundle, entry: int | None = None) -> Replica:
    """A replica at an entry of the run, the last by default.

    StorageError where the ledger is damaged, or its terms before the entry have been compacted away.
    """
    store.check_chain(run)
    made = Replica(bundle.parameters(), run.genesis, bundle.initial_tensors)
    move(made, store, run, store.head(run.id)[0] if entry is None else entry)
    return made


def move(replica: Replica, store: Store, run: RunRow, entry: int) -> None:
    """Bring a replica to an entry, before or after where it is."""
    checkpoints = [each for each in store.checkpoints(run.id) if each <= entry]
    if not max(checkpoints, default=0) <= replica.entry <= entry:
        _start(replica, store, run, checkpoints)
    try:
        for each in store.walk(run.id, replica.entry, entry):
            replica.apply(each)
    except ValueError as error:
        raise StorageError(f"run {run.name!r}: {error}; restore the store from a backup") from None
    if (replica.entry, replica.head) != store.head(run.id, entry):
        raise StorageError(
            f"run {run.name!r}: the entries up to {entry} do not lead to the identity stored; restore the store from a backup"
        )


def _start(replica: Replica, store: Store, run: RunRow, checkpoints: list[int]) -> None:
    """Go to the last of some checkpoints that is sound, or to the bundle."""
    for entry in reversed(checkpoints):
        try:
            checkpoint = store.checkpoint(run.id, entry)
            if checkpoint is None or (checkpoint.entry, checkpoint.head) != store.head(run.id, entry):
                raise LedgerError("it is of another ledger")
            stated = store.headers(run.id, entry - 1)[0][0].digest if entry else None
            if stated not in (None, checkpoint.digest):
                raise LedgerError("it is not what the ledger states at its entry")
            replica.restore(checkpoint)
            return
        except (StorageError, ValueError) as error:  # it has rotted: what is before it may still be there
            log.warning("the checkpoint at entry %d is not used: %s", entry, error)
    replica.reset()


def best_entry(store: Store, run: int) -> int:
    """The last evaluated entry whose validation loss is within one standard error, on the same rows, of the lowest one: what is
    lowest of many is so by luck too, and later entries were reached at lower rates. The start where none is surely better.
    Where none was evaluated, the best by the devices' own held-out losses, or the last one.
    """
    evaluated = store.evaluations(run, "validation")
    if not evaluated:
        lately = reversed(store.summaries(run, LATELY))
        return next((summary["best_entry"] for summary in lately if "best_entry" in summary), store.head(run)[0])
    lowest = lowest_entry(evaluated)
    as_good = [entry for entry in _surely_better(evaluated) if evaluated[entry].get("over") == lowest and _within_error(evaluated[entry])]
    return max([lowest, *as_good])


def lowest_entry(evaluated: dict[int, dict[str, Any]]) -> int:
    """The one with the lowest validation loss (class-balanced for classification) of those that are surely better than the start, or 0."""
    return min(_surely_better(evaluated), key=lambda entry: (evaluated[entry]["balanced_loss"], entry), default=0)


def wanted_entries(store: Store, run: int) -> set[int]:
    """Those whose parameters will be asked for: the best, for export, and the lowest, with which evaluations are compared."""
    return {best_entry(store, run), lowest_entry(store.evaluations(run, "validation"))}


def _surely_better(evaluated: dict[int, dict[str, Any]]) -> list[int]:
    return [entry for entry, metrics in evaluated.items() if metrics.get("gain", np.inf) > SURE * metrics.get("gain_error", 0.0)]


def _within_error(metrics: dict[str, Any]) -> bool:
    return bool(metrics["rise"] <= metrics["rise_error"])


def drop_checkpoints(store: Store, run: int, keep: int = 0) -> None:
    """Keep the checkpoints that something depends on: the newest two, the one that stands for compacted entries, those of `wanted_entries`.

    keep: where entries are to be compacted once they are this many behind, also the next one that this can be done at.
    """
    have, compacted = store.checkpoints(run), store.compacted(run)
    following = [entry for entry in have if entry >= compacted + keep][:1] if keep else []
    kept = {*have[-2:], *following, compacted, *wanted_entries(store, run)}
    store.drop_checkpoints(run, [entry for entry in have if entry not in kept])


def opened(run: RunRow, folder: Path | None = None) -> Bundle:
    """The run's bundle. folder: where it lies now, if it has moved. BundleError where it is not there, or not whole."""
    if folder is None and not run.bundle.is_dir():
        raise BundleError(f"the bundle of run {run.name!r} is not at {run.bundle} any more; put it back")
    return open_bundle(folder or run.bundle)
