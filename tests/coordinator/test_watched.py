"""What a coordinator tells systemd: it gets on while its loop comes round and its store can be read, and not else."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_coordinator import answer, settings
from systemd_line import environment, heard, listening

from coordinator.serve import Serving
from coordinator.sqlite_store import SqliteStore
from zo.address import free_port
from zo.bundle import Bundle
from zo.errors import StorageError
from zo.systemd import Systemd

SHORT = {"WATCHDOG_USEC": "400000"}  # it is fed four times in that
WAITING = "WATCHDOG=1\nSTATUS=run 'run': round 1 has 0 of 2 reports; 1 are enough in "


class Faulty(SqliteStore):
    """Cannot be read while `gone`, nor take a commit while `full`."""

    gone = full = False

    def head(self, *given: Any) -> tuple[int, bytes]:
        if self.gone:
            raise StorageError("the store is gone")
        return super().head(*given)

    def commit(self, *given: Any) -> bytes:
        if self.full:
            raise StorageError("the disk is full")
        return super().commit(*given)


class Watched(Serving):
    """Over such a store."""

    store: Faulty

    def open_store(self, path: Path) -> Faulty:
        return Faulty(path, create=True)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[socket.socket]:
    with listening(tmp_path) as made:
        yield made


@pytest.fixture
def while_serving(line: socket.socket, bert_bundle: Bundle, tmp_path: Path) -> Callable[[Callable[[Watched], Awaitable[None]]], None]:
    """while_serving(test): the coroutine `test(serving)` in the event loop of a coordinator that has begun to serve."""
    config = settings(bert_bundle, store=str(tmp_path / "run.sqlite"), listen=f"127.0.0.1:{free_port()}", insecure_loopback=True)

    def run(test: Callable[[Watched], Awaitable[None]]) -> None:
        async def both() -> None:
            serving = Watched(config, Systemd(environment(line, **SHORT)))
            serves = asyncio.create_task(serving.run())
            await beats(line)
            await test(serving)
            serves.cancel()
            await asyncio.gather(serves, return_exceptions=True)

        asyncio.run(asyncio.wait_for(both(), 60))

    return run


async def beats(line: socket.socket, text: str = "WATCHDOG=1") -> None:
    """Return at the next sign of progress that holds this text."""
    heard(line)
    while not any("WATCHDOG=1" in told and text in told for told in heard(line)):
        await asyncio.sleep(0.02)


Runs = Callable[[Callable[[Watched], Awaitable[None]]], None]


def test_a_loop_that_hangs_is_not_fed_for_and_one_that_goes_on_is(while_serving: Runs, line: socket.socket) -> None:
    async def hang(serving: Watched) -> None:
        heard(line)
        time.sleep(1)  # other threads go on
        assert heard(line) == []
        await beats(line)

    while_serving(hang)


def test_a_store_that_cannot_be_read_is_no_progress(while_serving: Runs, line: socket.socket) -> None:
    async def lose(serving: Watched) -> None:
        serving.store.gone = True
        await asyncio.sleep(0.3)  # what was under way
        heard(line)
        await asyncio.sleep(1)
        assert heard(line) == []
        serving.store.gone = False
        await beats(line)

    while_serving(lose)


def test_a_full_disk_is_told_and_waited_for(while_serving: Runs, line: socket.socket) -> None:
    async def fill(serving: Watched) -> None:
        rounds = serving.rounds
        for device in range(2):
            rounds.enrol(device)
        serving.store.full = True
        for device in range(2):
            rounds.accept(answer(rounds, device))
        await beats(line, "STATUS=run 'run' stands still: the disk is full")
        serving.store.full = False
        await beats(line, "STATUS=run 'run': round 2 has 0 of 2 reports")
        assert rounds.ledger.entry == 1

    while_serving(fill)


def test_a_process_says_that_it_serves_what_it_does_and_that_it_stops(line: socket.socket, bert_bundle: Bundle, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--bundle={bert_bundle.folder}", f"--store={tmp_path / 'run.sqlite'}", f"--listen={address}", "--round.goal=2"]
    command = [sys.executable, "-m", "coordinator.cli", "serve", "--insecure-loopback", *flags]
    process = subprocess.Popen(command, env=os.environ | environment(line, **SHORT), stderr=subprocess.DEVNULL)
    try:
        assert line.recv(100) == b"READY=1"
        host, port = address.split(":")
        socket.create_connection((host, int(port)), 5).close()
        assert line.recv(1000).decode().startswith(WAITING)
        process.send_signal(signal.SIGTERM)
        while (told := line.recv(1000)) != b"STOPPING=1\nSTATUS=stopping":
            assert told.decode().startswith("WATCHDOG=1")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
