"""A fleet over a real network that is bad: slow, lossy, cut, moved. Rounds never hang, and nobody has to be started again."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import network
import psutil
import pytest
from network import DEVICE, SERVER, Network
from test_processes import command, wait_until, write_data

from coordinator.fleet import Fleet
from coordinator.sqlite_store import SqliteStore
from edge_agent import join
from edge_agent.link import Link, Unreachable
from zo.address import free_port
from zo.bundle import Bundle
from zo.messages import JoinRequest

PORT = 7600
ROOT = Path(__file__).parents[1]

rooted = pytest.mark.root


class Apart:
    """A coordinator in one namespace, agents in the other; whatever still runs at the end is killed."""

    def __init__(self, folder: Path, bundle: Bundle, net: Network, host: str = SERVER) -> None:
        self.folder, self.bundle, self.net = folder, bundle, net
        self.fleet = Fleet.make(folder / "fleet", f"{host}:{PORT}")
        self._started: list[subprocess.Popen[bytes]] = []

    def coordinator(self, listen: str = SERVER, **settings: object) -> subprocess.Popen[bytes]:
        settings = {"held_out_every": 0} | settings  # what a tiny model gains or loses is no reason to go back
        flags = [f"--{name.replace('__', '.').replace('_', '-')}={value}" for name, value in settings.items()]
        place = [f"--bundle={self.bundle.folder}", f"--store={self.folder}/run.sqlite", f"--fleet={self.folder}/fleet"]
        made = self._start(
            self.net.server, "coordinator", command("edge-coordinator", "serve", f"--listen={listen}:{PORT}", *place, *flags)
        )
        wait_until(lambda: made.poll() is not None or f"serving run 'run' on {listen}" in self.log("coordinator"))
        assert made.poll() is None, self.log("coordinator")
        return made

    def agent(self, name: str) -> subprocess.Popen[bytes]:
        token, data = self.fleet.create_token(1, 600).text, write_data(self.folder / name / "data/a.jsonl", seed=len(name))
        given = [f"--data={data}", f"--state={self.folder}/{name}/state", f"--bundle={self.bundle.folder}"]
        return self._start(self.net.device, name, command("edge-agent", "join", token, *given))

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def summaries(self) -> list[dict[str, Any]]:
        if not (self.folder / "run.sqlite").exists():
            return []
        store = SqliteStore(self.folder / "run.sqlite")
        found = store.summaries(1)
        store.close()
        return found

    def digest(self, name: str) -> str:
        return json.loads((self.folder / name / "state/status.json").read_text())["digest"]

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
        self.fleet.close()

    def _start(self, namespace: str, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            made = subprocess.Popen(self.net.within(namespace, arguments), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT)
        self._started.append(made)
        return made


Make = Callable[..., Apart]


@pytest.fixture
def apart(bert_bundle: Bundle, tmp_path: Path) -> Iterator[Make]:
    """apart(host=SERVER, **network): a fleet over such a network."""
    if why := network.missing():
        pytest.skip(why)
    made: list[Apart] = []

    def make(host: str = SERVER, **settings: Any) -> Apart:
        made.append(Apart(tmp_path, bert_bundle, Network(**settings).__enter__(), host))
        return made[-1]

    yield make
    for each in made:
        each.end()
        each.net.__exit__()


@rooted
@pytest.mark.slow
def test_delay_and_loss_cost_time_and_nothing_else(apart: Make) -> None:
    fleet = apart(delay=0.1, loss=0.05)
    fleet.coordinator(rounds=4, round__goal=2, round__minimum=1, round__deadline=20)
    agents = {name: fleet.agent(name) for name in ("a", "bb")}
    for name, agent in agents.items():
        assert agent.wait(120) == 0, fleet.log(name)
    assert len(fleet.summaries()) == 4
    assert fleet.digest("a") == fleet.digest("bb") == fleet.summaries()[-1]["digest"]
    assert fleet.net.lost > 5


@rooted
@pytest.mark.slow
def test_a_line_that_dies_without_a_word_holds_up_no_round_and_is_taken_up_again(apart: Make) -> None:
    """Half-open connections on both sides: nothing is reset, packets just vanish."""
    fleet = apart()
    fleet.coordinator(rounds=10**6, round__goal=2, round__minimum=1, round__deadline=1, probe__directions=2)
    near, far = (fleet.agent(name) for name in ("a", "bb"))
    wait_until(lambda: len(fleet.summaries()) >= 3)
    fleet.net.dead = True
    before = len(fleet.summaries())
    wait_until(lambda: "does not answer" in fleet.log("a") and "does not answer" in fleet.log("bb"), 90)
    assert len(fleet.summaries()) <= before + 1
    fleet.net.dead = False
    resumed = len(fleet.summaries())
    wait_until(lambda: len(fleet.summaries()) > resumed + 3, 90)
    assert [agent.poll() for agent in (near, far)] == [None, None]
    wait_until(lambda: fleet.summaries()[-1]["reports"] == 2, 90)
    assert "Traceback" not in fleet.log("a") + fleet.log("bb") + fleet.log("coordinator")


@rooted
@pytest.mark.slow
def test_the_rounds_of_the_others_go_on_while_one_device_is_cut_off(apart: Make, tmp_path: Path) -> None:
    fleet = apart()
    fleet.coordinator(listen="0.0.0.0", rounds=10**6, round__goal=2, round__minimum=1, round__deadline=1, probe__directions=2)
    token, data = fleet.fleet.create_token(1, 600, f"127.0.0.1:{PORT}").text, write_data(tmp_path / "near/data/a.jsonl")
    given = [f"--data={data}", f"--state={tmp_path}/near/state", f"--bundle={fleet.bundle.folder}"]
    fleet._start(fleet.net.server, "near", command("edge-agent", "join", token, *given))
    fleet.agent("far")
    wait_until(lambda: bool(fleet.summaries()) and fleet.summaries()[-1]["reports"] == 2)
    fleet.net.dead = True
    before = len(fleet.summaries())
    wait_until(lambda: len(fleet.summaries()) >= before + 10, 60)
    assert {summary["reports"] for summary in fleet.summaries()[before + 1 :]} == {1}
    fleet.net.dead = False
    wait_until(lambda: fleet.summaries()[-1]["reports"] == 2, 120)


@rooted
@pytest.mark.slow
def test_a_coordinator_that_moves_to_another_address_is_found_by_its_name(apart: Make) -> None:
    fleet = apart(host="coordinator.test")
    fleet.net.name("coordinator.test", SERVER)
    fleet.net.add_address("10.83.0.77")
    settings = {"rounds": 60, "round__goal": 1, "round__deadline": 5, "probe__directions": 2}
    first = fleet.coordinator(**settings)
    agent = fleet.agent("a")
    wait_until(lambda: len(fleet.summaries()) >= 3)
    first.kill()
    first.wait()
    kept = len(fleet.summaries())
    assert kept < 60
    fleet.net.name("coordinator.test", "10.83.0.77")
    fleet.coordinator("10.83.0.77", **settings)
    assert agent.wait(90) == 0, fleet.log("a")
    assert len(fleet.summaries()) == 60


@rooted
@pytest.mark.slow
def test_an_address_that_swallows_packets_is_named_after_some_time(apart: Make, tmp_path: Path) -> None:
    fleet = apart()
    fleet.net.dead = True
    token = fleet.fleet.create_token(1, 60).text
    arguments = fleet.net.within(fleet.net.device, command("edge-agent", "join", token, f"--state={tmp_path}/x"))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 6
    assert f"no connection to {SERVER}:{PORT}: " in done.stderr
    assert DEVICE not in done.stderr


# --- failed connections, by the thousand ---


def resident_mb(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 1e6


@pytest.mark.slow
def test_ten_thousand_failed_connects_of_an_agent_leave_no_memory_behind(bert_bundle: Bundle, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    fleet = Fleet.make(tmp_path / "fleet", address)
    guest = join.guest(fleet.create_token(1, 60), address, fleet.authority.certificate.decode())

    def fail(times: int) -> None:
        for _ in range(times):
            link = Link(address, threading.Event(), identity=guest)
            with pytest.raises(Unreachable):
                link.ask(JoinRequest(1, 2))
            link.close()

    fail(1000)
    before = resident_mb(os.getpid())
    fail(10_000)
    assert resident_mb(os.getpid()) - before < 5
    fleet.close()


@pytest.mark.slow
def test_ten_thousand_strangers_leave_no_memory_behind_in_the_coordinator(bert_bundle: Bundle, tmp_path: Path) -> None:
    import contextlib
    import socket

    port = free_port()
    Fleet.make(tmp_path / "fleet", f"127.0.0.1:{port}").close()
    place = [f"--bundle={bert_bundle.folder}", f"--store={tmp_path}/run.sqlite", f"--fleet={tmp_path}/fleet", f"--listen=127.0.0.1:{port}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command("edge-coordinator", "serve", *place), stdout=log, stderr=log)
    try:
        wait_until(lambda: "serving run" in (tmp_path / "log").read_text())

        def knock(times: int) -> None:
            for _ in range(times):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as line:
                    line.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    line.settimeout(10)
                    line.recv(100)

        knock(2000)
        before = resident_mb(process.pid)
        knock(10_000)
        assert resident_mb(process.pid) - before < 5
        assert process.poll() is None
        assert len((tmp_path / "log").read_text()) < 2000
    finally:
        process.kill()
        process.wait()
