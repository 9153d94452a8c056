"""The personal overlay: what a device learnt alone, laid on the parameters that the fleet learnt together (DESIGN section 2)."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from zo.bundle import Bundle
from zo.checkpoint import Checkpoint
from zo.errors import StorageError
from zo.ledger import Entry, fold
from zo.parameters import Parameters
from zo.replica import Diverged, Replica
from zo.terms import Term, negated

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Overlay:
    """Local terms that can be added to parameters and removed exactly, whatever the fleet's entries add in between."""

    terms: tuple[Term, ...]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Overlay":
        """What the entries of a local ledger say together."""
        return cls(fold(term for entry in entries for term in entry.terms))

    def add(self, parameters: Parameters) -> None:
        """Make the common parameters personal. RangeError where they cannot take it; nothing has changed then."""
        parameters.add(self.terms)

    def remove(self, parameters: Parameters) -> None:
        """Make the personal parameters common again, bit for bit. RangeError as in `add`."""
        parameters.add(negated(self.terms))

    @contextlib.contextmanager
    def on(self, parameters: Parameters) -> Iterator[None]:
        """The parameters are personal inside the `with`, and common again behind it."""
        self.add(parameters)
        try:
            yield
        finally:
            self.remove(parameters)


def common_parameters(bundle: Bundle, position: Checkpoint | None, threads: int = 1) -> Parameters:
    """What an overlay lies on: the parameters at the fleet's position, or those of the bundle where there is none.

    StorageError where the position cannot be reached from this bundle. A position that states the values of every group
    fits any bundle with tensors of the same shapes.
    """
    parameters = bundle.parameters(threads)
    if position is not None:
        try:
            Replica(parameters, position.genesis, bundle.initial_tensors).restore(position)
        except ValueError as error:
            raise StorageError(
                f"the fleet's position in the state folder cannot be reached from {bundle.folder} ({error});"
                " give the bundle of its run with --bundle, or choose another --state"
            ) from None
    return parameters


class Personal:
    """Common parameters with a local ledger on top, as that ledger grows.

    The ledger is stated relative to the bundle: its digests are those of bundle and local entries alone, wherever the
    fleet is. `alone` follows that; where there is no fleet, its parameters and `parameters` are the same.
    """

    def __init__(self, bundle: Bundle, position: Checkpoint | None, threads: int) -> None:
        self.parameters = common_parameters(bundle, position, threads)
        self._bundle = bundle
        self._alone = self.parameters if position is None else bundle.parameters(threads)

    def follow(self, genesis: bytes, entries: Sequence[Entry], go_on: Callable[[], None] = lambda: None) -> None:
        """Go to the end of a local ledger, once; `go_on` is called before each entry. RangeError where the parameters cannot take it."""
        self.alone = Replica(self._alone, genesis, self._bundle.initial_tensors)
        for entry in entries:
            go_on()
            try:
                self.alone.apply(entry)
            except Diverged as error:
                log.warning("local ledger: %s; was the memory faulty when it was written? going on from its terms", error)
        if self._alone is not self.parameters:
            Overlay.of(entries).add(self.parameters)

    def commit(self, terms: tuple[Term, ...], stated: bool) -> Entry:
        """The next entry of the local ledger, applied. stated: with a digest. RangeError where the parameters cannot take it."""
        self.parameters.add(terms)
        if self._alone is not self.parameters:
            self._alone.add(terms)
        number = self.alone.entry + 1
        entry = Entry(number, number, 1, terms, self._alone.digest() if stated else None)
        self.alone.advance(entry)
        return entry
