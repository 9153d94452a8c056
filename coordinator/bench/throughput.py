"""`scripts/bench coordinator`: one coordinator process under the reports of a whole fleet, each agent on a TCP connection of its own."""

import argparse
import asyncio
import contextlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from coordinator.bench import scratch, workload
from coordinator.bench.lean_agent import CallFailed, LeanAgent, connect, headers
from coordinator.sqlite_store import SqliteStore
from zo import manifest as manifest_file
from zo import wire
from zo.address import free_port
from zo.errors import UserError
from zo.ledger import short
from zo.manifest import Precision
from zo.messages import PROTOCOL, JoinReply, JoinRequest, Report, ReportReply, Verdict, WorkReply, WorkRequest
from zo.plan import WorkPlan

HEADERS = {method.request: headers(method.path) for method in wire.METHODS}
SPARE_FILES = 200  # descriptors that are no connections
PATIENCE = 60.0  # seconds for the coordinator to listen


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=int, default=5000, help="[5000]")
    parser.add_argument("--rounds", type=int, default=5, help="of one report an agent [5]")
    parser.add_argument("--at-once", type=int, default=256, help="calls under way [256]")
    workload.add_bundle(parser)
    scratch.add_disk(parser)


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return measure(workload.bundle(given, folder), given.agents, given.rounds, given.at_once, folder)


def measure(bundle: Path, agents: int, rounds: int, at_once: int, folder: Path) -> dict[str, Any]:
    """Reports a second, the round's commit included: medians over rounds of one report an agent, `at_once` of them under way.

    The coordinator syncs to `folder`. What agents do besides is timed apart: joining, and asking for work.
    """
    allow_files(agents + SPARE_FILES)
    address = f"127.0.0.1:{free_port()}"
    with coordinator(bundle, address, agents, rounds, folder) as process:
        return asyncio.run(_drive(address, bundle, agents, rounds, at_once, folder, psutil.Process(process.pid)))


def told(found: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = [f"{found['connected_agents']} agents connected, {found['at_once']} calls under way, {found['rounds']} rounds committed"]
    lines += [f"{what:10} {found[f'{key}_per_second']:8.0f} a second" for what, key in (("joins", "joins"), ("plans", "plans"))]
    lines.append(f"{'reports':10} {found['reports_per_second']:8.0f} a second, with the commit of their round")
    lines.append(f"coordinator: {found['cpu_ms_per_report']} ms of CPU a report, {found['resident_mib']} MiB resident")
    return "\n".join(lines)


def allow_files(count: int) -> None:
    """Let this process, and those it starts, have so many files open. UserError where it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
        except (ValueError, OSError):
            raise UserError(
                f"{count} open files are needed and {hard} allowed; raise the limit (ulimit -n), or take fewer agents"
            ) from None


@contextlib.contextmanager
def coordinator(bundle: Path, address: str, agents: int, rounds: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A coordinator as people run it; a round closes with the report of the last agent."""
    flags = {"bundle": bundle, "store": folder / "run.sqlite", "listen": address, "rounds": rounds}
    flags |= {"round.goal": agents, "round.minimum": agents, "algorithm": "mezo"}
    command = [sys.executable, "-m", "coordinator.cli", "serve", "--insecure-loopback"]
    with (folder / "coordinator.log").open("wb") as log:
        process = subprocess.Popen([*command, *(f"--{name}={value}" for name, value in flags.items())], stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


async def _drive(
    address: str, bundle: Path, agents: int, rounds: int, at_once: int, folder: Path, process: psutil.Process
) -> dict[str, Any]:
    connected = await _connected(address, agents, folder, process)
    timed, precision = Timed(connected, at_once), manifest_file.read(bundle).precision
    joined = await timed.ask([JoinRequest(PROTOCOL, number) for number in range(agents)], JoinReply)
    draw, seconds, cpu = np.random.default_rng(0), {"joins": [timed.seconds], "plans": [], "reports": []}, 0.0
    store = SqliteStore(folder / "run.sqlite")
    for entry in range(rounds):
        chain = short(store.head(joined[0].run, entry)[1])
        work = await timed.ask([WorkRequest(each.run, each.device, entry, chain, precision) for each in joined], WorkReply)
        seconds["plans"].append(timed.seconds)
        before = sum(process.cpu_times()[:2])
        answers = [_report(each, reply.plan, precision, draw) for each, reply in zip(joined, work, strict=True)]
        verdicts = await timed.ask(answers, ReportReply)
        cpu += sum(process.cpu_times()[:2]) - before
        seconds["reports"].append(timed.seconds)
        if any(reply.verdict is not Verdict.ACCEPTED for reply in verdicts) or store.head(joined[0].run)[0] != entry + 1:
            raise UserError(f"round {entry + 1} was not committed with all reports; see {folder / 'coordinator.log'}")
    open_now = sum(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp"))
    store.close()
    for each in connected:
        each.close()
    return {
        **{f"{what}_per_second": round(agents / statistics.median(each)) for what, each in seconds.items()},
        "connected_agents": open_now,
        "at_once": at_once,
        "rounds": rounds,
        "cpu_ms_per_report": round(1000 * cpu / agents / rounds, 3),
        "resident_mib": process.memory_info().rss >> 20,
    }


class Timed:
    """Asks for all agents, and takes the time."""

    def __init__(self, agents: Sequence[LeanAgent], at_once: int) -> None:
        self._agents, self._at_once, self.seconds = agents, at_once, 0.0

    async def ask(self, requests: Sequence[Any], reply: type) -> list[Any]:
        """The reply to the request of every agent. UserError where one is refused."""
        bodies, replies, places = [wire.encode(each) for each in requests], [b""] * len(requests), iter(range(len(requests)))
        header = HEADERS[type(requests[0])]

        async def some() -> None:
            for place in places:  # shared: each takes the next
                replies[place] = await self._agents[place].call(header, bodies[place])

        began = time.perf_counter()
        await _all(some for _ in range(self._at_once))
        self.seconds = time.perf_counter() - began
        return [wire.decoder(reply)(each) for each in replies]


async def _all(jobs: Iterator[Callable[[], Awaitable[None]]]) -> None:
    try:
        await asyncio.gather(*(job() for job in jobs))
    except CallFailed as error:
        raise UserError(f"a call of the benchmark failed: {error}") from None


async def _connected(address: str, count: int, folder: Path, process: psutil.Process) -> list[LeanAgent]:
    """Connections, once the coordinator listens."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            found = [await connect(address)]
            break
        except OSError:
            if time.monotonic() > until or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise UserError(f"the coordinator has ended; see {folder / 'coordinator.log'}") from None
            await asyncio.sleep(0.1)
    while len(found) < count:
        found.append(await connect(address))
    return found


def _report(joined: JoinReply, plan: WorkPlan, precision: Precision, draw: np.random.Generator) -> Report:
    """Such as an agent sends."""
    scalars = draw.integers(-2000, 2000, plan.root.scalars)
    return Report(joined.run, joined.device, plan.round, scalars, plan.examples, precision, plan=plan.id, shape=plan.root.shape)
