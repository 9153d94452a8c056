"""A coordinator and its agents as real processes on this machine."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from coordinator.demo.relay import Relay
from coordinator.sqlite_store import SqliteStore
from zo.address import free_port, listens
from zo.errors import UserError

GIVE_UP = 60.0  # seconds to wait for processes to start or stop


class Fleet:
    """Processes over a work folder: `run.sqlite`, `coordinator.log`, and one folder a device."""

    def __init__(self, folder: Path, bundle: Path, settings: dict[str, str]) -> None:
        self.folder, self.bundle = folder, bundle
        self.store_path, self.port = folder / "run.sqlite", free_port()
        flags = {"bundle": str(bundle), "store": str(self.store_path), "name": "demo", "listen": f"127.0.0.1:{self.port}"} | settings
        self._flags = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        self.agents: dict[str, psutil.Popen] = {}
        self.relay = Relay(self.port)

    def start_coordinator(self) -> None:
        """Start it and wait until it serves."""
        self.coordinator = self._start("coordinator.cli", ["serve", "--insecure-loopback", *self._flags], self.folder / "coordinator.log")
        until = time.monotonic() + GIVE_UP
        while not listens(f"127.0.0.1:{self.port}"):
            if self.coordinator.poll() is not None or time.monotonic() > until:
                raise UserError(f"the coordinator did not start: {_last_line(self.folder / 'coordinator.log')}")
            time.sleep(0.1)

    def start_agent(self, name: str, data: Path, *settings: str, before: Sequence[str] = ()) -> None:
        """Start an agent with its own data and state. settings: further flags. before: words of a command that runs it."""
        state = self.folder / name / "state"
        arguments = ["run", "--insecure-loopback", f"--data={data}", f"--state={state}", f"--bundle={self.bundle}"]
        arguments += [f"--coordinator=127.0.0.1:{self.relay.port}", "--patience=120", *settings]
        self.agents[name] = self._start("edge_agent.cli", arguments, self.folder / name / "agent.log", before)

    def store(self) -> SqliteStore:
        """The run's store, for reading."""
        return SqliteStore(self.store_path)

    def memory_mib(self) -> dict[str, int]:
        """Resident memory of each agent now."""
        found = {}
        for name, process in self.agents.items():
            with contextlib.suppress(psutil.Error):
                found[name] = process.memory_info().rss >> 20
        return found

    def status(self, name: str) -> dict[str, Any]:
        """What an agent last wrote of itself."""
        try:
            return json.loads((self.folder / name / "state" / "status.json").read_text())
        except (OSError, ValueError):
            return {}

    def check(self) -> None:
        """UserError if the coordinator, or every agent, has ended."""
        if self.coordinator.poll() is not None:
            raise UserError(f"the coordinator ended: {_last_line(self.folder / 'coordinator.log')}")
        for name, process in self.agents.items():
            if process.poll():
                raise UserError(f"{name} ended: {_last_line(self.folder / name / 'agent.log')}")

    def wait_for_agents(self) -> None:
        """Until all agents have ended by themselves."""
        for process in self.agents.values():
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(GIVE_UP)

    def stop(self) -> None:
        """End every process started here."""
        processes = [*self.agents.values(), *([self.coordinator] if hasattr(self, "coordinator") else [])]
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except psutil.TimeoutExpired:
                process.kill()
        self.relay.close()

    @staticmethod
    def _start(module: str, arguments: list[str], log: Path, before: Sequence[str] = ()) -> psutil.Popen:
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*before, sys.executable, "-m", module, *arguments]
        with log.open("ab") as sink:
            return psutil.Popen(command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return f"{lines[-1] if lines else 'no output'} (see {log})"
