"""What the agent is doing, in one small file that `edge-agent status` reads."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil

from edge_agent.state import STATUS, State
from zo.errors import StorageError
from zo.memory import process

INTERVAL = 5.0  # seconds between writes while nothing changes its state: flash is precious
SELDOM = 300.0  # the same, when little is left of the write budget
UNJOINED = "unjoined"  # the state of an agent that waits for the device to join a fleet
SILENCE = 3 * SELDOM  # seconds after which an agent that has said nothing is not well


class Status:
    """The facts of a running agent. state: "unjoined", "joining", "working", "waiting", "paused", "unreachable", "finished", "stopped"
    or "failed". held_back: why it pauses, or goes on with less. parked: kinds of groups that it leaves out for now.

    folder: where they are written, as far as its write budget allows.
    """

    def __init__(self, folder: State) -> None:
        self._folder, self._written, self._saved = folder, 0.0, time.monotonic()
        self.facts: dict[str, Any] = {"state": "joining", "pid": os.getpid()}
        if traffic := folder.traffic():  # this file is where it is kept, also while nothing is sent
            self.facts["traffic"] = traffic

    def update(self, **facts: Any) -> None:
        """Note facts; written at once where the state changes, else at intervals."""
        before, now_in = self.facts["state"], facts.get("state", self.facts["state"])
        changed = now_in != before and not {before, now_in} <= {"working", "waiting"}
        self.facts |= facts
        now = time.monotonic()
        if changed or now - self._written >= INTERVAL:
            self.write(0.0 if changed or now - self._saved >= SELDOM else self._folder.budget.most / 2)

    def write(self, reserve: float = 0.0) -> None:
        """Write the file now, if that leaves `reserve` of the write budget."""
        self.facts |= {"at": round(time.time(), 1), "peak_memory_mib": process.peak() >> 20}
        self._written = time.monotonic()
        if self._folder.save_status(self.facts, reserve):
            self._saved = self._written


def read(folder: Path) -> dict[str, Any]:
    """The facts last written, with "alive" added. StorageError where no agent ever ran."""
    try:
        facts = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        facts["pid"] = int(facts["pid"])
        if not 0 < facts["pid"] < 2**31:
            raise ValueError
    except PermissionError:
        raise StorageError(f"{folder} is not for this user to read; try it with sudo") from None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise StorageError(f"{folder} holds no status of an agent; give the folder of a running agent with --state") from None
    facts["alive"] = False
    with contextlib.suppress(psutil.Error):
        command = " ".join(psutil.Process(facts["pid"]).cmdline())
        facts["alive"] = "edge-agent" in command or "edge_agent" in command
    return facts


def ill(facts: dict[str, Any]) -> str:
    """Why the agent is not well: its process is gone, or it has long said nothing; empty where it is well, or waits to join."""
    if not facts["alive"]:
        return "no agent works here"
    if facts["state"] == UNJOINED:  # said once, and there is nothing more to say
        return ""
    silence = time.time() - float(facts.get("at", 0))
    return f"the agent has said nothing for {silence:.0f} s; does it hang, or may it not write?" if silence > SILENCE else ""


def told(facts: dict[str, Any]) -> str:
    """The facts for a person."""
    alive = "" if facts["alive"] else " (no such process any more)"
    lines = [f"{facts['state']}{alive}: {facts.get('reason', '')}".rstrip(": ")]
    if "run" in facts:
        lines.append(
            f"run {facts['run']!r} as device {facts['device']}, entry {facts.get('entry', 0)}, {facts.get('reports', 0)} reports sent"
        )
    if "precision" in facts:
        signal = ", ".join(f"{name} {value}" for name, value in facts.get("signal_per_second", {}).items())
        rank = f", adapters of rank {facts['rank']}" if facts.get("rank") else ""
        lines.append(f"base {facts['precision']}{rank}" + (f"; signal a second: {signal}" if signal else ""))
    if "examples" in facts:
        lines.append(f"{facts['examples']} examples, {facts['held_out']} of them held out; {facts['skipped']} lines skipped")
    if facts.get("held_out_loss") is not None:
        lines.append(f"loss on held-out examples: {facts['held_out_loss']:.4f}")
    if facts.get("parked"):
        lines.append(f"left out for now, as its probes are mostly noise here: {' and '.join(facts['parked'])}")
    if "epsilon" in facts:
        lines.append(f"privacy spent: epsilon {facts['epsilon']:.3f} at delta {facts['delta']}")
    if facts.get("held_back"):
        lines.append(f"held back: {facts['held_back']}")
    if "memory" in facts:
        m = facts["memory"]
        done = ", ".join(f"{m[name]} {name}" for name in ("sheds", "trims", "pauses", "abandoned") if m[name])
        lines.append(
            f"runs of up to {m['rows']} rows (of {m['most_rows']}); nearest its limit: {m['worst']}" + (f"; {done}" if done else "")
        )
    planned = f", {facts['planned_memory_mib']} MiB were planned" if facts.get("planned_memory_mib") else ""
    lines.append(f"peak memory {facts['peak_memory_mib']} MiB{planned}")
    return "\n".join(lines)
