"""A coordinator inside the test process: a real gRPC server on a loopback port, its store and rounds in a thread of their own."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coordinator import listening
from coordinator.admission import Admission
from coordinator.config import Probe, Round, RunConfig
from coordinator.fleet import Fleet
from coordinator.rounds import Rounds
from coordinator.service import Service
from coordinator.sqlite_store import SqliteStore
from zo.address import free_port
from zo.bundle import Bundle
from zo.disk import Disk
from zo.messages import Report

PROBE = Probe(directions=3, examples=4)


def settings(bundle: Bundle, **changed: Any) -> RunConfig:
    """A run of a tiny bundle: three directions, two reports a round."""
    return RunConfig(
        **{
            "bundle": str(bundle.folder),
            "rounds": 4,
            "round": Round(2, 1, 30.0),
            "probe": PROBE,
            "algorithm": "mezo",
            "least_gain": 0.0,
            "held_out_every": 0,
        }
        | changed
    )


def report(device: int, round_number: int = 1, scalars: tuple[int, ...] = (300, -200, 100), **changed: Any) -> Report:
    """A report of run 1 as a coordinator with `settings` asks for, but for the id of the plan; `answer` has it."""
    return Report(
        **{"run": 1, "device": device, "round": round_number, "scalars": np.array(scalars), "examples": 4, "precision": "fp32"} | changed
    )


def answer(rounds: Rounds, device: int, round_number: int | None = None, **changed: Any) -> Report:
    """A report that `rounds`, with `settings`, accepts: for the open round where none is named."""
    number = rounds.round if round_number is None else round_number
    if "plan" not in changed:
        changed["plan"] = rounds.plan_id(device, changed.get("precision", "fp32"))
    return report(device, number, **changed)


class LocalCoordinator:
    """Serves while entered. fleet: its folder; plaintext if left out.

    kind: the service; over: its store; disk: what is under that; all for faults.

    `service` and its rounds may be touched through `call` only.
    """

    def __init__(
        self,
        bundle: Bundle,
        store: Path,
        kind: Callable[..., Service] = Service,
        port: int = 0,
        disk: Disk | None = None,
        over: type[SqliteStore] = SqliteStore,
        fleet: Path | None = None,
        **changed: Any,
    ) -> None:
        self.address, self._bundle, self._path, self._kind = f"127.0.0.1:{port or free_port()}", bundle, store, kind
        self._config, self._disk, self._over, self._fleet = settings(bundle, **changed), disk, over, fleet
        self._ready, self._failure = threading.Event(), None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> "LocalCoordinator":
        self._thread.start()
        self._ready.wait(30)
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def call(self, function: Callable[[Service], Any]) -> Any:
        """What `function` returns, called with the service in its own thread; a coroutine is awaited there."""

        async def job() -> Any:
            found = function(self.service)
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(job(), self._loop).result(30)

    def answer(self, device: int, round_number: int | None = None, **changed: Any) -> Report:
        """A report that the service accepts, as `answer` makes it."""
        return self.call(lambda s: answer(s.rounds, device, round_number, **changed))

    async def _serve(self) -> None:
        try:
            store = self._over(self._path, create=True, disk=self._disk)
            run = store.open_run(self._config.name, self._bundle.folder, self._bundle.digest)
            rounds = Rounds(store, run, self._bundle, self._config)
            if self._fleet:
                admission = Admission(Fleet(self._fleet), self._config.limits, self._config.certificate_days * 86400)
                self.service = self._kind(rounds, b"", admission)
            else:
                self.service = self._kind(rounds)
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            server, _ = await listening.start(self.service, self.address, insecure_loopback=not self._fleet)
        except Exception as error:  # noqa: BLE001  handed to the test's own thread
            self._failure = error
            return
        finally:
            self._ready.set()
        await self._stop.wait()
        await server.stop(0)
        store.close()
