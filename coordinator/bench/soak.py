"""`scripts/bench soak`: a fleet under attack, whose devices come, go and are revoked, and whose coordinator dies every minute."""

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from coordinator.authority import read_peer
from coordinator.bench import tiny_models
from coordinator.bench.audit import Notes
from coordinator.bench.crash import build_bundle, flags
from coordinator.bench.hostile import Attack, Holder
from coordinator.demo import shares
from coordinator.fleet import Fleet
from coordinator.sqlite_store import SqliteStore
from zo.address import free_port
from zo.errors import UserError
from zo.ledger import short

AGENTS = 4
RATE = 100.0  # hostile messages a second
WARM = 15.0  # seconds after which a process has all that it will ever need
LOOKS = 5  # samples of memory at each end of a life that are compared
SETTINGS = {
    "probe.directions": "2",
    "probe.examples": "2",
    "round.goal": "3",
    "round.minimum": "1",
    "round.deadline": "1",
    "digest_every": "5",
    "seeds.pool": "4096",
    "held_out_every": "0",
}
PATIENCE = 30.0  # seconds


@dataclass(frozen=True)
class Every:
    """Seconds between deaths of the coordinator, agents that leave, and agents that are revoked."""

    death: float = 60.0
    leaving: float = 20.0
    revocation: float = 30.0


