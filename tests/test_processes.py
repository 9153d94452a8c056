"""Both commands as real processes: a run that outlives its coordinator, stopping, and one line for every mistake."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Bundles
from local_coordinator import LocalCoordinator, answer

from coordinator.bench import tiny_models
from coordinator.config import Round
from coordinator.demo import shares
from coordinator.sqlite_store import SqliteStore
from zo.address import free_port
from zo.bundle import Bundle
from zo.messages import PROTOCOL, JoinRequest

MODULES = {"edge-coordinator": "coordinator.cli", "edge-agent": "edge_agent.cli"}
IN_1970 = """
import sys, time, types, grpc._channel
grpc._channel.time = true = types.SimpleNamespace(**vars(time))  # gRPC compares with a clock that cannot be replaced here
began = time.time()
time.time = lambda: true.time() - began
from {} import main
sys.exit(main())
"""
SOON = 10.0  # seconds; generous, for a busy machine

Run = Callable[..., subprocess.CompletedProcess[str]]


def command(program: str, *arguments: object, year: int = 0) -> list[str]:
    """The command line of a program. year: 1970 is what its clock begins with."""
    if year == 1970:
        return [sys.executable, "-c", IN_1970.format(MODULES[program]), *map(str, arguments)]
    return [sys.executable, "-m", MODULES[program], *map(str, arguments)]


def wait_until(true: Callable[[], bool], seconds: float = 40.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.05)


def write_data(path: Path, count: int = 40, seed: int = 0) -> Path:
    shares.write(path, tiny_models.examples(tiny_models.CLASSIFICATION, count, seed))
    return path


class Processes:
    """A coordinator and agents over one folder; whatever still runs at the end is killed. store: the coordinator's file."""

    def __init__(self, folder: Path, bundle: Bundle, **settings: object) -> None:
        self.folder, self.bundle, self.port, self.store = folder, bundle, free_port(), folder / "run.sqlite"
        settings = {"held_out_every": 0} | settings  # what a tiny model gains or loses is no reason to stop, or go back
        self._flags = [f"--{name.replace('__', '.').replace('_', '-')}={value}" for name, value in settings.items()]
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, program: str, *arguments: object, year: int = 0, **options: Any) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command(program, *arguments, year=year), stdout=log, stderr=log, stdin=subprocess.DEVNULL, **options)
        self._started.append(process)
        return process

    def coordinator(self, **options: Any) -> subprocess.Popen[bytes]:
        place = [f"--bundle={self.bundle.folder}", f"--store={self.store}", f"--listen=127.0.0.1:{self.port}"]
        process = self.start("coordinator", "edge-coordinator", "serve", "--insecure-loopback", *place, *self._flags, **options)
        wait_until(lambda: process.poll() is not None or self._answers())
        assert process.poll() is None, self.log("coordinator")
        return process

    def agent(self, name: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return self.start(name, "edge-agent", "run", *self.agent_flags(name), *arguments, **options)

    def agent_flags(self, name: str) -> list[str]:
        data, state = write_data(self.folder / name / "data/a.jsonl", seed=len(name)), self.folder / name / "state"
        return ["--insecure-loopback", f"--data={data}", f"--state={state}", f"--coordinator=127.0.0.1:{self.port}"]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def status(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            return json.loads((self.folder / name / "state/status.json").read_text())
        return {}

    def summaries(self) -> list[dict[str, Any]]:
        store = SqliteStore(self.store)
        found = store.summaries(1)
        store.close()
        return found

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@pytest.fixture
def processes(bert_bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., Processes]]:
    made: list[Processes] = []

    def make(**settings: object) -> Processes:
        made.append(Processes(tmp_path, bert_bundle, **settings))
        return made[-1]

    yield make
    for each in made:
        each.end()


# --- faults in mid-run ---


def test_a_run_outlives_a_killed_coordinator_and_a_killed_agent(processes: Callable[..., Processes]) -> None:
    rounds = 150
    fleet = processes(rounds=rounds, round__goal=3, round__minimum=2, round__deadline=1, digest_every=5, probe__directions=2)
    coordinator = fleet.coordinator()
    agents = {name: fleet.agent(name) for name in ("a", "bb", "ccc")}
    wait_until(lambda: len(fleet.summaries()) >= 5)
    coordinator.kill()
    coordinator.wait()
    kept = fleet.summaries()
    assert len(kept) < rounds
    fleet.coordinator()
    wait_until(lambda: len(fleet.summaries()) > len(kept) + 2)
    assert fleet.summaries()[: len(kept)] == kept
    agents.pop("ccc").kill()
    assert len(fleet.summaries()) < rounds
    agents["dddd"] = fleet.agent("dddd")
    for name, agent in agents.items():
        assert agent.wait(60) == 0, fleet.log(name)
    summaries = fleet.summaries()
    assert [summary["round"] for summary in summaries] == list(range(1, rounds + 1))
    assert {name: fleet.status(name)["digest"] for name in agents} == dict.fromkeys(agents, summaries[-1]["digest"])
    assert summaries[-1]["digest"] != fleet.bundle.parameters().digest().hex()
    assert fleet.status("dddd")["reports"] > 0
    assert "Traceback" not in "".join(fleet.log(name) for name in ("coordinator", *agents))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"split__cuts": "[2]", "split__counts": "[5]"},
        {"split__cuts": "[1]", "split__counts": "[3]", "split__joint": "true"},
        {"split__cuts": "[1]", "split__counts": "[5]", "split__clean": "true"},
    ],
    ids=["planned", "cut", "joint", "clean"],
)
def test_parts_are_tried_apart_by_a_fleet_that_outlives_its_coordinator(how: dict[str, str], processes: Callable[..., Processes]) -> None:
    rounds = 60
    fleet = processes(rounds=rounds, round__goal=2, round__minimum=2, digest_every=5, algorithm="fedspzo", probe__directions=2, **how)
    coordinator = fleet.coordinator()
    agents = {name: fleet.agent(name) for name in ("a", "bb")}
    wait_until(lambda: len(fleet.summaries()) >= 5)
    coordinator.kill()
    coordinator.wait()
    kept = fleet.summaries()
    assert len(kept) < rounds
    fleet.coordinator()
    for name, agent in agents.items():
        assert agent.wait(60) == 0, fleet.log(name)
    summaries = fleet.summaries()
    assert summaries[: len(kept)] == kept
    assert [summary["round"] for summary in summaries] == list(range(1, rounds + 1))
    assert {summary["reports"] for summary in summaries} == {2}
    if how:
        assert {summary["scalars"] for summary in summaries} == {2 * (12 if "split__joint" not in how else 6)}
        assert {summary["probes"] for summary in summaries} == {2 * 2 * 2}
    assert {name: fleet.status(name)["digest"] for name in agents} == dict.fromkeys(agents, summaries[-1]["digest"])
    assert summaries[-1]["digest"] != fleet.bundle.parameters().digest().hex()
    assert "Traceback" not in "".join(fleet.log(name) for name in ("coordinator", *agents))


