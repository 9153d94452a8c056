"""scripts/install-agent into a folder, and what it refuses; the compose file names what there is."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from machine import ROOT, run

from coordinator.config import RunConfig
from edge_agent.config import AgentConfig
from zo.config import settings

INSTALL = ROOT / "scripts/install-agent"
UNIT = "etc/systemd/system/edge-agent.service"


@pytest.mark.machine
@pytest.mark.slow
def test_a_tree_holds_a_unit_that_verify_finds_nothing_in(tmp_path: Path) -> None:
    run(INSTALL, "--root", tmp_path, "--memory", "300M")
    assert (tmp_path / f"{UNIT}.d/memory.conf").read_text() == "[Service]\nMemoryMax=300M\n"
    assert "data = " in (tmp_path / "etc/edge-agent/agent.toml").read_text()
    if shutil.which("systemd-analyze"):
        found = subprocess.run(["systemd-analyze", "verify", "--man=no", tmp_path / UNIT], capture_output=True, text=True)
        assert (found.returncode, found.stdout + found.stderr) == (0, "")
        run("systemd-analyze", "security", "--offline=true", "--threshold=20", tmp_path / UNIT)
    run(INSTALL, "--root", tmp_path, "--uninstall")
    assert not (tmp_path / UNIT).exists()
    assert (tmp_path / "etc/edge-agent/agent.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dat", "x"], "unknown argument --dat"),
        (["--memory"], "--memory needs a value"),
        (["--memory", "much"], "as in 512M or 40%"),
        (["--data", "/nowhere"], "--data /nowhere: there is no such folder"),
        (["--wheel", "/nowhere.whl"], "there is no such file"),
    ],
)
def test_a_mistake_gets_one_line_and_changes_nothing(arguments: list[str], said: str, tmp_path: Path) -> None:
    found = subprocess.run([INSTALL, "--root", tmp_path / "tree", *arguments], capture_output=True, text=True)
    assert found.returncode == 1
    assert said in found.stderr
    assert found.stderr.count("\n") == 1
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize("unit", ["edge-agent", "edge-coordinator"])
def test_exposure_as_shipped(unit: str) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", ROOT / f"deploy/{unit}.service")


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0", "[::]"])
def test_the_coordinators_health_check_dials_where_it_listens(listen: str) -> None:
    if ":" in listen and not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")
    (line,) = re.findall(r"^HEALTHCHECK .* CMD (.*socket.*)$", (ROOT / "Dockerfile.arm64").read_text(), re.MULTILINE)
    _, *arguments = json.loads(line)
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.create_server((listen.strip("[]"), 0), family=family) as server:
        environment = {"EDGE_COORDINATOR_LISTEN": f"{listen}:{server.getsockname()[1]}"}
        assert subprocess.run([sys.executable, *arguments], env=environment).returncode == 0
    assert subprocess.run([sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL).returncode == 1


def test_compose_names_targets_and_settings_that_there_are() -> None:
    compose, dockerfile = (ROOT / "deploy/compose.yaml").read_text(), (ROOT / "Dockerfile.arm64").read_text()
    assert set(re.findall(r"target: (\w+)", compose)) == {"coordinator", "agent"} <= set(re.findall(r"AS (\w+)$", dockerfile, re.MULTILINE))
    known = {
        f"{prefix}_{name.upper().replace('.', '_')}"
        for prefix, kind in (("EDGE_COORDINATOR", RunConfig), ("EDGE_AGENT", AgentConfig))
        for name, _ in settings(kind)
    }
    assert set(re.findall(r"EDGE_[A-Z_]+", compose + dockerfile)) <= known
