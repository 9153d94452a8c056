"""Training alone: MeZO (arXiv 2305.17333) on the device's own data, without a coordinator, into a local ledger."""

import logging
import secrets
import threading
import time
from pathlib import Path

from edge_agent import journal, memory
from edge_agent.data import Dataset
from edge_agent.engine import engine
from edge_agent.guest import Guest
from edge_agent.journal import Journal, Opening
from edge_agent.manners.owner import policies
from edge_agent.overlay import Personal
from edge_agent.precision import open_held
from edge_agent.solo_config import SoloConfig
from edge_agent.state import State
from edge_agent.status import Status
from edge_agent.stopping import Stopped
from edge_agent.work import work
from zo import split
from zo.aggregation import aggregate
from zo.disk import Disk
from zo.errors import ConfigError, StorageError
from zo.estimators import Grid
from zo.lattice import RangeError
from zo.ledger import genesis
from zo.memory import process
from zo.plan import Shape, WorkPlan
from zo.planning import kept_bytes, seeded, sized_tree
from zo.rates import Rates, decay
from zo.recipe import directions, stated_shape
from zo.seeds import ALONE
from zo.stride import losses
from zo.timing import stage_ns

log = logging.getLogger(__name__)

LOOKS, SELDOM = 20, 5  # the held-out loss is measured so often in all, but not sooner than after so many rounds
DIGEST_EVERY = 10  # rounds