def test_agents_with_different_bases_train_one_model(bundles: Bundles, tmp_path: Path, processes: Callable[..., Processes]) -> None:
    fleet = processes(rounds=30, round__goal=3, round__minimum=3, digest_every=5, probe__directions=2)
    fleet.bundle = bundles("bert", precision="int8,fp32,w4")
    coordinator = fleet.coordinator()
    agents = {name: fleet.agent(name, f"--precision={name}") for name in ("int8", "fp32")}
    agents["auto"] = fleet.agent("auto")
    wait_until(lambda: len(fleet.summaries()) >= 3)
    agents["auto"].kill()
    agents["auto"].wait()
    agents["auto"] = fleet.agent("auto")
    for name, agent in agents.items():
        assert agent.wait(60) == 0, fleet.log(name)
    assert {name: fleet.status(name)["digest"] for name in agents} == dict.fromkeys(agents, fleet.summaries()[-1]["digest"])
    assert [fleet.status(name)["precision"] for name in ("int8", "fp32")] == ["int8", "fp32"]
    for name in agents:
        (folder,) = (fleet.folder / name / "state/bundles").iterdir()
        assert [path.name for path in folder.glob("*.safetensors") if path.stem != "trainable"] == [
            f"{fleet.status(name)['precision']}.safetensors"
        ]
    assert fleet.log("auto").count("comparing 3 bases") == 1
    shown = subprocess.run(
        command("edge-agent", "status", f"--state={tmp_path / 'auto/state'}"), capture_output=True, text=True, timeout=20
    )
    assert f"base {fleet.status('auto')['precision']}; signal a second: int8 " in shown.stdout
    assert coordinator.poll() is None
    assert "Traceback" not in "".join(fleet.log(name) for name in ("coordinator", *agents))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_agent_and_coordinator_cleanly(number: int, processes: Callable[..., Processes]) -> None:
    fleet = processes(rounds=100000, round__goal=1)
    coordinator, agent = fleet.coordinator(), fleet.agent("a")
    wait_until(lambda: len(fleet.summaries()) >= 2)
    for process in (agent, coordinator):
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(SOON) == 0
        assert time.monotonic() - began < SOON
    assert fleet.status("a")["state"] == "stopped"
    assert "Traceback" not in fleet.log("a") + fleet.log("coordinator")


def test_a_signal_stops_an_agent_that_waits_for_others(processes: Callable[..., Processes]) -> None:
    fleet = processes(round__goal=2, round__minimum=2)
    fleet.coordinator()
    agent = fleet.agent("a")
    wait_until(lambda: b"joined" in (fleet.folder / "a.log").read_bytes())
    time.sleep(1)
    agent.terminate()
    assert agent.wait(SOON) == 0


