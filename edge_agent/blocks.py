"""Which blocks this device holds in float32, and what it computes the others with: their weights in few bits, made anew now and then."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from edge_agent.state import State
from zo import inactive
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import DoesNotFit, StorageError
from zo.exact import hashed, new_hash
from zo.group import Group
from zo.ledger import Entry
from zo.quantised import BITS
from zo.replica import Diverged, Replica

log = logging.getLogger(__name__)

SCRATCH = "inactive"  # in the state folder
IN_MEMORY = Path("/dev/shm")


class Blocks:
    """The active blocks of an engine over a replica's parameters. At a base whose blocks are all held, nothing ever changes.

    every: entries between refreshes of the inactive ones. govern: keeps to the memory budget with so many active; DoesNotFit where that
    cannot be. go_on: called between blocks; what it raises leaves the engine without some.
    """

    NO_ROOM = 60.0  # seconds that plans may ask for more blocks than fit

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        replica: Replica,
        state: State,
        every: int,
        govern: Callable[..., object],
        go_on: Callable[[], None],
    ) -> None:
        self._bundle, self._engine, self._replica, self._state, self._every = bundle, engine, replica, state, every
        self._govern, self._go_on, self._no_room = govern, go_on, 0.0
        self._optional = {group.id: group for group in bundle.manifest.groups if group.id in bundle.manifest.optional}
        self._stages = {group: number for number, stage in enumerate(bundle.manifest.stages) for group in stage.groups}
        self._refreshed = 0
        self._in_memory = IN_MEMORY if IN_MEMORY.is_dir() else Path(tempfile.gettempdir())
        self._name = f"edge-agent-{state.device_id:016x}-"
        for left in (state.folder / SCRATCH, *self._in_memory.glob(f"{self._name}*")):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)

    @property
    def active(self) -> tuple[int, ...]:
        """Ids of those that are held in float32."""
        return tuple(sorted(self._optional.keys() & self._replica.parameters.groups.keys()))

    def take_on(self, groups: Collection[int]) -> str:
        """Hold the blocks among these groups (of all, where there are none); why not, where they do not fit now.

        DoesNotFit where nothing fitted for a while: the coordinator does not heed what this device says of itself.
        """
        wanted = self._optional.keys() & set(groups or self._optional)
        try:
            if len(wanted) != len(self.active):
                self._govern(active=max(1, len(wanted)))
        except DoesNotFit as error:
            now = time.monotonic()
            self._no_room = self._no_room or now
            if now - self._no_room > self.NO_ROOM:
                raise
            log.warning("%d active blocks are too many (%s); asking again", len(wanted), error)
            return str(error)
        self._no_room = 0.0
        self.activate(wanted)
        return ""

    def activate(self, groups: Collection[int]) -> None:
        """Hold these of the blocks, exactly as they are at this entry, and no others. First the others' memory is given back."""
        wanted = {group for group in groups if group in self._optional}
        held = set(self.active)
        for group in sorted(held - wanted):
            self._engine.deactivate(self._stages[group])
            self._replica.parameters.release(group)
        if held - wanted:
            self._engine.trim()
        for group in sorted(held - wanted):
            self._rest(self._optional[group])
        for group in sorted(wanted - held):
            self._go_on()
            self._engine.deactivate(self._stages[group])
            self._replica.hold(self._optional[group])
            self._engine.activate(self._stages[group])
        if wanted != held:
            log.info("blocks held in float32 from now on: groups %s", ", ".join(map(str, sorted(wanted))) or "none")

    def refresh(self) -> bytes:
        """Make the weights of all inactive blocks anew, as they are at this entry; the digest of all parameters."""
        digests = {group.id: self._rest(group) for group in self._replica.missing}
        self._refreshed = self._replica.entry
        return self._replica.digest(digests)

    def caught_up(self) -> None:
        """Refresh after entries were passed over, or taken back."""
        if self._replica.missing and not 0 <= self._replica.entry - self._refreshed < self._every:
            self.refresh()

    def follow(self, entry: Entry) -> None:
        """Refresh where it is time, at an entry that states a digest if there is one soon enough. Diverged where that is another."""
        behind = entry.number - self._refreshed
        if not self._replica.missing or behind < self._every or (entry.digest is None and behind < 2 * self._every):
            return
        found = self.refresh()
        log.info("%d inactive blocks are as at entry %d again", len(self._replica.missing), entry.number)
        if entry.digest not in (None, found):
            self._refreshed = -self._every  # what they were made from is wrong
            raise Diverged(f"the parameters at entry {entry.number} do not have the digest stated")

    def _rest(self, group: Group) -> bytes:
        """Compute a block with weights in few bits, as they are at this entry; the digest of its exact values."""
        self._go_on()
        number, bits, found = self._stages[group.id], BITS[self._bundle.manifest.precision], new_hash()
        self._engine.deactivate(number)
        folder = self._scratch(inactive.packed_bytes(group.tensors, bits))
        try:
            name = self._bundle.manifest.stages[number].inactive
            inactive.write(folder, group.tensors, bits, hashed(self._replica.exact(group), found))
            shutil.copyfile(self._bundle.folder / name, folder / name)
            self._engine.rest(number, folder)
        except OSError as error:
            raise StorageError(
                f"{folder}: {error.strerror}; an inactive block needs room there for a moment, or in the state folder"
            ) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return found.digest()

    def _scratch(self, size: int) -> Path:
        """Where files that are mapped, and have no name for long, are written: on the disk, within half of what may be; else in memory."""
        budget = self._state.budget
        if budget.take(size, reserve=budget.most / 2):
            try:
                folder = self._state.folder / SCRATCH
                folder.mkdir(exist_ok=True)
                if shutil.disk_usage(folder).free > 2 * size:
                    return folder
            except OSError as error:
                log.warning("%s: %s; inactive blocks are kept in memory", self._state.folder, error.strerror)
        return Path(tempfile.mkdtemp(prefix=self._name, dir=self._in_memory))
