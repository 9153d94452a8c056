"""Measurements in a process of their own, which this one's memory and imports do not disturb."""

import json
import subprocess
import sys
from typing import Any


def figures(module: str, *arguments: object) -> Any:
    """What `python -m module` prints as its last line, of JSON. CalledProcessError where it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
