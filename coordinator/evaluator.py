"""Evaluation beside a run: a process of its own measures entries on files that no device has."""

import asyncio
import json
import logging
import sys
from typing import Any

from coordinator.config import RunConfig
from coordinator.replay import best_entry, lowest_entry
from coordinator.rounds import Rounds
from coordinator.status import describe
from zo.errors import DataError, StorageError

log = logging.getLogger(__name__)

SOON = 0.2  # seconds between looks for an entry that is due
TRIES = 3  # of an evaluation whose process ends


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
            if not line.endswith(b"\n"):  # it was killed, by want of memory perhaps
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
        arguments = ["--store", self.config.store, "--run", self.config.name]
        arguments += ["--validation", wanted.validation, "--test", wanted.test]
        arguments += ["--most", str(wanted.most), "--threads", str(wanted.threads)]
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "coordinator.evaluation", *arguments)
        return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, start_new_session=True)  # away from Ctrl-C


class Evaluations:
    """Has the entries of a run evaluated that its configuration names. Training goes on whatever becomes of that."""

    LATER = 10.0  # seconds until it is tried again, where the machine or the store has no room

    def __init__(self, rounds: Rounds, evaluator: Evaluator) -> None:
        self._rounds, self._store, self._evaluator, self._wanted = rounds, rounds.store, evaluator, rounds.config.evaluation

    async def run(self) -> None:
        """Never ends, but by a StorageError of a store that is unsafe."""
        trouble = ""
        while True:
            try:
                await self._all()
                break
            except DataError as error:
                self._rounds.note("evaluation", f"{error}; training goes on without it")
                break
            except (StorageError, OSError) as error:
                if self._store.unsafe:
                    raise
                if trouble != str(error):
                    log.error("%s; evaluation waits until that is mended", error)
                trouble = str(error)
                await asyncio.sleep(self.LATER)
        await self._evaluator.stop()
        await asyncio.Event().wait()

    async def _all(self) -> None:
        """The entry of every n-th round and the last; then, once, the test file."""
        wanted, run = self._wanted, self._rounds.run.id
        while wanted.validation:
            due = self._due()
            if due is None and self._rounds.finished:
                break
            if due is None:
                await asyncio.sleep(SOON)
                continue
            metrics = await self._evaluator.ask(due, "validation", over=lowest_entry(self._store.evaluations(run, "validation")))
            self._store.add_evaluation(run, due, "validation", metrics)
            log.info("entry %d: %s", due, describe(metrics))
        while not self._rounds.finished:
            await asyncio.sleep(SOON)
        best = best_entry(self._store, run)
        log.info("the run is over; the best entry is %d", best)
        for entry in sorted({0, best} - self._store.evaluations(run, "test").keys()) if wanted.test else ():
            metrics = await self._evaluator.ask(entry, "test")
            self._store.add_evaluation(run, entry, "test", metrics)
            log.info("test file, entry %d: %s", entry, describe(metrics))

    def _due(self) -> int | None:
        """The newest entry that should be evaluated and is not."""
        done = self._store.evaluations(self._rounds.run.id, "validation")
        entry = self._rounds.ledger.entry
        due = entry if self._rounds.finished else entry - entry % self._wanted.every
        return due if due not in done else None
