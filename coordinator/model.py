"""The global model at any entry of a run: parameters moved along the ledger, forwards and exactly back."""

from pathlib import Path

from coordinator.store import RunRow, Store
from zo.bundle import Bundle, open_bundle
from zo.ledger import rollback


class Replay:
    """Parameters of a run that follow its ledger. bundle: where the run's own folder has moved, the new place."""

    def __init__(self, store: Store, run: RunRow, folder: Path | None = None) -> None:
        self.store, self.run = store, run
        self.bundle: Bundle = open_bundle(folder or run.bundle)
        self.parameters = self.bundle.parameters()
        self.entry = 0

    def move_to(self, entry: int) -> None:
        """Bring the parameters to an entry, before or after the present one."""
        entries = self.store.entries(self.run.id, min(entry, self.entry), abs(entry - self.entry))
        if entry >= self.entry:
            for each in entries:
                self.parameters.add(each.terms)
        else:
            self.parameters.add(rollback(entries))
        self.entry = entry


def best_entry(store: Store, run: int) -> int:
    """The evaluated entry with the lowest validation loss (class-balanced for classification); the last one if none was."""
    evaluated = store.evaluations(run, "validation")
    if not evaluated:
        return store.head(run)[0]
    return min(evaluated, key=lambda entry: (evaluated[entry]["balanced_loss"], entry))
