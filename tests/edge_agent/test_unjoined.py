"""An agent that waits for its device to join a fleet, as real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleets import serving
from systemd_line import environment, heard, listening
from waiting import wait_until

from coordinator.bench import tiny_models
from coordinator.config import Round
from coordinator.demo import shares
from edge_agent import status
from zo.bundle import Bundle


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edge_agent.cli", *map(str, arguments)]


def facts(state: Path) -> dict[str, object]:
    try:
        return json.loads((state / "status.json").read_text())
    except OSError:
        return {}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start(**environment): an agent over `state` that waits to join."""
    shares.write(tmp_path / "data/a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30, 1))
    made: list[subprocess.Popen[str]] = []

    def run(**more: str) -> subprocess.Popen[str]:
        flags = (f"--data={tmp_path / 'data'}", f"--state={tmp_path / 'state'}", "--wait-to-join")
        made.append(subprocess.Popen(command("run", *flags), env=os.environ | more, stderr=subprocess.PIPE, text=True))
        wait_until(lambda: facts(tmp_path / "state").get("state") == "unjoined" or made[-1].poll() is not None)
        return made[-1]

    yield run
    for process in made:
        process.kill()
        process.communicate()


def test_it_waits_and_works_once_the_device_has_joined(
    start: Callable[..., subprocess.Popen[str]], bert_bundle: Bundle, tmp_path: Path
) -> None:
    agent, state = start(), tmp_path / "state"
    found = status.read(state)
    assert status.ill(found | {"at": 0.0}) == ""  # however long ago it said so
    assert f"unjoined: this device has not joined a fleet yet; work begins after: edge-agent join TOKEN --state {state}" in status.told(
        found
    )
    with serving(tmp_path, bert_bundle, rounds=2, round=Round(1, 1, 30.0)) as (fleet, _):
        flags = ("-", f"--state={state}", f"--data={tmp_path / 'data'}")  # with data it would work itself, but one waits already
        token = fleet.create_token(1, 60).text
        done = subprocess.run(command("join", *flags), input=token, text=True, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("\nthe agent that waited for it begins to work\n")
        said = agent.communicate(timeout=60)[1]
    assert agent.returncode == 0
    assert "the run is over: entry 2" in said


def test_meanwhile_systemd_sees_it_ready_and_alive(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    with listening(tmp_path) as line:
        agent = start(**environment(line, WATCHDOG_USEC="400000"))
        assert line.recv(100) == b"READY=1"
        for _ in range(3):
            assert line.recv(1000).startswith(b"WATCHDOG=1\nSTATUS=unjoined: this device has not joined a fleet yet")
        agent.send_signal(signal.SIGHUP)  # settings anew: it begins again
        while not (told := line.recv(1000)).startswith(b"RELOADING=1"):
            assert told.startswith(b"WATCHDOG=1")
        assert line.recv(100) == b"READY=1"
        agent.terminate()
        assert agent.wait(20) == 0
        assert not any(told.startswith("READY=1") for told in heard(line))


def test_without_the_setting_it_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run(command("run", f"--data={tmp_path}", f"--state={tmp_path / 'state'}"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "edge-agent: this device has not joined a fleet: 'edge-agent join TOKEN' does that" in done.stderr


def test_who_does_not_wait_any_more_is_not_counted_on(
    start: Callable[..., subprocess.Popen[str]], bert_bundle: Bundle, tmp_path: Path
) -> None:
    start().kill()
    with serving(tmp_path, bert_bundle) as (fleet, _):
        token = fleet.create_token(1, 60).text
        done = subprocess.run(
            command("join", "-", f"--state={tmp_path / 'state'}"), input=token, text=True, capture_output=True, timeout=60
        )
    assert done.returncode == 0
    assert "start with: edge-agent run --state" in done.stdout