class Soak:
    """All processes, over a folder. Resident memory is sampled once a second."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle = folder, build_bundle(folder)
        self.fleet = Fleet.make(folder / "fleet", f"127.0.0.1:{free_port()}")
        self.agents: dict[str, psutil.Popen] = {}
        self.lives: list[list[float]] = []  # of the coordinator: MB, second by second
        self.steady: list[float] = []  # of the agent that stays
        self.counts = {"joined": 0, "left": 0, "revoked": 0, "restarts": -1}
        self._number = 0

    def start_coordinator(self) -> None:
        """Start it and wait until it listens."""
        given = {
            "bundle": self.bundle.folder,
            "store": self.folder / "run.sqlite",
            "listen": self.fleet.address,
            "fleet": self.fleet.folder,
        }
        self.coordinator = self._start("coordinator", "coordinator.cli", "serve", *flags(given | SETTINGS), "--rounds=10000000")
        until = time.monotonic() + PATIENCE
        while not self._listens():
            if self.coordinator.poll() is not None or time.monotonic() > until:
                raise UserError(f"the coordinator does not come up; see {self.folder}/coordinator.log")
            time.sleep(0.05)
        self.lives.append([])
        self.counts["restarts"] += 1

    def restart_coordinator(self) -> None:
        """Kill it, every other time without warning, and start it again."""
        (self.coordinator.kill if self.counts["restarts"] % 2 else self.coordinator.terminate)()
        self.coordinator.wait(PATIENCE)
        self.start_coordinator()

    def join(self) -> str:
        """A new agent, by a token of its own; its name."""
        name = f"agent{self._number}"
        self._number += 1
        state, token = self.folder / name, self.fleet.create_token(1, 600).text
        joining = subprocess.run(
            [sys.executable, "-m", "edge_agent.cli", "join", "-", f"--state={state}"],
            input=token,
            text=True,
            capture_output=True,
            check=False,
        )
        if joining.returncode:  # the coordinator may just be away
            return ""
        shares.write(self.folder / f"{name}.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 20, seed=self._number))
        given = {
            "data": self.folder / f"{name}.jsonl",
            "state": state,
            "bundle": self.bundle.folder,
            "notes": self.folder / f"{name}.notes",
        }
        self.agents[name] = self._start(name, "edge_agent.bench.crashing", *flags(given | {"disk_bytes_per_day": "1e12"}))
        self.counts["joined"] += 1
        return name

    def leave(self) -> None:
        """The oldest agent but the first stops."""
        for name in list(self.agents)[1:2]:
            process = self.agents.pop(name)
            process.terminate()
            process.wait(PATIENCE)
            self.counts["left"] += 1

    def revoke(self, attack: Attack) -> None:
        """The newest agent is turned away, and its certificate used on by others."""
        for name in list(self.agents)[1:][-1:]:
            process, found = self.agents.pop(name), json.loads((self.folder / name / "identity.json").read_text())
            holder = Holder(found["key"].encode(), found["certificate"].encode(), self._device(found["certificate"]))
            self.fleet.revoke(holder.name)
            attack.revoked.append(holder)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(PATIENCE)
            if process.poll() is None:
                raise UserError(f"{name} was revoked, and goes on")
            self.counts["revoked"] += 1

    def look(self) -> None:
        """Sample memory."""
        with contextlib.suppress(psutil.Error):
            self.lives[-1].append(self.coordinator.memory_info().rss / 1e6)
            self.steady.append(next(iter(self.agents.values())).memory_info().rss / 1e6)

    def end(self) -> None:
        """Stop every process."""
        for process in (*self.agents.values(), self.coordinator):
            with contextlib.suppress(psutil.Error):
                process.terminate()
                process.wait(PATIENCE)

    def _device(self, certificate: str) -> str:
        return read_peer(certificate.encode(), self.fleet.authority.certificate).device

    def _start(self, name: str, module: str, *arguments: str) -> psutil.Popen:
        with (self.folder / f"{name}.log").open("ab") as log:
            return psutil.Popen([sys.executable, "-m", module, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _listens(self) -> bool:
        host, _, port = self.fleet.address.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return True
        return False


def measure(minutes: float, folder: Path, every: Every = Every()) -> dict[str, Any]:
    """Figures of so many minutes.

    leaked_mb: most that a coordinator's resident memory grew in one life, after WARM seconds, or the steady agent's over all, once it
    has seen the coordinator die and come back twice: until then it does things for the first time.
    lost_commits: entries that an agent heard of and the ledger does not hold. unauthorised_accepted: messages that were taken from
    somebody who may not send them, or that no honest device would.
    """
    soak = Soak(folder)
    soak.start_coordinator()
    attack = Attack(soak.fleet, folder / "run.sqlite", 1, RATE)
    began = time.monotonic()
    jobs: dict[Callable[[], None], float] = {
        soak.restart_coordinator: every.death,
        soak.leave: every.leaving,
        lambda: soak.revoke(attack): every.revocation,
    }
    due = {job: began + pause for job, pause in jobs.items()}
    try:
        for _ in range(AGENTS):
            soak.join()
        attack.start()
        while time.monotonic() < began + minutes * 60:
            time.sleep(1)
            soak.look()
            for job, pause in jobs.items():
                if time.monotonic() > due[job]:
                    due[job] += pause
                    job()
            if len(soak.agents) < AGENTS:
                soak.join()
        attack.end()
    finally:
        attack.stop.set()
        soak.end()
    return _figures(soak, attack, minutes, 2.5 * every.death)


def _figures(soak: Soak, attack: Attack, minutes: float, warm: float) -> dict[str, Any]:
    (soak.folder / "memory.json").write_text(json.dumps({"coordinator": soak.lives, "agent": soak.steady}))
    store = SqliteStore(soak.folder / "run.sqlite")
    have = {(header.number, short(header.terms_digest)) for header, _ in store.headers(1)}
    agent = growth(soak.steady, warm)
    heard = Notes(sorted(soak.folder.glob("*.notes"))).heard
    ended = [process.returncode for process in soak.agents.values()]
    return {
        "leaked_mb": round(max(agent, *map(growth, soak.lives)), 2),
        "leaked_mb_agent": round(agent, 2),
        "lost_commits": len(heard - have),
        "unauthorised_accepted": attack.accepted.total(),
        "accepted": dict(attack.accepted),
        "refused": dict(attack.refused),
        "hostile_a_second": round((attack.accepted.total() + attack.refused.total()) / (minutes * 60), 1),
        "minutes": minutes,
        "commits": store.head(1)[0],
        "coordinator_mb": round(max(map(max, filter(None, soak.lives))), 1),
        "agent_mb": round(max(soak.steady, default=0.0), 1),
        "agents_that_failed": sum(code not in (0, None) for code in ended),
    } | soak.counts


def growth(life: list[float], warm: float = WARM) -> float:
    """MB by which the memory of a process grew between the first and the last seconds, the first `warm` of them left out."""
    steady = life[int(warm) :]
    if len(steady) < 4 * LOOKS:
        return 0.0
    return max(0.0, statistics.median(steady[-LOOKS:]) - statistics.median(steady[:LOOKS]))
