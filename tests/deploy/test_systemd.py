"""The units under a real systemd: installed, watched, reloaded, limited, confined, removed; and they train."""

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from booted import Booted
from fleets import serving
from local_coordinator import LocalCoordinator
from machine import ROOT, lacks

from coordinator.bench import tiny_models
from coordinator.config import Round
from coordinator.demo import shares
from zo.address import free_port
from zo.bundle import Bundle

WHY_NOT = lacks("mmdebstrap", "unshare", "nsenter")
pytestmark = [pytest.mark.machine, pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
SETTINGS = "etc/edge-agent/agent.toml"
AGENT, COORDINATOR = "edge-agent.service", "edge-coordinator.service"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A booted Debian with the agent installed: texts at home, a coordinator that nobody answers for, a limit of 300 MB."""
    with Booted(tmp_path_factory.mktemp("system") / "root") as booted:
        texts = booted.folder / "home/pi/texts"
        shares.write(texts / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30, seed=1))
        (booted.folder / "home/pi").chmod(0o700)
        (texts.parent / "secret").write_text("not for the agent")
        booted.do("/source/scripts/install-agent", "--data", "/home/pi/texts", "--memory", "300M")
        yield booted
    shutil.rmtree(booted.folder)


def wait_until(system: Booted, true: Callable[[], bool], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, system.journal()
        time.sleep(0.2)


def settings(system: Booted, port: int) -> str:
    return f'data = "/srv/edge-agent"\ncoordinator = "127.0.0.1:{port}"\ninsecure_loopback = true\n'


@pytest.fixture
def waiting(system: Booted) -> Booted:
    """The agent just started, and no coordinator."""
    (system.folder / SETTINGS).write_text(settings(system, free_port()))
    system.do("systemctl", "restart", AGENT)
    wait_until(system, lambda: system.show(AGENT, "StatusText").startswith("unreachable"))
    return system


def test_verify_says_nothing_and_exposure_is_low(system: Booted) -> None:
    install_coordinator(system)
    for unit in (AGENT, COORDINATOR):
        assert system.do("systemd-analyze", "verify", "--man=no", unit) == ""
        print(unit, system.do("systemd-analyze", "security", "--threshold=20", unit).strip().splitlines()[-1])


def install_coordinator(system: Booted) -> None:
    """As docs/install.md does, but with the packages that the agent brought."""
    for name, place in ((COORDINATOR, "etc/systemd/system"), ("edge-coordinator.sysusers", "etc/sysusers.d/edge-coordinator.conf")):
        shutil.copy(ROOT / "deploy" / name, system.folder / place)
    system.do("systemd-sysusers")
    command = system.folder / "opt/edge-coordinator/bin/edge-coordinator"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text('#!/bin/sh\nPYTHONPATH=/opt/edge-agent/lib exec python3 -m coordinator.cli "$@"\n')
    command.chmod(0o755)


def test_as_installed_it_waits_to_be_joined_and_then_works_without_a_hand(system: Booted, bert_bundle: Bundle, tmp_path: Path) -> None:
    system.do("systemctl", "stop", AGENT)
    shutil.copy(ROOT / "deploy/agent.toml", system.folder / SETTINGS)
    system.do("systemctl", "start", AGENT)
    wait_until(system, lambda: system.show(AGENT, "StatusText").startswith("unjoined: this device has not joined a fleet yet"))
    system.do("edge-agent", "status", "--check")
    pid = system.show(AGENT, "MainPID")
    with serving(tmp_path, bert_bundle, rounds=3, round=Round(1, 1, 30.0)) as (fleet, _):
        token = fleet.create_token(1, 60).text
        assert "the agent that waited for it begins to work" in system.do("sh", "-c", f"echo {token} | edge-agent join -")
        wait_until(system, lambda: "the run is over: entry 3" in system.journal())
    wait_until(system, lambda: system.show(AGENT, "ActiveState") == "inactive")
    assert (system.show(AGENT, "Result"), system.show(AGENT, "ExecMainPID")) == ("success", pid)
    identity = system.folder / "var/lib/edge-agent/identity.json"
    assert (identity.stat().st_mode & 0o777, identity.stat().st_uid) == (0o600, int(system.do("id", "-u", "edge-agent")))
    assert "3 times Report" in system.do("edge-agent", "audit")
    identity.unlink()


def test_it_is_up_without_a_coordinator_and_says_what_it_does(waiting: Booted) -> None:
    assert waiting.show(AGENT, "ActiveState") == "active"
    assert waiting.show(AGENT, "UnitFileState") == "enabled"
    assert waiting.show(AGENT, "MemoryMax") == str(300 << 20)
    assert "coordinator 127.0.0.1" in waiting.show(AGENT, "StatusText")
    waiting.do("edge-agent", "status", "--state", "/var/lib/edge-agent", "--check")


def test_it_sees_its_texts_and_nothing_else_of_home_and_owns_its_state(waiting: Booted) -> None:
    pid = waiting.show(AGENT, "MainPID")
    seen = ("nsenter", "-t", pid, "-m", "-r", "-w")
    inside = (*seen, "-S", waiting.do("id", "-u", "edge-agent").strip())
    assert waiting.do(*inside, "cat", "/srv/edge-agent/a.jsonl").count("\n") == 30
    assert waiting.do(*inside, "ls", "/home") == ""
    for path in ("/etc/x", "/srv/edge-agent/x", "/usr/x", "/opt/edge-agent/x"):
        assert "Read-only file system" in waiting.call(*seen, "touch", path).stderr
    assert (waiting.folder / "var/lib/edge-agent").stat().st_mode & 0o777 == 0o700


def test_wrong_settings_are_not_taken_up_and_right_ones_are_without_a_restart(waiting: Booted, bert_bundle: Bundle, tmp_path: Path) -> None:
    pid, toml = waiting.show(AGENT, "MainPID"), waiting.folder / SETTINGS
    toml.write_text(toml.read_text() + "thread = 2\n")
    waiting.do("systemctl", "reload", AGENT)
    wait_until(waiting, lambda: "did you mean 'threads'" in waiting.journal())
    assert (waiting.show(AGENT, "MainPID"), waiting.show(AGENT, "ActiveState")) == (pid, "active")
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", round=Round(1, 1, 30.0), rounds=3) as coordinator:
        toml.write_text(settings(waiting, int(coordinator.address.split(":")[1])))
        waiting.do("systemctl", "reload", AGENT)
        wait_until(waiting, lambda: waiting.show(AGENT, "ActiveState") == "inactive")  # the run is over
        digest = coordinator.call(lambda service: service.rounds.ledger.replica.parameters.digest().hex())
    assert f"the run is over: entry 3, digest {digest}" in waiting.journal()
    assert (waiting.show(AGENT, "Result"), waiting.show(AGENT, "NRestarts"), waiting.show(AGENT, "ExecMainPID")) == ("success", "0", pid)


def low_port() -> int:
    """A free port that takes a privilege to listen on."""
    for port in range(443, 1024):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("none is free")


@pytest.fixture
def coordinator(system: Booted, bert_bundle: Bundle, validation: Path) -> int:
    """The coordinator's unit, to serve a run of four rounds from nothing on this port, as low as 443 is; not started."""
    install_coordinator(system)
    system.do("systemctl", "stop", COORDINATOR)
    port, state, settings_file = low_port(), system.folder / "var/lib/edge-coordinator", system.folder / "etc/edge-coordinator/run.toml"
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(bert_bundle.folder, state / "bundle")
    shutil.copy(validation, state / "validation.jsonl")
    settings_file.parent.mkdir(exist_ok=True)
    lines = ('bundle = "bundle"', f'listen = "127.0.0.1:{port}"', "insecure_loopback = true", "rounds = 4", "held_out_every = 0")
    settings_file.write_text("\n".join((*lines, "[evaluation]", 'validation = "validation.jsonl"', "")))
    return port


def test_both_units_train_and_evaluate(waiting: Booted, coordinator: int) -> None:
    waiting.do("systemctl", "start", COORDINATOR)  # returns when it serves
    wait_until(waiting, lambda: waiting.show(COORDINATOR, "StatusText").startswith("run 'run': round 1 has 0 of 1 reports"))
    (waiting.folder / SETTINGS).write_text(settings(waiting, coordinator))
    waiting.do("systemctl", "restart", AGENT)
    wait_until(waiting, lambda: "the run is over; the best entry" in waiting.journal(COORDINATOR))
    wait_until(waiting, lambda: "the run is over: entry 4" in waiting.journal())
    wait_until(waiting, lambda: waiting.show(COORDINATOR, "StatusText") == "run 'run': the run is over")
    waiting.do("systemctl", "stop", COORDINATOR)
    assert waiting.show(COORDINATOR, "Result") == "success"


def test_the_watchdog_ends_a_coordinator_that_hangs_and_leaves_one_that_waits(system: Booted, coordinator: int) -> None:
    extra = system.folder / f"etc/systemd/system/{COORDINATOR}.d/zz.conf"
    extra.parent.mkdir(exist_ok=True)
    extra.write_text("[Service]\nRestartSec=100ms\nWatchdogSec=4\n")
    system.do("systemctl", "daemon-reload")
    system.do("systemctl", "start", COORDINATOR)
    time.sleep(8)
    assert (system.show(COORDINATOR, "NRestarts"), system.show(COORDINATOR, "ActiveState")) == ("0", "active")
    first = system.show(COORDINATOR, "MainPID")
    system.do("kill", "-STOP", first)
    wait_until(system, lambda: system.show(COORDINATOR, "NRestarts") == "1" and system.show(COORDINATOR, "ActiveState") == "active")
    assert system.show(COORDINATOR, "MainPID") not in ("0", first)
    assert "Watchdog timeout" in system.journal(COORDINATOR)
    assert "Fatal Python error: Aborted" in system.journal(COORDINATOR)  # where it hung
    extra.unlink()
    system.do("systemctl", "daemon-reload")
    system.do("systemctl", "stop", COORDINATOR)


def test_what_only_a_person_can_mend_ends_it(waiting: Booted) -> None:
    (waiting.folder / SETTINGS).write_text("thread = 2\n")
    assert waiting.call("systemctl", "restart", AGENT).returncode
    assert (waiting.show(AGENT, "ActiveState"), waiting.show(AGENT, "ExecMainStatus")) == ("failed", "3")


@pytest.fixture
def hasty(system: Booted) -> Iterator[Callable[[str], None]]:
    """hasty(lines): these lines for the unit, until the test ends; it starts again at once."""
    extra = system.folder / "etc/systemd/system/edge-agent.service.d/zz.conf"

    def change(lines: str) -> None:
        extra.write_text(f"[Service]\nRestartSec=100ms\n{lines}\n")
        system.do("systemctl", "daemon-reload")
        (system.folder / SETTINGS).write_text(settings(system, free_port()))
        system.do("systemctl", "restart", "--no-block", AGENT)

    yield change
    extra.unlink()
    system.do("systemctl", "daemon-reload")


def test_the_watchdog_ends_an_agent_that_hangs_and_leaves_one_that_waits(system: Booted, hasty: Callable[[str], None]) -> None:
    hasty("WatchdogSec=8")
    wait_until(system, lambda: system.show(AGENT, "ActiveState") == "active")
    time.sleep(12)  # much of it in pauses
    assert system.show(AGENT, "NRestarts") == "0"
    system.do("kill", "-STOP", system.show(AGENT, "MainPID"))
    wait_until(system, lambda: system.show(AGENT, "NRestarts") == "1" and system.show(AGENT, "ActiveState") == "active")
    assert "Watchdog timeout" in system.journal()
    assert "Fatal Python error: Aborted" in system.journal()  # where it hung


def test_the_limit_of_memory_holds(system: Booted, hasty: Callable[[str], None]) -> None:
    hasty("MemoryMax=16M")  # less than it needs to start
    wait_until(system, lambda: int(system.show(AGENT, "NRestarts")) >= 2)
    assert "status=9/KILL" in system.journal()  # by the kernel


def test_installing_again_keeps_settings_and_uninstalling_keeps_the_state(waiting: Booted) -> None:
    before = (waiting.folder / SETTINGS).read_text()
    waiting.do("/source/scripts/install-agent")
    assert (waiting.folder / SETTINGS).read_text() == before
    assert waiting.show(AGENT, "MemoryMax") == str(300 << 20)
    assert waiting.show(AGENT, "ActiveState") == "active"
    waiting.do("/source/scripts/install-agent", "--uninstall")
    assert waiting.show(AGENT, "LoadState") == "not-found"
    assert not (waiting.folder / "opt/edge-agent").exists()
    assert (waiting.folder / "var/lib/edge-agent/device_id").exists()
    waiting.do("/source/scripts/install-agent", "--uninstall")
