"""`scripts/bench crash`: a coordinator and agents that are killed, or lose power, again and again; then their ledger is audited."""

import argparse
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.bench import audit, scratch, tiny_models
from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.demo import shares
from coordinator.sqlite_store import SqliteStore
from zo.address import free_port
from zo.bundle import Bundle, open_bundle
from zo.errors import UserError
from zo.faults import Death, Fault, cut_power

AGENTS = 3
SETTINGS = {
    "probe.directions": "2",
    "probe.examples": "2",
    "round.goal": str(AGENTS),
    "round.minimum": "1",
    "round.deadline": "0.3",
    "rate.final": "1.0",
    "digest_every": "3",
}
ENDLESS = 10**6  # rounds
LAST_ROUNDS = 5  # after the last crash, undisturbed
PATIENCE = 20.0  # seconds until a process that should have died at an instant is killed at any


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=200, help="kills, and as many power losses [200]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    scratch.add_keep(parser, "stores, logs and notes")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(given.kills, folder, given.seed)


def failed(found: dict[str, Any]) -> bool:
    return any(found[key] for key in ("lost_commits", "lost_reports", "double_counted", "digest_mismatches"))


@dataclass(frozen=True)
class Crash:
    """How a process is to end. death: at an instant of a write; None: at a random time. power: what it did not sync is lost with it."""

    death: Death | None
    power: bool


