"""`edge-coordinator serve`: one run, from its first round to the evaluation of what came of it."""

import asyncio
import contextlib
import dataclasses
import logging
import resource
import signal
import time
from pathlib import Path

from coordinator import history, listening
from coordinator.admission import Admission
from coordinator.config import RunConfig
from coordinator.evaluator import Evaluations, Evaluator
from coordinator.fleet import Fleet
from coordinator.publisher import Publisher
from coordinator.rounds import Rounds
from coordinator.run_lock import RunLock
from coordinator.service import Service
from coordinator.sqlite_store import SqliteStore
from zo import examples
from zo.bundle import open_whole
from zo.errors import ConfigError, DataError, StorageError
from zo.systemd import Systemd

log = logging.getLogger(__name__)

TICK = 0.2  # seconds between looks at the deadline
FLUSH = 60.0  # seconds between notes of which devices were seen, and what was refused
GRACE = 1.0  # seconds for calls in flight when the server stops


def allow_connections() -> None:
    """Let this process open as many files as the system allows it: each agent's connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Serving:
    """A running coordinator of one run. systemd: is told of it."""

    def __init__(self, config: RunConfig, systemd: Systemd) -> None:
        self.systemd = systemd
        bundle = open_whole(Path(config.bundle))
        for split in (config.evaluation.validation, config.evaluation.test):
            if split and not Path(split).exists():
                raise DataError(f"evaluation file {split} does not exist; correct it in the configuration, or leave it out")
            if split:
                examples.load(Path(split), bundle.manifest.task)  # refuses one without a good line
        self.config = dataclasses.replace(config, store=str(Path(config.store).resolve()))
        listening.check(config.listen, config.insecure_loopback)
        self.fleet = None if config.insecure_loopback else _fleet(Path(config.fleet))
        self.store = self.open_store(Path(config.store))
        run = self.store.open_run(config.name, Path(config.bundle), bundle.digest)  # last, since it binds the name to the bundle
        self.lock = RunLock(Path(self.config.store), run.id, run.name)
        self.rounds = Rounds(self.store, run, bundle, self.config)
        self.tiles = Publisher(config, self.store, self.rounds) if config.tiles.folder else None
        admission = Admission(self.fleet, config.limits, config.certificate_days * 86400)
        self.service = Service(self.rounds, self.tiles.public_key if self.tiles else b"", admission)
        self.evaluator = Evaluator(self.config)

    def open_store(self, path: Path) -> SqliteStore:
        """The store at a path: the seam where tests put faults."""
        return SqliteStore(path, create=True)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        allow_connections()
        server, address = await listening.start(self.service, self.config.listen, self.config.insecure_loopback)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        rounds, most = self.rounds, self.config.rounds
        place = f"entry {rounds.ledger.entry}, round {min(rounds.round, most)} of {most}"
        log.info("serving run %r on %s, %s", rounds.run.name, address, place)
        self.systemd.ready()
        tasks = [asyncio.create_task(job) for job in (self._tick(), Evaluations(self.rounds, self.evaluator).run(), stop.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            self.systemd.stopping()
            self.service.stopping = True
            async with self.service.changed:
                self.service.changed.notify_all()
            await server.stop(GRACE)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.evaluator.stop()
            if self.tiles:
                self.tiles.close()
            self.service.flush()
            if self.fleet:
                self.fleet.close()
            self.store.close()
            self.lock.close()

    async def _tick(self) -> None:
        """Close rounds at their deadline; say why when one is overdue, or cannot be stored."""
        told, trouble = 0, ""
        flushed = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            try:
                if time.monotonic() - flushed > FLUSH:
                    flushed = time.monotonic()
                    self.service.flush()
                await self.service.follow()
                self._get_on(trouble)
                await self.service.close_if_due()
                if self.tiles:
                    self.tiles.publish_when_due()
                if self.config.keep_entries:
                    most = self.tiles.complete if self.tiles else None
                    history.compact_when_due(self.store, self.rounds.run, self.config.keep_entries, most)
                trouble = ""
            except StorageError as error:
                if self.store.unsafe:
                    raise
                if trouble != str(error):
                    log.error("%s; rounds stand still until that is mended", error)
                trouble = str(error)
                continue
            if self.rounds.overdue and told != self.rounds.round:
                told = self.rounds.round
                log.info("waiting: %s", self.rounds.why_waiting())

    def _get_on(self, trouble: str) -> None:
        """The loop has come round, and the store could be read: what the watchdog waits for. A full disk is none of its business."""
        name = f"run {self.rounds.run.name!r}"
        self.systemd.progress(*((f"{name} stands still", trouble) if trouble else (name, self.rounds.why_waiting())))


def _fleet(folder: Path) -> Fleet:
    try:
        return Fleet(folder)
    except ConfigError as error:
        raise ConfigError(f"{error}, or serve plaintext, on this machine only, with --insecure-loopback") from None
