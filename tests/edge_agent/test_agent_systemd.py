"""What systemd is told, and what its signals do. (tests/deploy/test_systemd.py runs the agent under a real one.)"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.systemd import Systemd

WORKING = {"state": "working", "reason": "round\n7"}
RESTARTS = """
import sys, time
from edge_agent.systemd import Signals, Systemd
from zo.errors import ConfigError

def check():
    if open(sys.argv[1]).read() == "wrong":
        raise ConfigError("wrong")

systemd = Systemd()
signals = Signals(check, systemd)
systemd.ready()
signals.stop.wait(30)
signals.restart()
"""


@pytest.fixture
def line(tmp_path: Path) -> Iterator[socket.socket]:
    """The end that systemd listens at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def heard(line: socket.socket) -> list[str]:
    """All that is waiting there."""
    found = []
    line.setblocking(False)
    while True:
        try:
            found.append(line.recv(4096).decode())
        except BlockingIOError:
            return found


def environment(line: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": line.getsockname()} | more


def test_progress_feeds_the_watchdog_and_says_what_is_done(line: socket.socket) -> None:
    Systemd(environment(line)).progress(WORKING)
    assert heard(line) == ["WATCHDOG=1\nSTATUS=working: round 7"]


def test_progress_is_told_seldom_but_a_new_state_at_once(line: socket.socket) -> None:
    systemd = Systemd(environment(line))
    for number in range(1000):
        systemd.progress({"state": "working", "reason": f"round {number}"})
    systemd.progress({"state": "waiting"})
    assert heard(line) == ["WATCHDOG=1\nSTATUS=working: round 0", "WATCHDOG=1\nSTATUS=waiting"]


def test_a_short_watchdog_is_fed_four_times_in_its_interval(line: socket.socket) -> None:
    systemd = Systemd(environment(line, WATCHDOG_USEC="40000"))
    systemd.progress(WORKING)
    systemd.progress(WORKING)
    time.sleep(0.01)
    systemd.progress(WORKING)
    assert len(heard(line)) == 2


def test_an_abstract_socket_is_one_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0edge-zo-test-{os.getpid()}")
        listening.settimeout(20)
        Systemd({"NOTIFY_SOCKET": f"@edge-zo-test-{os.getpid()}"}).ready()
        assert listening.recv(100) == b"READY=1"


def test_without_systemd_or_with_one_that_went_away_nothing_happens(tmp_path: Path) -> None:
    for given in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        systemd = Systemd(given)
        systemd.ready()
        systemd.progress(WORKING)
        systemd.reloading()
        assert bool(systemd) == bool(given)


def start(line: socket.socket, settings: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", RESTARTS, str(settings)], env=os.environ | environment(line))
    assert line.recv(100) == b"READY=1"
    return process


def test_a_hangup_starts_the_same_process_again_unless_the_settings_are_wrong(line: socket.socket, tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    settings.write_text("wrong")
    process = start(line, settings)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert heard(line) == []
    line.settimeout(20)
    settings.write_text("right")
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        assert line.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert line.recv(100) == b"READY=1"
    assert process.poll() is None
    process.terminate()
    assert process.wait(20) == 0


@pytest.mark.skipif(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="hangups are ignored here, as under nohup")
def test_a_hangup_without_systemd_ends_the_process() -> None:
    program = (
        "from edge_agent.systemd import Signals, Systemd; Signals(print, Systemd({})).stop.wait(0); import os; os.kill(os.getpid(), 1)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGHUP
