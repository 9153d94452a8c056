"""Debian in a folder, and what the tests of units and images need of this machine."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def lacks(*tools: str) -> str:
    """Why tests that need root and these tools cannot run; empty where they can."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    return "this is not root" if os.geteuid() else f"not installed: {', '.join(missing)}" if missing else ""


def debian(folder: Path, architecture: str, *packages: str) -> Path:
    """Debian 12 with these packages unpacked, not configured: ten seconds, and no emulation."""
    command = ["mmdebstrap", "--quiet", f"--arch={architecture}", "--variant=extract", f"--include={','.join(packages)}"]
    run(*command, "bookworm", folder, MIRROR)
    return folder


def run(*command: object, **options: Any) -> str:
    """Standard output of a command that succeeds; else what it said is shown."""
    found = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert found.returncode == 0, f"{command}: {found.returncode}\n{found.stdout[-4000:]}\n{found.stderr[-4000:]}"
    return found.stdout