@dataclass
class Process:
    """A process that is started again whenever it ends, each time with its next crash before it."""

    name: str
    folder: Path
    command: list[str]
    crashes: Iterator[Crash]
    running: subprocess.Popen[bytes] | None = None
    crash: Crash | None = None
    kill_at: float = 0.0
    killed: bool = False
    counts: dict[str, int] = field(default_factory=lambda: {"kills": 0, "kills_in_commit": 0, "power_losses": 0})

    def start(self, *more: str) -> None:
        """Start it, with its next crash."""
        self.crash, self.killed = next(self.crashes, None), False
        death = [f"--death={self.crash.death}"] if self.crash and self.crash.death else []
        wait = PATIENCE if death else random.uniform(0.3, 1.5)
        self.kill_at = time.monotonic() + wait if self.crash else float("inf")
        with (self.folder.parent / f"{self.name}.log").open("ab") as log:
            self.running = subprocess.Popen([*self.command, *death, *more], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def attend(self) -> bool:
        """Kill it when it is time, start it again when it is dead; False once it has no crash before it any more."""
        assert self.running is not None
        if self.running.poll() is None:
            if time.monotonic() > self.kill_at and not self.killed:
                self.running.kill()
                self.killed = True
            return self.crash is not None
        if self.running.returncode != -signal.SIGKILL or self.crash is None:
            raise UserError(f"{self.name} ended by itself with code {self.running.returncode}; see {self.folder.parent / self.name}.log")
        self._count(self.crash)
        if self.crash.power:
            cut_power(self.folder, keep={"lock"})
        self.start()
        return True

    def _count(self, crash: Crash) -> None:
        self.counts["power_losses" if crash.power else "kills"] += 1
        if not crash.power and crash.death and crash.death.in_commit and not self.killed:
            self.counts["kills_in_commit"] += 1

    def end(self) -> None:
        """Kill it, if it runs."""
        if self.running is not None and self.running.poll() is None:
            self.running.kill()
            self.running.wait()


def coordinator_crashes(count: int, power: bool) -> list[Crash]:
    """Three of five inside the commit of an entry, one at the sync of anything, one at any time."""
    commit = [Death(fault, n, True) for n in (1, 2, 3) for fault in (Fault.BEFORE_WRITE, Fault.BEFORE_SYNC, Fault.AFTER_SYNC)]
    others = [Death(Fault.BEFORE_SYNC, 4), None, Death(Fault.AFTER_SYNC, 5), None]
    return [Crash(commit[n % len(commit)] if n % 5 < 3 else others[n % len(others)], power) for n in range(count)]


def agent_crashes(count: int, power: bool) -> list[Crash]:
    """Two of three inside a write of its state, one at any time."""
    inside = (Fault.HALF_WRITTEN, Fault.BEFORE_SYNC, Fault.BEFORE_RENAME, Fault.AFTER_RENAME, Fault.AFTER_SYNC)
    return [Crash(Death(inside[n % len(inside)], 2 + n % 9) if n % 3 < 2 else None, power) for n in range(count)]


def measure(kills: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """`kills` kills and as many power losses, half of them of the coordinator; figures, with the audit's."""
    random.seed(seed)
    bundle = build_bundle(folder)
    of_coordinator, of_agents = _mixed(coordinator_crashes, kills // 2), _mixed(agent_crashes, kills - kills // 2)
    port, notes = free_port(), [folder / f"agent{n}.notes" for n in range(AGENTS)]
    (folder / "store").mkdir()
    settings = (
        {"bundle": str(bundle.folder), "store": str(folder / "store/run.sqlite"), "listen": f"127.0.0.1:{port}"}
        | SETTINGS
        | {"held_out_every": "0"}
    )
    serve = [sys.executable, "-m", "coordinator.bench.crashing", "--insecure-loopback", *flags(settings)]
    coordinator = Process("coordinator", folder / "store", [*serve, f"--rounds={ENDLESS}"], of_coordinator)
    agents = [Process(f"agent{n}", folder / f"agent{n}", _agent(folder, n, port, bundle, notes[n]), of_agents) for n in range(AGENTS)]
    began = time.monotonic()
    try:
        for process in (coordinator, *agents):
            process.start()
        while sum(process.attend() for process in (coordinator, *agents)):
            time.sleep(0.01)
        _finish(coordinator, agents, serve, folder)
    finally:
        for process in (coordinator, *agents):
            process.end()
    counts = {key: sum(process.counts[key] for process in (coordinator, *agents)) for key in coordinator.counts}
    return counts | audit.audit(folder / "store/run.sqlite", settings, notes, folder) | {"seconds": round(time.monotonic() - began, 1)}


def _mixed(made: Any, count: int) -> Iterator[Crash]:
    crashes = [*made(count, False), *made(count, True)]
    random.shuffle(crashes)
    return iter(crashes)


def _finish(coordinator: Process, agents: list[Process], serve: list[str], folder: Path) -> None:
    """A few rounds more in peace, then the end of the run; every agent must come to it."""
    store = SqliteStore(folder / "store/run.sqlite")
    last = store.head(1)[0] + LAST_ROUNDS
    store.close()
    coordinator.end()
    coordinator.command = [*serve, f"--rounds={last}"]
    coordinator.start()
    for agent in agents:
        assert agent.running is not None
        if agent.running.wait(60) != 0:
            raise UserError(f"{agent.name} did not come to the end of the run; see {folder / agent.name}.log")
    assert coordinator.running is not None
    coordinator.running.terminate()
    coordinator.running.wait(30)


def _agent(folder: Path, number: int, port: int, bundle: Bundle, notes: Path) -> list[str]:
    data = folder / f"agent{number}-data.jsonl"
    shares.write(data, tiny_models.examples(tiny_models.CLASSIFICATION, 20, seed=number))
    settings = {"data": data, "state": folder / f"agent{number}", "bundle": bundle.folder, "coordinator": f"127.0.0.1:{port}"}
    settings |= {"disk_bytes_per_day": "1e12", "notes": notes}
    return [sys.executable, "-m", "edge_agent.bench.crashing", "--insecure-loopback", *flags(settings)]


def build_bundle(folder: Path) -> Bundle:
    """A tiny one, in folder/bundle."""
    model = tiny_models.save(folder / "model", tiny_models.BERT, tiny_models.bert_weights())
    task = tiny_models.CLASSIFICATION
    build(model, folder / "bundle", task, Training("lora-fa", "fp32", 4, 8.0, 7), tiny_models.examples(task))
    return open_bundle(folder / "bundle")


def flags(settings: Mapping[str, object]) -> list[str]:
    """Settings as a command line."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
