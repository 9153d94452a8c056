"""A fleet whose devices come, go and are revoked, and whose coordinator dies and comes back: churn, for `scripts/bench soak`."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from coordinator.authority import read_peer
from coordinator.bench import tiny_models
from coordinator.bench.crash import build_bundle, flags
from coordinator.bench.hostile import Attack, Holder
from coordinator.demo import shares
from coordinator.fleet import Fleet
from zo.address import free_port, listens
from zo.errors import UserError

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


class Churn:
    """All processes, over a folder."""

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
        while not listens(self.fleet.address):
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
