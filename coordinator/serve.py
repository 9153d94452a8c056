"""`edge-coordinator serve`: one run, from its first round to the evaluation of what came of it."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from coordinator import history, listening
from coordinator.admission import Admission
from coordinator.config import RunConfig
from coordinator.fleet import Fleet
from coordinator.publisher import Publisher
from coordinator.replay import best_entry, lowest_entry
from coordinator.rounds import Rounds
from coordinator.run_lock import RunLock
from coordinator.service import Service
from coordinator.sqlite_store import SqliteStore
from coordinator.status import describe
from zo.bundle import open_whole
from zo.errors import ConfigError, DataError, StorageError
from zo.systemd import Systemd

log = logging.getLogger(__name__)

TICK = 0.2  # seconds between looks at the deadline
TRIES = 3  # of an evaluation whose process ends
FLUSH = 60.0  # seconds between notes of which devices were seen, and what was refused
GRACE = 1.0  # seconds for calls in flight when the server stops


class Evaluator:
    """The evaluating process, asked one thing at a time."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, entry: int, split: str, over: int = 0) -> dict[str, Any]:
        """Metrics of the model at an entry on a split, compared with those at another. DataError where the split's file cannot be used."""
        for _ in range(TRIES):
            if self._process is None or self._process.returncode is not None:
                self._process = await self._start()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps({"entry": entry, "split": split, "over": over}).encode() + b"\n")
            line = await self._process.stdout.readline()
            if not line:  # it was killed, by want of memory perhaps
                await self.stop()
                continue
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise DataError(answer["error"])
            return answer
        raise DataError(f"entry {entry}: the evaluating process ended {TRIES} times; is there memory for it?")

    async def stop(self) -> None:
        """End the process."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        wanted = self.config.evaluation
        arguments = ["--store", self.config.store, "--run", self.config.name, "--most", str(wanted.most), "--threads", str(wanted.threads)]
        arguments += ["--validation", wanted.validation, "--test", wanted.test]
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "coordinator.evaluation", *arguments)
        return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, start_new_session=True)  # away from Ctrl-C


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
        self.config = dataclasses.replace(config, store=str(Path(config.store).resolve()))
        listening.check(config.listen, config.insecure_loopback)
        self.fleet = None if config.insecure_loopback else _fleet(Path(config.fleet))
        self.store = self.open_store(Path(config.store))
        run = self.store.open_run(config.name, Path(config.bundle), bundle.digest)  # last, since it binds the name to the bundle
        self.lock = RunLock(Path(self.config.store), run.id, run.name)
        self.rounds = Rounds(self.store, run, bundle, config)
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
        tasks = [asyncio.create_task(job) for job in (self._tick(), self._evaluate(), stop.wait())]
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

    async def _evaluate(self) -> None:
        """Evaluate as long as that can be done; training goes on without it."""
        try:
            await self._evaluate_all()
        except DataError as error:
            self.rounds.note("evaluation", f"{error}; training goes on without it")
        await self.evaluator.stop()
        await asyncio.Event().wait()

    async def _evaluate_all(self) -> None:
        """The entry of every n-th round and the last; then, once, the test file."""
        wanted, run = self.config.evaluation, self.rounds.run.id
        while wanted.validation:
            due = self._due()
            if due is None and self.rounds.finished:
                break
            if due is None:
                await asyncio.sleep(TICK)
                continue
            metrics = await self.evaluator.ask(due, "validation", over=lowest_entry(self.store.evaluations(run, "validation")))
            self.store.add_evaluation(run, due, "validation", metrics)
            log.info("entry %d: %s", due, describe(metrics))
        while not self.rounds.finished:
            await asyncio.sleep(TICK)
        best = best_entry(self.store, run)
        log.info("the run is over; the best entry is %d", best)
        for entry in sorted({0, best} - self.store.evaluations(run, "test").keys()) if wanted.test else ():
            metrics = await self.evaluator.ask(entry, "test")
            self.store.add_evaluation(run, entry, "test", metrics)
            log.info("test file, entry %d: %s", entry, describe(metrics))

    def _due(self) -> int | None:
        """The newest entry that should be evaluated and is not."""
        done = self.store.evaluations(self.rounds.run.id, "validation")
        entry = self.rounds.ledger.entry
        due = entry if self.rounds.finished else entry - entry % self.config.evaluation.every
        return due if due not in done else None


def _fleet(folder: Path) -> Fleet:
    try:
        return Fleet(folder)
    except ConfigError as error:
        raise ConfigError(f"{error}, or serve plaintext, on this machine only, with --insecure-loopback") from None
