"""The coordinator's process."""

import subprocess
import sys


def test_a_coordinator_takes_all_the_connections_that_the_system_allows() -> None:
    code = "import resource as r; kind = r.RLIMIT_NOFILE; hard = r.getrlimit(kind)[1]; r.setrlimit(kind, (64, hard));"
    code += "from coordinator.serve import allow_connections; allow_connections(); print(r.getrlimit(kind) == (hard, hard))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")