def test_ctrl_c_in_a_terminal_reaches_the_evaluating_process_and_still_ends_quietly(processes: Callable[..., Processes]) -> None:
    folder = processes().folder
    validation = write_data(folder / "validation.jsonl")
    fleet = processes(rounds=100000, evaluation__validation=validation, evaluation__every=1)
    coordinator = fleet.coordinator(start_new_session=True)
    wait_until(lambda: "entry 0: loss" in fleet.log("coordinator"))
    os.killpg(coordinator.pid, signal.SIGINT)
    assert coordinator.wait(SOON) == 0
    assert "Traceback" not in fleet.log("coordinator")


def test_an_evaluation_is_compared_with_the_lowest_one(processes: Callable[..., Processes]) -> None:
    fleet = processes(rounds=8)
    coordinator, agent = fleet.coordinator(), fleet.agent("a")
    assert agent.wait(60) == 0, fleet.log("a")
    coordinator.terminate()
    assert coordinator.wait(SOON) == 0
    store = SqliteStore(fleet.folder / "run.sqlite")
    store.add_evaluation(1, 3, "validation", {"balanced_loss": 0.1, "gain": 1.0, "gain_error": 0.1})
    fleet = processes(rounds=8, evaluation__validation=write_data(fleet.folder / "validation.jsonl"))
    fleet.coordinator()
    wait_until(lambda: 8 in store.evaluations(1, "validation"))
    assert store.evaluations(1, "validation")[8]["over"] == 3
    store.close()


def test_training_goes_on_where_evaluation_fails(processes: Callable[..., Processes]) -> None:
    folder = processes().folder
    write_data(folder / "test.jsonl")
    fleet = processes(rounds=10, evaluation__test=folder / "test.jsonl")
    coordinator = fleet.coordinator()
    (folder / "test.jsonl").write_text("{}\n")  # which is read when the run is over

    def events() -> list[tuple[str, str]]:
        store = SqliteStore(folder / "run.sqlite")
        found = [(kind, text) for _, kind, text in store.events(1)]
        store.close()
        return found

    agent = fleet.agent("a")
    assert agent.wait(60) == 0, fleet.log("a")
    assert len(fleet.summaries()) == 10
    wait_until(lambda: bool(events()))
    assert [kind for kind, _ in events()] == ["evaluation"]
    assert "test.jsonl holds no usable example" in events()[0][1]
    assert events()[0][1].endswith("; training goes on without it")
    assert coordinator.poll() is None
    coordinator.terminate()
    assert coordinator.wait(SOON) == 0
    assert "Traceback" not in fleet.log("coordinator")


# --- going on from what was saved ---


def test_an_agent_that_is_killed_goes_on_from_the_position_that_it_saved_last(processes: Callable[..., Processes]) -> None:
    fleet = processes(rounds=40, round__goal=2, round__minimum=2, digest_every=5, probe__directions=2)
    fleet.coordinator()
    agent, other = fleet.agent("a"), fleet.agent("bb")
    wait_until(lambda: len(fleet.summaries()) >= 5)
    agent.terminate()
    assert agent.wait(SOON) == 0
    saved, reached = fleet.status("a")["entry"], len(fleet.summaries())
    assert 4 <= saved <= reached < 30
    agent = fleet.agent("a")
    wait_until(lambda: len(fleet.summaries()) >= reached + 3)
    agent.kill()
    agent.wait()
    killed_at = len(fleet.summaries())
    assert killed_at < 40
    assert [agent.wait(60) for agent in (fleet.agent("a"), other)] == [0, 0]
    places = [(int(found[1]), int(found[2])) for found in re.finditer(r"catching up from entry (\d+) to (\d+) by", fleet.log("a"))]
    assert places[-1] in ((saved, killed_at), (saved, killed_at + 1))  # its last report may have been enough to close a round
    assert {first for first, _ in places} <= {0, saved}
    digest = fleet.summaries()[-1]["digest"]
    assert [fleet.status(name)["digest"] for name in ("a", "bb")] == [digest, digest]
    assert "corrupt" not in fleet.log("a")


def test_a_second_agent_on_a_state_folder_is_turned_away(processes: Callable[..., Processes], run: Run) -> None:
    fleet = processes()
    first = fleet.agent("a")
    wait_until(lambda: "state" in fleet.status("a"))
    done = run("edge-agent", "run", *fleet.agent_flags("a"))
    check(done, "edge-agent", 8, "another agent works in", "give this one a folder of its own with --state")
    assert first.poll() is None


