"""A replica: parameters that follow a ledger, and the identity of the state they are in."""

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from zo import checkpoint as checkpoints
from zo.checkpoint import Checkpoint
from zo.ledger import Entry, Folding, chain, fold
from zo.parameters import Parameters
from zo.terms import Term

MOST_ENTRIES = 8  # of a stride: more hardly steady what is measured along it, and cost more signs


class LedgerError(ValueError):
    """An entry or checkpoint that does not belong to this ledger, or does not follow the state that was reached."""


class Diverged(ValueError):
    """Parameters whose digest is not the one stated: what has been computed here is wrong, or what was sent is."""


class Replica:
    """Parameters at an entry of one ledger.

    base: gives the tensors of the bundle, by name; `parameters` must hold them at first. genesis: identity of the
    ledger before its first entry. `entry` and `head` say where it is.
    """

    def __init__(self, parameters: Parameters, genesis: bytes, base: Callable[[], Mapping[str, np.ndarray]]) -> None:
        self.parameters, self.genesis, self._base = parameters, genesis, base
        self.sizes = {id_: group.size for id_, group in parameters.groups.items()}
        self.entry, self.head, self.folding = 0, genesis, Folding(self.sizes)
        self._recent = deque[tuple[Term, ...]](maxlen=MOST_ENTRIES)

    def apply(self, entry: Entry) -> None:
        """Go on to the next entry.

        LedgerError where it does not follow, RangeError where the parameters cannot take it: nothing has changed then.
        Diverged where the digest that it states is not reached.
        """
        if entry.number != self.entry + 1:
            raise LedgerError(f"entry {entry.number} does not follow entry {self.entry}")
        head = chain(self.head, entry.header)  # first: an entry that cannot be written down must not be half applied
        self.parameters.postpone(entry.terms)
        self._advance(entry, head)
        if entry.digest is not None:
            self.check(entry.digest)

    def advance(self, entry: Entry) -> None:
        """Note an entry whose terms have been added already."""
        self._advance(entry, chain(self.head, entry.header))

    def check(self, digest: bytes) -> None:
        """Diverged unless this is the digest of the parameters."""
        if self.parameters.digest() != digest:
            raise Diverged(f"the parameters at entry {self.entry} do not have the digest stated")

    def reset(self) -> None:
        """Back to the bundle, whatever the parameters hold."""
        self.entry, self.head, self.folding = 0, self.genesis, Folding(self.sizes)
        self._recent.clear()
        base = self._base()
        for group in self.parameters.groups.values():
            self.parameters.load(group.id, np.concatenate([np.ravel(base[tensor.name]) for tensor in group.tensors]))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go to a checkpoint, whatever the parameters hold.

        LedgerError where it is of another ledger: nothing has changed then. Diverged where it cannot be reached: then the
        replica is at the bundle.
        """
        if checkpoint.genesis != self.genesis:
            raise LedgerError("the checkpoint is of another ledger")
        self.reset()
        try:
            checkpoints.write(checkpoint, self.parameters)
            self.entry = checkpoint.entry
            self.check(checkpoint.digest)
        except ValueError as error:
            self.reset()
            raise Diverged(str(error)) from None
        self.head = checkpoint.head
        self.folding = Folding(self.sizes, {given.group for given in checkpoint.values} & self.sizes.keys())
        self.folding.add(checkpoint.terms)

    def checkpoint(self) -> Checkpoint:
        """The state here, in the shorter form of each group: its steps or its values."""
        terms = self.folding.terms()
        values = checkpoints.values_of(self.parameters, self.folding.without)
        return Checkpoint(self.genesis, self.entry, self.head, self.parameters.digest(), terms, values)

    def snapshot(self) -> Checkpoint:
        """The state here, as values of every group."""
        values = checkpoints.values_of(self.parameters, set(self.sizes))
        return Checkpoint(self.genesis, self.entry, self.head, self.parameters.digest(), (), values)

    def stride(self, entries: int) -> tuple[Term, ...]:
        """What the last entries did, folded; nothing where they are not remembered, as after catching up by a checkpoint."""
        recent = list(self._recent)[-entries:] if entries else []
        return fold(term for terms in recent for term in terms) if len(recent) == entries else ()

    def _advance(self, entry: Entry, head: bytes) -> None:
        self.entry, self.head = entry.number, head
        self._recent.append(entry.terms)
        self.folding.add(entry.terms)
