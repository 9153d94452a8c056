"""docs/fleet.md, executed as written: from an empty folder to a trained model, over TLS with certificates on both sides."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.bench import tiny_models
from coordinator.demo import shares
from zo.address import free_port
from zo.bundle import Bundle

PAGE = Path(__file__).parents[1] / "docs/fleet.md"
PORT = "7643"


def commands() -> list[str]:
    """The indented lines of the page, in order."""
    return [line.strip() for line in PAGE.read_text().splitlines() if re.match(r"    \S", line)]


@pytest.fixture
def folder(bert_bundle: Bundle, tmp_path: Path) -> Path:
    """A server and two devices: a bundle, texts, and both commands on the path."""
    shutil.copytree(bert_bundle.folder, tmp_path / "bundle")
    for seed, name in enumerate(("kitchen", "office")):
        shares.write(tmp_path / f"{name}-texts/a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30, seed))
    (tmp_path / "bin").mkdir()
    for name, module in (("edge-agent", "edge_agent.cli"), ("edge-coordinator", "coordinator.cli")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        program.chmod(0o755)
    return tmp_path


def script(lines: list[str]) -> str:
    """The lines for a shell; it waits for the other device as a person would, and stops the coordinator at the end."""
    made = ["set -e", "trap 'kill ${pids[@]} 2>/dev/null; wait || true' EXIT"]
    for line in lines:
        made += [line, "pids+=($!)"] if line.endswith("&") else [line]
        if "--state office" in line:
            made.append("wait ${pids[1]}")
    return "\n".join(made).replace(PORT, str(free_port()))


def test_the_page_works_as_written(folder: Path) -> None:
    lines = commands()
    for word, count in {"init": 1, "token create": 1, "serve": 1, "join": 2, "revoke": 1, "audit": 1, "export": 1}.items():
        assert sum(word in line for line in lines) == count
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(PAGE.parents[1])}
    done = subprocess.run(
        ["bash", "-c", script(lines)], cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("joined the fleet of 127.0.0.1:") == 2
    sent = re.search(r"(\d) times Report, ", done.stdout)
    assert sent, done.stdout
    assert 3 <= int(sent[1]) <= 6  # a device that comes late misses rounds
    assert "finished" in done.stdout
    assert ": revoked" in done.stdout
    assert (folder / "out/model.onnx").exists()
    ended = re.findall(r"the run is over: entry (\d+), digest ([0-9a-f]{64})", done.stderr)
    assert len(ended) == 2
    assert len(set(ended)) == 1
    assert "Traceback" not in done.stderr
