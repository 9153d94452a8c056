"""What systemd is told. (tests/deploy/test_systemd.py runs both services under a real one.)"""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from systemd_line import environment, heard, listening

from zo.systemd import Systemd


@pytest.fixture
def line(tmp_path: Path) -> Iterator[socket.socket]:
    with listening(tmp_path) as made:
        yield made


def test_progress_feeds_the_watchdog_and_says_what_is_done(line: socket.socket) -> None:
    Systemd(environment(line)).progress("working", "round\n7")
    assert heard(line) == ["WATCHDOG=1\nSTATUS=working: round 7"]


def test_progress_is_told_seldom_but_a_new_state_at_once(line: socket.socket) -> None:
    systemd = Systemd(environment(line))
    for number in range(1000):
        systemd.progress("working", f"round {number}")
    systemd.progress("waiting")
    assert heard(line) == ["WATCHDOG=1\nSTATUS=working: round 0", "WATCHDOG=1\nSTATUS=waiting"]


def test_a_short_watchdog_is_fed_four_times_in_its_interval(line: socket.socket) -> None:
    systemd = Systemd(environment(line, WATCHDOG_USEC="40000"))
    systemd.progress("working")
    systemd.progress("working")
    time.sleep(0.01)
    systemd.progress("working")
    assert len(heard(line)) == 2


def test_beginning_reloading_and_ending(line: socket.socket) -> None:
    systemd = Systemd(environment(line))
    systemd.ready()
    systemd.reloading()
    systemd.stopping()
    ready, reloading, stopping = heard(line)
    assert (ready, stopping) == ("READY=1", "STOPPING=1\nSTATUS=stopping")
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert 0 <= now - int(reloading.rpartition("=")[2]) < 60e6


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
        systemd.progress("working", "round 7")
        systemd.reloading()
        systemd.stopping()
        assert bool(systemd) == bool(given)
