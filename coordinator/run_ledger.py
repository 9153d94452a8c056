"""The ledger of a run that is being coordinated: the entries in its store, and the parameters that they lead to."""

from typing import Any

from coordinator import history, replay
from coordinator.store import RunRow, Store
from zo.bundle import Bundle
from zo.checkpoint import signs
from zo.errors import StorageError
from zo.ledger import Entry
from zo.parameters import Parameters, digest_of
from zo.terms import Term, negated

CHECKPOINT_EVERY = 64  # entries: what a restart has to replay at most


class RunLedger:
    """replica: at the last entry that was appended or taken in here. Raises as `replay.replica` does."""

    def __init__(self, store: Store, run: RunRow, bundle: Bundle) -> None:
        self.store, self._run, self._bundle = store, run, bundle
        self.replica = replay.replica(store, run, bundle)
        self._digests: tuple[int, dict[int, bytes]] = (-1, {})  # the entry, and by group

    @property
    def entry(self) -> int:
        """The last entry."""
        return self.replica.entry

    @property
    def parameters(self) -> Parameters:
        """The fleet's parameters at the last entry."""
        return self.replica.parameters

    @property
    def rounds(self) -> int:
        """How many rounds the entries have closed."""
        return self.store.headers(self._run.id, self.entry - 1)[0][0].round if self.entry else 0

    @property
    def is_behind(self) -> bool:
        """Whether somebody else has appended to the store's."""
        return self.store.head(self._run.id) != (self.entry, self.replica.head)

    def digest(self, among: tuple[int, ...] = ()) -> bytes:
        """Of these groups of the parameters at the last entry, or of all; each group's computed once an entry."""
        if self._digests[0] != self.entry:
            self._digests = (self.entry, {})
        groups, known = among or tuple(self.parameters.groups), self._digests[1]
        for group in groups:
            if group not in known:
                known[group] = self.parameters.group_digest(group)
        return digest_of({group: known[group] for group in groups})

    def append(self, round_number: int, contributors: int, terms: tuple[Term, ...], told: dict[str, Any], with_digest: bool) -> None:
        """Append an entry: to the parameters first (RangeError: they refuse it), then to the store, or to neither.

        told: what the store keeps of the round beside it. Conflict where somebody else has appended to the ledger.
        """
        self.parameters.add(terms)
        try:
            digest = self.parameters.digest() if with_digest else None
            entry = Entry(self.entry + 1, round_number, contributors, terms, digest)
            told = told | ({"digest": digest.hex()} if digest else {})
            self.store.commit(self._run.id, entry, self.replica.head, signs(terms, self.replica.sizes), told)
        except BaseException:
            self.parameters.add(negated(terms))
            raise
        self.replica.advance(entry)

    def take_in(self) -> list[dict[str, Any]]:
        """Go along with what others have appended: the summaries of those entries."""
        entries = self.store.entries(self._run.id, self.entry)
        if not entries:
            raise StorageError(f"the store's entry {self.entry} is not the one that was committed; start the coordinator again")
        replay.move(self.replica, self.store, self._run, entries[-1].number)
        return self.store.summaries(self._run.id, len(entries))

    def roll_back(self, entry: int) -> None:
        """Append to the store what leads back to an entry; it is still to be taken in. Compacted where that is too long ago."""
        back_to = self.store.headers(self._run.id, entry - 1)[0][0].round if entry else 0
        history.rollback(self.store, self._run, self._bundle, back_to)

    def checkpoint(self, keep: int) -> None:
        """Keep the state here, so that a restart need not replay what came before. keep: see `replay.drop_checkpoints`."""
        self.store.add_checkpoint(self._run.id, self.replica.checkpoint())
        replay.drop_checkpoints(self.store, self._run.id, keep)

    def checkpoint_when_due(self, keep: int) -> None:
        """A `checkpoint`, once the last one is long ago."""
        if self.entry - max(self.store.checkpoints(self._run.id), default=0) >= CHECKPOINT_EVERY:
            self.checkpoint(keep)