class Solo:
    """One device that trains alone, on top of the fleet's position that its state folder holds, or of the bundle.

    `stop`: set it (from a signal handler, say) to end cleanly after the probe under way. disk: the seam for faults.
    A UserError says what is wrong with the settings, bundle, state folder or data.
    """

    SYNC_EVERY = 10.0  # seconds between writes of the ledger, where the write budget allows them: flash is precious

    def __init__(self, config: SoloConfig, stop: threading.Event, disk: Disk | None = None) -> None:
        self.config, self._stop = config, stop
        self.bundle = open_held(Path(config.bundle), config.precision)
        self.manifest, self.grid = self.bundle.manifest, Grid(config.log2_levels, config.clip)
        self.rates = Rates.of(config.probe, config.rate, self.manifest)
        self.state = State(Path(config.state), config.disk_bytes_per_day, disk)
        self.status = Status(self.state)
        made = policies(config, self.state.budget, lambda: 0)
        self.guest = Guest(stop, made, self.status.update, share=config.cpu.share, threads=config.threads)
        self._disk, self._synced, self._refused = disk, time.monotonic(), False

    def run(self) -> None:
        """Train until the local ledger has `config.rounds` entries, or `stop` is set; what was learnt is then on the disk.

        Raises a UserError where that cannot be.
        """
        try:
            self._prepare()
            try:
                how = self._train()
            finally:
                self._save()
            self._tell(how)
        except Exception as error:
            self.status.update(state="failed", reason=str(error))
            raise
        finally:
            self.state.close()

    def _prepare(self) -> None:
        """The common parameters, an engine over them, the encoded examples, and the local ledger."""
        config, position = self.config, self.state.position()
        self.dataset = Dataset.of(config, self.bundle)  # first: what the tokenizer took is free again for the engine
        process.give_back()
        memory.fitting(self.manifest, [self.manifest.precision], config)
        self._before = memory.here()
        self.model = Personal(self.bundle, position, config.threads)
        self.engine = engine(config, self.bundle, self.model.parameters, self.state)
        self.tree = sized_tree(self.config.probe, self.manifest, self._shape())
        log.info("training on top of %s", f"the fleet's entry {position.entry}" if position else "the bundle")
        fleet = (position.entry, position.head) if position else ()
        opening = Opening(genesis(self.bundle.digest, secrets.token_bytes(16)), self.bundle.digest, *fleet)
        self.journal = Journal(self.state.folder / journal.NAME, opening, self.state.budget, self._disk)
        self.status.update(state="working", precision=self.manifest.precision, **self.dataset.counts)

    def _shape(self) -> Shape:
        """As the settings state it, or the cheapest for this device."""
        config = self.config
        stated = stated_shape(config.algorithm, config.probe, config.split)
        if stated:
            return stated
        times = stage_ns(self.engine, self.dataset.draw(min(4, config.probe.examples)))

        def fits(shape: Shape) -> bool:
            return kept_bytes(self.manifest, shape, config.probe.examples) <= config.split.kept

        count = directions(config.algorithm, config.probe)
        rows = split.plan_table(self.manifest, self.rates.log2_eps, count, times, fits=fits, clean=config.split.clean)
        log.info("the cheapest way to equal progress:\n%s", split.told(rows))
        return split.choose(rows).shape

    def _train(self) -> str:
        """Returns how it ended. ConfigError where the rates are too high for the lattice."""
        self.start: float | None = None
        self.loss: float | None = None
        self.round = self.measured = 0
        self.ready = False  # the parameters are where the local ledger ends
        every = max(SELDOM, self.config.rounds // LOOKS)
        try:
            planned = memory.govern(self.guest, self.engine, self.bundle, self.config, self.state, self._before)
            self.status.update(planned_memory_mib=planned.need.total >> 20 if planned else None)
            self._look()
            self.start = self.loss  # of the common parameters
            self._follow()
            while self.round < self.config.rounds:
                self._work(self.round + 1)
                if self.round % every == 0 and self.round < self.config.rounds:
                    self._look()
                    log.info("round %d of %d: held-out loss %s", self.round, self.config.rounds, _nats(self.loss))
                self.status.update(reason=f"training alone, round {self.round} of {self.config.rounds}", held_out_loss=self.loss)
            self._look()
            return "finished"
        except Stopped:
            return "stopped"

    def _follow(self) -> None:
        """Go to where the local ledger ends."""
        entries = self.journal.entries()
        try:
            self.model.follow(self.journal.opening.genesis, entries, self.guest.check_stop)
        except RangeError as error:
            raise StorageError(f"{self.journal.path} does not fit on these parameters ({error}); choose another --state") from None
        self.round, self.ready = len(entries), True
        if entries:
            self._look()
            log.info("going on after round %d of the local ledger: held-out loss %s", self.round, _nats(self.loss))
        else:
            log.info("round 1 of %d begins: held-out loss %s", self.config.rounds, _nats(self.loss))

    def _work(self, number: int) -> None:
        """One round."""
        probe = self.config.probe
        node = seeded(self.tree, self.manifest.run_key, number, 0, offset=ALONE)
        plan = WorkPlan(number, number - 1, node, probe.examples, False, False, self.grid, 0)
        report = work(plan, self.engine, self.dataset, self.guest)
        if report.dropped:
            log.warning("round %d: %d of %d directions gave no finite loss and were dropped", number, report.dropped, node.scalars)
        share = decay(self.config.rate, number, self.config.rounds)
        try:
            terms = aggregate([report], [node], self.rates, dict.fromkeys(self.rates.by_kind, share), self.manifest, self.grid)
            entry = self.model.commit(terms, number % DIGEST_EVERY == 0 or number == self.config.rounds)
        except ValueError as error:
            raise ConfigError(f"round {number} cannot be applied ({error}); lower --rate.body and --rate.head") from None
        self.journal.append(entry)
        self.round = number
        if time.monotonic() - self._synced >= self.SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        """Write the ledger, if the disk and the write budget allow."""
        self._synced = time.monotonic()
        try:
            self.journal.sync()
            self._refused = False
        except OSError as error:
            if not self._refused:
                log.warning("%s: %s; training goes on, and it is tried again", self.journal.path, error.strerror)
            self._refused = True

    def _save(self) -> None:
        """Write the rest of the ledger, whatever the write budget: a clean end loses nothing."""
        try:
            self.journal.sync(always=True)
        except OSError as error:
            raise StorageError(f"{self.journal.path}: {error.strerror}; what was learnt since it was last written is lost") from None

    def _tell(self, how: str) -> None:
        """What came of it."""
        if not self.ready:
            self.status.update(state=how, reason="told to stop before training went on")
            log.info("stopped before training went on")
            return
        of = f" of {self.config.rounds}" if self.round <= self.config.rounds else f", and {self.config.rounds} were asked for"
        done, digest = f"{how} after round {self.round}{of}", self.model.parameters.digest().hex()
        self.status.update(state=how, reason=done, held_out_loss=self.loss, digest=digest)
        if not self.dataset.held_out:
            log.warning("no examples were held out, so nothing says whether training helped; set held_out_share")
        elif self.measured and (self.loss is None or (self.start is not None and self.loss > 1.1 * self.start + 0.01)):
            log.warning("training made the model worse: begin again with a lower --rate.body and --rate.head, and another --state")
        told = f"held-out loss {_nats(self.start)} at the start, {_nats(self.loss)} after round {self.measured}"
        log.info("%s: %s; digest %s", done, told, digest)

    def _look(self) -> None:
        """Measure the held-out loss here."""
        found = losses(self.engine, self.dataset.held_out_batches(self.config.probe.examples), (), self.guest.go_on)
        self.loss, self.measured = found[0] if found else None, self.round


def _nats(loss: float | None) -> str:
    return "unknown" if loss is None else f"{loss:.4f}"