def test_a_run_goes_right_where_the_clocks_say_1970_and_after_they_are_set(processes: Callable[..., Processes]) -> None:
    fleet = processes(rounds=60, round__goal=1, round__deadline=1, digest_every=5, probe__directions=2)
    coordinator, agent = fleet.coordinator(year=1970), fleet.agent("a", year=1970)
    wait_until(lambda: len(fleet.summaries()) >= 5)
    coordinator.kill()
    coordinator.wait()
    kept = fleet.summaries()
    assert len(kept) < 60
    fleet.coordinator()
    wait_until(lambda: len(fleet.summaries()) > len(kept))
    agent.terminate()
    assert agent.wait(SOON) == 0
    assert fleet.agent("a").wait(60) == 0, fleet.log("a")
    summaries = fleet.summaries()
    assert summaries[: len(kept)] == kept
    assert [summary["round"] for summary in summaries] == list(range(1, 61))
    assert fleet.status("a")["digest"] == summaries[-1]["digest"]
    for name in ("a", "coordinator"):
        assert len(re.findall("WARNING the clock of this machine says ", fleet.log(name))) == 1
        assert "Traceback" not in fleet.log(name)


# --- disks that are full, read-only or damaged ---

Mount = Callable[..., Path]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mount]:
    """mounted(folder, *arguments): the folder, with something mounted on it until the end of the test."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    made: list[Path] = []

    def mount(folder: Path, *arguments: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
        made.append(folder)
        return folder

    yield mount
    for folder in reversed(made):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    return path


@pytest.mark.root
def test_an_agent_whose_disk_is_full_says_so_and_trains_on_and_saves_when_there_is_room(
    processes: Callable[..., Processes], mounted: Mount
) -> None:
    fleet = processes(rounds=100000, round__goal=1, probe__directions=2)
    state = mounted(fleet.folder / "a/state", "-t", "tmpfs", "-o", "size=2m", "tmpfs")
    fleet.coordinator()
    agent = fleet.agent("a", f"--bundle={fleet.bundle.folder}", "--audit-bytes=0")
    wait_until(lambda: len(fleet.summaries()) >= 3)
    filler = fill(state)
    wait_until(lambda: "No space left on device; training goes on" in fleet.log("a"))
    report, reached = (state / "report").read_bytes(), len(fleet.summaries())
    wait_until(lambda: len(fleet.summaries()) >= reached + 5)
    assert (state / "report").read_bytes() == report
    assert fleet.log("a").count("No space left on device") == 1
    filler.unlink()
    wait_until(lambda: (state / "report").read_bytes() != report)
    agent.terminate()
    assert agent.wait(SOON) == 0
    stopped_at = fleet.status("a")["entry"]
    assert stopped_at >= reached + 5
    fleet.agent("a", f"--bundle={fleet.bundle.folder}", "--audit-bytes=0")
    wait_until(lambda: len(fleet.summaries()) > stopped_at + 2)
    assert "Traceback" not in fleet.log("a")
    assert "corrupt" not in fleet.log("a")
    assert fleet.log("a").count("catching up from entry 0 ") == 0


@pytest.mark.root
def test_a_coordinator_whose_disk_is_full_says_so_loses_nothing_and_goes_on_when_there_is_room(
    processes: Callable[..., Processes], mounted: Mount
) -> None:
    fleet = processes(rounds=40, round__goal=1, digest_every=5, probe__directions=2)
    fleet.store = mounted(fleet.folder / "small", "-t", "tmpfs", "-o", "size=6m", "tmpfs") / "run.sqlite"
    coordinator, agent = fleet.coordinator(), fleet.agent("a")
    wait_until(lambda: len(fleet.summaries()) >= 5)
    filler = fill(fleet.store.parent)
    wait_until(lambda: "database or disk is full; check disk space and permissions" in fleet.log("coordinator"))
    kept = fleet.summaries()
    assert 5 <= len(kept) < 40
    time.sleep(0.5)
    assert fleet.summaries() == kept
    assert coordinator.poll() is None
    store = SqliteStore(fleet.store)
    waiting = store.reports(1, len(kept) + 1)  # there was room for the report, and not for its entry
    store.close()
    assert waiting or "the coordinator cannot write its store; ask again later" in fleet.log("a")
    filler.unlink()
    assert agent.wait(60) == 0, fleet.log("a")
    summaries = fleet.summaries()
    assert summaries[: len(kept)] == kept
    assert [(summary["round"], summary["reports"]) for summary in summaries] == [(number, 1) for number in range(1, 41)]
    assert fleet.status("a")["digest"] == summaries[-1]["digest"]
    assert "Traceback" not in fleet.log("a") + fleet.log("coordinator")


def read_only(mounted: Mount, folder: Path) -> None:
    mounted(folder, "--bind", str(folder))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)


@pytest.mark.root
def test_an_agent_on_a_read_only_state_folder_with_a_name_works_and_warns(processes: Callable[..., Processes], mounted: Mount) -> None:
    fleet = processes(rounds=10, round__goal=1, digest_every=5, probe__directions=2)
    state = fleet.folder / "a/state"
    state.mkdir(parents=True)
    (state / "device_id").write_text("00000000000000ff\n")
    read_only(mounted, state)
    fleet.coordinator()
    agent = fleet.agent("a", f"--bundle={fleet.bundle.folder}", "--audit-bytes=0")
    assert agent.wait(60) == 0, fleet.log("a")
    assert fleet.log("a").count("Read-only file system; training goes on, but after a restart it begins again from the bundle") == 1
    assert fleet.summaries()[-1]["digest"] in fleet.log("a")
    assert [path.name for path in state.iterdir()] == ["device_id"]
    assert "Traceback" not in fleet.log("a")


@pytest.mark.root
def test_an_agent_on_a_read_only_state_folder_without_a_name_is_refused(
    processes: Callable[..., Processes], mounted: Mount, run: Run
) -> None:
    fleet = processes()
    (fleet.folder / "a/state").mkdir(parents=True)
    read_only(mounted, fleet.folder / "a/state")
    done = run("edge-agent", "run", *fleet.agent_flags("a"))
    check(done, "edge-agent", 8, "device_id: Read-only file system; give a folder that can be written with --state")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_a_truncated_store_is_not_served_and_left_as_it_is(share: float, bert_bundle: Bundle, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    with LocalCoordinator(bert_bundle, path, round=Round(1, 1, 30.0)) as coordinator:
        coordinator.call(lambda s: s.join(JoinRequest(PROTOCOL, 1)))
        for _ in range(4):
            coordinator.call(lambda s: s.send_report(answer(s.rounds, 0)))
    content = path.read_bytes()[: int(share * path.stat().st_size)]
    path.write_bytes(content)
    listen = f"--listen=127.0.0.1:{free_port()}"
    done = run("edge-coordinator", "serve", "--insecure-loopback", f"--bundle={bert_bundle.folder}", "--store=run.sqlite", listen)
    check(done, "edge-coordinator", 8, "run.sqlite is damaged", "it is left as it is: restore it from a backup")
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["run.sqlite"]


# --- mistakes: exit code, and one line ---


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(program, *arguments, **variables): the command, in an empty folder."""

    def call(program: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        place = {"cwd": tmp_path, "env": os.environ | variables}
        return subprocess.run(command(program, *arguments), capture_output=True, text=True, timeout=20, **place)

    return call


def check(done: subprocess.CompletedProcess[str], program: str, code: int, *parts: str, log: bool = False) -> None:
    """One line that begins with the program's name. log: lines of the log may come before it."""
    lines = done.stderr.splitlines()
    assert lines, done
    assert log or len(lines) == 1, done.stderr
    assert lines[-1].startswith(f"{program}: "), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    for part in parts:
        assert part in lines[-1]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("does not exist",)),
        (b"", ("no lines",)),
        (b"{\n", ("a.jsonl:1: not JSON",)),
        (b"\xff\xfe\n", ("a.jsonl:1: not UTF-8",)),
        (b'{"label": 0}\n', ('no "text"',)),
        (b'{"text": "ba", "label": 99}\n', ("unknown label 99 (known: 0..2)",)),
    ],
    ids=["missing", "empty", "no JSON", "no UTF-8", "no text", "unknown label"],
)
def test_data_that_cannot_be_used(content: bytes | None, parts: tuple[str, ...], bert_bundle: Bundle, run: Run, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data/a.jsonl").write_bytes(content)
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite") as coordinator:
        done = run("edge-agent", "run", "--insecure-loopback", "--data=data", f"--coordinator={coordinator.address}")
    check(done, "edge-agent", 4, "data", *parts, log=True)


def damaged(bundle: Bundle, folder: Path, change: str) -> Path:
    path = Path(shutil.copytree(bundle.folder, folder / "bundle"))
    if change == "digest":
        (path / "fp32.safetensors").write_bytes(b"x")
    if change == "missing":
        (path / "tokenizer.json").unlink()
    manifest = json.loads((path / "manifest.json").read_text())
    if change == "version":
        manifest["schema_version"] = 99
    if change == "key":
        manifest["precison"] = manifest.pop("precision")
    if change not in ("digest", "missing"):
        (path / "manifest.json").write_text(json.dumps(manifest) if change != "JSON" else "{")
    return path


DAMAGE = [
    ("digest", "does not have the digest"),
    ("missing", "tokenizer.json is missing"),
    ("version", "schema version 99"),
    ("key", "unknown key 'precison'; did you mean 'precision'?"),
    ("JSON", "cannot be read"),
]


@pytest.mark.parametrize(("change", "part"), DAMAGE)
def test_a_damaged_bundle_is_not_served(change: str, part: str, bert_bundle: Bundle, run: Run, tmp_path: Path) -> None:
    path = damaged(bert_bundle, tmp_path, change)
    check(run("edge-coordinator", "serve", "--insecure-loopback", f"--bundle={path}"), "edge-coordinator", 5, str(path), part)


def test_a_damaged_bundle_is_not_worked_with(bert_bundle: Bundle, run: Run, tmp_path: Path) -> None:
    path = damaged(bert_bundle, tmp_path, "digest")
    write_data(tmp_path / "a.jsonl")
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite") as coordinator:
        place = (f"--bundle={path}", f"--coordinator={coordinator.address}")
        done = run("edge-agent", "run", "--insecure-loopback", "--data=a.jsonl", *place)
    check(done, "edge-agent", 5, "fp32.safetensors does not have the digest", log=True)


def test_a_broken_tokenizer_file_makes_no_bundle(folders: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folders("bert"), tmp_path / "model"))
    (model / "tokenizer.json").write_text("{")
    (tmp_path / "labels.json").write_text(json.dumps(tiny_models.LABELS))
    done = run("edge-coordinator", "bundle", "build", model, "out", "--task=labels.json", "--max-tokens=32")
    check(done, "edge-coordinator", 5, "tokenizer.json")
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "labels.json"}


