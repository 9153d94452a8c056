"""`scripts/bench soak`: a fleet under attack, whose devices come, go and are revoked, and whose coordinator dies every minute."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.bench import scratch
from coordinator.bench.audit import Notes
from coordinator.bench.churn import Churn
from coordinator.bench.hostile import Attack
from coordinator.sqlite_store import SqliteStore
from zo.ledger import short

AGENTS = 4
RATE = 100.0  # hostile messages a second
WARM = 15.0  # seconds after which a process has all that it will ever need
LOOKS = 5  # samples of memory at each end of a life that are compared


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0, help="[10]")
    scratch.add_keep(parser, "stores and logs")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(given.minutes, folder)


def failed(found: dict[str, Any]) -> bool:
    return found["leaked_mb"] > 5 or found["lost_commits"] > 0 or found["unauthorised_accepted"] > 0


@dataclass(frozen=True)
class Every:
    """Seconds between deaths of the coordinator, agents that leave, and agents that are revoked."""

    death: float = 60.0
    leaving: float = 20.0
    revocation: float = 30.0


def measure(minutes: float, folder: Path, every: Every = Every()) -> dict[str, Any]:
    """Figures of so many minutes.

    leaked_mb: most that a coordinator's resident memory grew in one life, after WARM seconds, or the steady agent's over all, once it
    has seen the coordinator die and come back twice: until then it does things for the first time.
    lost_commits: entries that an agent heard of and the ledger does not hold. unauthorised_accepted: messages that were taken from
    somebody who may not send them, or that no honest device would.
    """
    churn = Churn(folder)
    churn.start_coordinator()
    attack = Attack(churn.fleet, folder / "run.sqlite", 1, RATE)
    began = time.monotonic()
    jobs: dict[Callable[[], None], float] = {
        churn.restart_coordinator: every.death,
        churn.leave: every.leaving,
        lambda: churn.revoke(attack): every.revocation,
    }
    due = {job: began + pause for job, pause in jobs.items()}
    try:
        for _ in range(AGENTS):
            churn.join()
        attack.start()
        while time.monotonic() < began + minutes * 60:
            time.sleep(1)
            churn.look()
            for job, pause in jobs.items():
                if time.monotonic() > due[job]:
                    due[job] += pause
                    job()
            if len(churn.agents) < AGENTS:
                churn.join()
        attack.end()
    finally:
        attack.stop.set()
        churn.end()
    return _figures(churn, attack, minutes, 2.5 * every.death)


def _figures(churn: Churn, attack: Attack, minutes: float, warm: float) -> dict[str, Any]:
    (churn.folder / "memory.json").write_text(json.dumps({"coordinator": churn.lives, "agent": churn.steady}))
    store = SqliteStore(churn.folder / "run.sqlite")
    have = {(header.number, short(header.terms_digest)) for header, _ in store.headers(1)}
    agent = growth(churn.steady, warm)
    heard = Notes(sorted(churn.folder.glob("*.notes"))).heard
    ended = [process.returncode for process in churn.agents.values()]
    return {
        "leaked_mb": round(max(agent, *map(growth, churn.lives)), 2),
        "leaked_mb_agent": round(agent, 2),
        "lost_commits": len(heard - have),
        "unauthorised_accepted": attack.accepted.total(),
        "accepted": dict(attack.accepted),
        "refused": dict(attack.refused),
        "hostile_a_second": round((attack.accepted.total() + attack.refused.total()) / (minutes * 60), 1),
        "minutes": minutes,
        "commits": store.head(1)[0],
        "coordinator_mb": round(max(map(max, filter(None, churn.lives))), 1),
        "agent_mb": round(max(churn.steady, default=0.0), 1),
        "agents_that_failed": sum(code not in (0, None) for code in ended),
    } | churn.counts


def growth(life: list[float], warm: float = WARM) -> float:
    """MB by which the memory of a process grew between the first and the last seconds, the first `warm` of them left out."""
    steady = life[int(warm) :]
    if len(steady) < 4 * LOOKS:
        return 0.0
    return max(0.0, statistics.median(steady[-LOOKS:]) - statistics.median(steady[:LOOKS]))
