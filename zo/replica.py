"""A replica: parameters that follow a ledger, and the identity of the state they are in."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from zo import checkpoint as checkpoints
from zo.checkpoint import UNSTATED, Checkpoint
from zo.errors import DoesNotFit
from zo.exact import hashed, new_hash, stream
from zo.group import Group
from zo.initial import Initial
from zo.ledger import Entry, Folding, chain, fold
from zo.parameters import Parameters, digest_of
from zo.terms import Term

MOST_ENTRIES = 8  # of a stride: more hardly steady what is measured along it, and cost more signs


class LedgerError(ValueError):
    """An entry or checkpoint that does not belong to this ledger, or does not follow the state that was reached."""


class Diverged(ValueError):
    """Parameters whose digest is not the one stated: what has been computed here is wrong, or what was sent is."""


class Replica:
    """Parameters at an entry of one ledger.

    base: gives the tensors of the bundle, by name; `parameters` must hold them at first. genesis: identity of the
    ledger before its first entry. optional: groups of the run that `parameters` may hold or not, now and later; of those that it does
    not hold there are the initial values and the fold. `entry` and `head` say where it is.
    """

    def __init__(self, parameters: Parameters, genesis: bytes, base: Callable[[], Initial], optional: Sequence[Group] = ()) -> None:
        self.parameters, self.genesis, self._base = parameters, genesis, base
        self._optional = {group.id: group for group in optional}
        self.sizes = {id_: group.size for id_, group in (parameters.groups | self._optional).items()}
        self._recent = deque[tuple[Term, ...]](maxlen=MOST_ENTRIES)
        self.entry, self.head, self.folding = 0, genesis, self._folding()

    @property
    def missing(self) -> list[Group]:
        """Groups that are not held."""
        return [group for group in self._optional.values() if group.id not in self.parameters.groups]

    def exact(self, group: Group) -> Iterator[np.ndarray]:
        """The values here of a group that is not held, in pieces (`zo.exact.stream`)."""
        return stream(self.parameters.run_key, group, self._base(), self.folding.terms())

    def hold(self, group: Group) -> None:
        """Hold one more group."""
        self.parameters.hold(group, self.exact(group))

    def digest(self, known: Mapping[int, bytes] = MappingProxyType({})) -> bytes:
        """Of all groups. Those that are not held are streamed, which takes a while, unless their digests are `known`."""
        digests = {group: self.parameters.group_digest(group) for group in self.parameters.groups}
        for group in self.missing:
            digests[group.id] = known[group.id] if group.id in known else _streamed_digest(self.exact(group))
        return digest_of(digests)

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
        if entry.digest is not None and not self.missing:  # else it would take too long each time
            self.check(entry.digest)

    def advance(self, entry: Entry) -> None:
        """Note an entry whose terms have been added already."""
        self._advance(entry, chain(self.head, entry.header))

    def check(self, digest: bytes) -> None:
        """Diverged unless this is the digest of the parameters."""
        if self.digest() != digest:
            raise Diverged(f"the parameters at entry {self.entry} do not have the digest stated")

    def reset(self) -> None:
        """Back to the bundle, whatever the parameters hold."""
        self.entry, self.head, self.folding = 0, self.genesis, self._folding()
        self._recent.clear()
        base = self._base()
        for group in self.parameters.groups.values():
            self.parameters.load(group.id, np.concatenate([np.ravel(base[tensor.name]) for tensor in group.tensors]))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go to a checkpoint, whatever the parameters hold.

        LedgerError where it is of another ledger, DoesNotFit where it states values in place of steps of groups that need not be held:
        nothing has changed then. Diverged where it cannot be reached: then the replica is at the bundle.
        """
        if checkpoint.genesis != self.genesis:
            raise LedgerError("the checkpoint is of another ledger")
        if any(given.group in self._optional for given in checkpoint.values):
            raise DoesNotFit(
                f"the run states blocks at entry {checkpoint.entry} by their values, which only a device that holds all of them can take;"
                " take base fp32 with --precision, or have the run share its seeds (seeds.pool)"
            )
        self.reset()
        try:
            checkpoints.write(checkpoint, self.parameters)
            self.entry = checkpoint.entry
            self.folding = self._folding({given.group for given in checkpoint.values} & self.sizes.keys())
            self.folding.add(checkpoint.terms)
            if checkpoint.digest != UNSTATED or not self._optional:
                self.check(checkpoint.digest)
        except ValueError as error:
            self.reset()
            raise Diverged(str(error)) from None
        self.head = checkpoint.head

    def checkpoint(self) -> Checkpoint:
        """The state here, in the shorter form of each group: its steps or its values; without a digest where not all groups are held."""
        terms = self.folding.terms()
        values = checkpoints.values_of(self.parameters, self.folding.without)
        return Checkpoint(self.genesis, self.entry, self.head, UNSTATED if self.missing else self.parameters.digest(), terms, values)

    def snapshot(self) -> Checkpoint:
        """The state here, as values of every group."""
        values = checkpoints.values_of(self.parameters, set(self.sizes))
        return Checkpoint(self.genesis, self.entry, self.head, self.parameters.digest(), (), values)

    def stride(self, entries: int) -> tuple[Term, ...]:
        """What the last entries did, folded; nothing where they are not remembered, as after catching up by a checkpoint."""
        recent = list(self._recent)[-entries:] if entries else []
        return fold(term for terms in recent for term in terms) if len(recent) == entries else ()

    def _folding(self, without: Collection[int] = ()) -> Folding:
        return Folding(self.sizes, set(without), frozenset(self._optional))

    def _advance(self, entry: Entry, head: bytes) -> None:
        self.entry, self.head = entry.number, head
        self._recent.append(entry.terms)
        self.folding.add(entry.terms)


def _streamed_digest(pieces: Iterable[np.ndarray]) -> bytes:
    found = new_hash()
    for _ in hashed(pieces, found):
        pass
    return found.digest()