CONFIGURATIONS = [
    ('nmae = "a"', "unknown key 'nmae'; did you mean 'name'?"),
    ("[round]\ngaol = 3", "unknown key 'round.gaol'; did you mean 'goal'?"),
    ('rounds = "many"', "rounds must be a whole number, not 'many'"),
    ("rounds = ", "is not valid TOML"),
    ("[round]\nminimum = 5", "minimum = 5 must be between 1 and goal = 1"),
]


@pytest.mark.parametrize(("content", "part"), CONFIGURATIONS)
def test_a_wrong_configuration_file(content: str, part: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(content)
    check(run("edge-coordinator", "serve", "--config=run.toml", "--bundle=b"), "edge-coordinator", 3, "run.toml", part)


MISTAKES: list[tuple[str, int, tuple[str, ...], str]] = [
    ("edge-agent run --config none.toml", 3, ("none.toml cannot be read",), "missing configuration"),
    ("edge-agent run --data d --threads many", 3, ("--threads: threads must be a whole number",), "wrong flag"),
    ("edge-agent run", 3, ("key 'data' is missing",), "missing setting"),
    ("edge-agent run --data d --coordinator 10.0.0.1:7600 --insecure-loopback", 3, ("10.0.0.1:7600", "no loopback"), "plaintext abroad"),
    ("edge-agent run --data d", 3, ("edge-agent join TOKEN", "--insecure-loopback"), "not joined"),
    ("edge-agent join nothing", 3, ("that is no token", "edge-coordinator token create"), "no token"),
    ("edge-agent join edge-zo-1.AAAA", 3, ("cut short or altered",), "half a token"),
    ("edge-agent audit", 8, ("holds no record of an agent",), "nothing sent"),
    ("edge-coordinator token create", 3, ("holds no fleet", "edge-coordinator init"), "no fleet"),
    ("edge-coordinator device list --fleet notes.txt", 3, ("notes.txt holds no fleet",), "fleet is none"),
    ("edge-coordinator init --address nowhere", 3, ("is no address that devices can dial", "--address"), "no address"),
    ("edge-agent status", 8, ("holds no status of an agent",), "no agent here"),
    ("edge-coordinator serve --bundle BUNDLE --listen 0.0.0.0:PORT --insecure-loopback", 3, ("no loopback",), "listening abroad"),
    ("edge-coordinator serve --bundle BUNDLE --listen 127.0.0.1:PORT", 3, ("--insecure-loopback",), "plaintext not asked for"),
    ("edge-coordinator serve --bundle none --insecure-loopback", 5, ("none is not a bundle",), "no bundle"),
    ("edge-coordinator serve --bundle BUNDLE --store no/run.sqlite --insecure-loopback", 8, ("no/run.sqlite",), "store nowhere"),
    ("edge-coordinator serve --bundle BUNDLE --store notes.txt --insecure-loopback", 8, ("notes.txt",), "store is none"),
    ("edge-coordinator serve --bundle BUNDLE --log2-levels 50 --insecure-loopback", 3, ("50",), "impossible grid"),
    ("edge-coordinator serve --bundle BUNDLE --probe.log2-eps-body -60 --insecure-loopback", 3, ("-60",), "probe below the lattice"),
    ("edge-coordinator serve --bundle BUNDLE --probe.log2-eps-body 60 --insecure-loopback", 3, ("60",), "probe beyond the lattice"),
    (
        "edge-coordinator serve --bundle BUNDLE --evaluation.validation none.jsonl --insecure-loopback",
        4,
        ("none.jsonl does not exist",),
        "no validation file",
    ),
    (
        "edge-coordinator serve --bundle BUNDLE --evaluation.validation notes.txt --insecure-loopback",
        4,
        ("notes.txt holds no usable example",),
        "validation file is none",
    ),
    (
        "edge-coordinator serve --bundle BUNDLE --evaluation.test pipe --insecure-loopback",
        4,
        ("pipe is no regular file",),
        "test file is a pipe",
    ),
    ("edge-coordinator serve --bundle BUNDLE --store pipe --insecure-loopback", 8, ("pipe is no regular file",), "store is a pipe"),
    ("edge-coordinator serve --bundle BUNDLE --evaluation.threads 257 --insecure-loopback", 3, ("must be 1 to 256",), "many threads"),
    ("edge-coordinator serve --bundle BUNDLE --rounds 99999999999 --insecure-loopback", 3, ("--rounds", "536870912"), "many rounds"),
    ("edge-coordinator runs --store empty.sqlite", 8, ("empty.sqlite is empty", "from a backup"), "store that lost all"),
    ("edge-coordinator bundle build MODEL out --data pipe", 4, ("pipe is no regular file",), "data from a pipe"),
    ("edge-coordinator export --store STORE run out --rank 0", 3, ("--rank 0 must be at least 1",), "no rank to export"),
    ("edge-coordinator status --store .", 8, (". is a folder",), "store is a folder"),
    ("edge-coordinator status --store none.sqlite", 8, ("none.sqlite does not exist",), "no store"),
    ("edge-coordinator runs --store notes.txt", 8, ("notes.txt",), "store is none"),
    ("edge-coordinator status --store STORE other", 8, ("holds no run 'other'; it holds: run",), "no run"),
    ("edge-coordinator export --store STORE other out", 8, ("holds no run 'other'",), "export of no run"),
    ("edge-coordinator export --store STORE run taken", 5, ("taken exists already",), "export over a folder"),
    ("edge-coordinator export --store STORE run out --at 9", 3, ("closed rounds 1 to 0, not 9",), "export of no round"),
    ("edge-coordinator export --store STORE run notes.txt/out", 8, ("notes.txt",), "export below a file"),
    ("edge-coordinator bundle build none out", 5, ("none",), "no model"),
    ("edge-coordinator bundle build MODEL taken", 5, ("taken exists already",), "bundle over a folder"),
    ("edge-coordinator bundle build MODEL notes.txt/out", 8, ("notes.txt",), "bundle below a file"),
    ("edge-coordinator bundle build MODEL out --task none.json", 3, ("none.json cannot be read",), "no task file"),
    ("edge-coordinator bundle build MODEL out --task notes.txt", 3, ("notes.txt is no valid task file",), "task file is none"),
    ("edge-coordinator bundle build MODEL out --task number.json", 3, ("number.json", "table"), "task file is a number"),
    ("edge-coordinator bundle build MODEL out --task one.json", 3, ("one.json", "at least two labels"), "one label"),
    ("edge-coordinator bundle build MODEL out --rank 0", 3, ("--rank 0",), "no rank"),
    ("edge-agent run --data d --precision int4", 3, ("--precision", "'auto', 'fp32', 'w8', 'w4', 'int8'"), "no such precision"),
    ("edge-coordinator bundle inspect none", 5, ("none is not a bundle",), "nothing to inspect"),
    ("edge-coordinator bundle inspect notes.txt", 5, ("notes.txt is a file",), "a file to inspect"),
    ("edge-coordinator bundle pack BUNDLE notes.txt", 5, ("notes.txt exists already",), "archive over a file"),
    ("edge-coordinator bundle pack BUNDLE no/a.tar", 8, ("no/a.tar",), "archive nowhere"),
    ("edge-coordinator bundle unpack notes.txt out", 5, ("notes.txt cannot be unpacked",), "no archive"),
    ("edge-coordinator bundle unpack notes.txt taken", 5, ("taken exists already",), "unpacking over a folder"),
]


@pytest.mark.parametrize(("line", "code", "parts"), [row[:3] for row in MISTAKES], ids=[f"{row[3]}-{row[1]}" for row in MISTAKES])
def test_a_mistake_is_one_line_and_its_exit_code(
    line: str, code: int, parts: tuple[str, ...], bert_bundle: Bundle, folders: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("milk and bread " * 50)
    (tmp_path / "number.json").write_text("3")
    (tmp_path / "one.json").write_text('["one"]')
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty.sqlite").touch()
    os.mkfifo(tmp_path / "pipe")
    store = SqliteStore(tmp_path / "kept.sqlite", create=True)
    store.open_run("run", bert_bundle.folder, bert_bundle.digest)
    store.close()
    places = {"BUNDLE": bert_bundle.folder, "MODEL": folders("bert"), "STORE": "kept.sqlite", "PORT": free_port()}
    for name, place in places.items():
        line = line.replace(name, str(place))
    program, *arguments = line.split()
    check(run(program, *arguments), program, code, *parts)


def test_a_store_without_runs_has_no_status(run: Run, tmp_path: Path) -> None:
    SqliteStore(tmp_path / "edge-zo.sqlite", create=True).close()
    check(run("edge-coordinator", "status"), "edge-coordinator", 3, "holds no runs yet")
    assert "no runs yet" in run("edge-coordinator", "runs").stdout


def test_a_run_begun_with_another_bundle_is_not_gone_on_with(bert_bundle: Bundle, bundles: Bundles, run: Run, tmp_path: Path) -> None:
    SqliteStore(tmp_path / "edge-zo.sqlite", create=True).open_run("run", bert_bundle.folder, bert_bundle.digest)
    other = bundles("bert-classifier").folder
    done = run("edge-coordinator", "serve", "--insecure-loopback", f"--bundle={other}", f"--listen=127.0.0.1:{free_port()}")
    check(done, "edge-coordinator", 8, "begun with another bundle")


def test_a_start_that_fails_binds_no_name_to_a_bundle(bert_bundle: Bundle, run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"--listen=127.0.0.1:{taken.getsockname()[1]}"
        check(
            run("edge-coordinator", "serve", "--insecure-loopback", f"--bundle={bert_bundle.folder}", listen),
            "edge-coordinator",
            6,
            "in use",
        )
    check(run("edge-coordinator", "serve", f"--bundle={bert_bundle.folder}"), "edge-coordinator", 3, "holds no fleet")
    assert not (tmp_path / "edge-zo.sqlite").exists()


def test_variables_name_store_and_fleet_for_every_command(run: Run, tmp_path: Path) -> None:
    SqliteStore(tmp_path / "50 %.sqlite", create=True).open_run("r1", tmp_path, bytes(32))
    variables = {"EDGE_COORDINATOR_STORE": "50 %.sqlite", "EDGE_COORDINATOR_FLEET": "mine"}
    for command in (["status"], ["runs"], ["log", "r1"]):
        assert run("edge-coordinator", *command, **variables).returncode == 0
    assert "[50 %.sqlite]" in run("edge-coordinator", "log", "--help", **variables).stdout
    check(run("edge-coordinator", "token", "list", **variables), "edge-coordinator", 3, "mine holds no fleet")
    check(run("edge-coordinator", "status", "--store=other.sqlite", **variables), "edge-coordinator", 8, "other.sqlite does not exist")


def test_a_run_has_one_coordinator_and_may_be_looked_at_and_taken_back(processes: Callable[..., Processes], run: Run) -> None:
    fleet = processes(rounds=3)
    first = fleet.coordinator()
    again = ["--insecure-loopback", f"--bundle={fleet.bundle.folder}", f"--store={fleet.store}", f"--listen=127.0.0.1:{free_port()}"]
    said = f"run 'run' is served by another coordinator (process {first.pid}); stop it first"
    check(run("edge-coordinator", "serve", *again), "edge-coordinator", 8, said)
    for command in (["status"], ["verify", "run"], ["rollback", "run", "--to=0"]):
        assert run("edge-coordinator", *command, f"--store={fleet.store}").returncode == 0
    first.kill()
    first.wait()
    fleet.coordinator()


def test_a_port_in_use(bert_bundle: Bundle, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("edge-coordinator", "serve", "--insecure-loopback", f"--bundle={bert_bundle.folder}", f"--listen={listen}")
    check(done, "edge-coordinator", 6, listen, "in use")


def test_a_coordinator_that_is_not_there(run: Run, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    write_data(tmp_path / "a.jsonl")
    done = run("edge-agent", "run", "--insecure-loopback", "--data=a.jsonl", "--patience=1", f"--coordinator={address}")
    check(done, "edge-agent", 6, address, "did not answer", log=True)


def test_a_state_folder_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check(run("edge-agent", "run", "--insecure-loopback", "--data=d", "--state=file/state"), "edge-agent", 8, "file/state", "--state")


def test_a_state_folder_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o500)
    if os.access(tmp_path / "state", os.W_OK):
        pytest.skip("this user may write everywhere")
    check(run("edge-agent", "run", "--insecure-loopback", "--data=d", "--state=state"), "edge-agent", 8, "state", "--state")


@pytest.mark.parametrize(
    "line",
    [
        "edge-agent",
        "edge-agent walk",
        "edge-coordinator serve --bundel b",
        "edge-coordinator export",
        "edge-coordinator bundle build m o --precision int8,int4",
    ],
)
def test_wrong_usage(line: str, run: Run) -> None:
    program, *arguments = line.split()
    done = run(program, *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(program)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "edge-zo.sqlite", create=True)
    store.close()
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    runs = command("edge-coordinator", "runs")
    done = subprocess.run(runs, cwd=tmp_path, env=buffered, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=20)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
