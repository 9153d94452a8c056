"""The benchmarks of memory: what they tell, and a real cgroup where this machine lets one be made."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.bench import budget, equal_memory, fits, prediction
from coordinator.bench.memory_group import ROOT, MemoryGroup
from coordinator.bench.resident import touch
from zo.errors import ConfigError
from zo.memory import process
from zo.memory.methods import METHODS, Work


def test_more_memory_fits_more_and_without_backprop_more_than_with(tmp_path: Path) -> None:
    found = fits.measure(Work(1, 32), tmp_path / "plot.svg")
    assert found["largest_parameters"].keys() == METHODS.keys()
    for sizes in found["largest_parameters"].values():
        assert list(sizes.values()) == sorted(sizes.values())
    times = found["times_backprop_adam"]
    assert set(times[fits.AGAINST].values()) == {1.0}
    assert min(times["MeZO, full"].values()) > 1.5
    assert (tmp_path / "plot.svg").stat().st_size > 1000
    assert "FedSPZO, adapters, w4 base" in fits.told(found)


def test_predictions_are_told_beside_what_was_measured() -> None:
    shapes = [{"predicted": 110e6, "measured": 100e6, "error": 0.1} for _ in prediction.GRID]
    row: dict[str, Any] = {"model": "minilm-l6", "base": "fp32", "imports": 90e6, "hidden": 9.5, "shapes": shapes}
    told = prediction.told({"rows": [row], "median_error": 0.1, "worst_error": 0.1})
    assert "110 / 100 (+10.0%)" in told
    assert told.splitlines()[-1] == "all together: median 10.0%, worst 10.0%"


def test_equal_memory_is_told_with_a_few_points_of_every_trace() -> None:
    trace = [(float(place), place / 10) for place in range(10)]
    rows = {"forward-only": {"blocks": 6, "memory_mb": 50.0, "trace": trace}, "backprop, full, Adam": {"blocks": None}}
    rows["backprop, full, Adam"]["memory_mb_by_blocks"] = {0: 99.6, 1: 150.2}
    told = equal_memory.told({"allowed_mb": 50.0, "rows": rows}).splitlines()
    assert told[1].split()[:3] == ["forward-only", "6", "50.0"]
    assert "0.000 (0 s)" in told[1]
    assert "0.900 (9 s)" in told[1]
    assert "None" in told[2]
    assert told[3].strip() == "needs, by blocks: 0: 100, 1: 150"
    assert told[4] == "backprop was allowed 50 MB beyond imports"


def test_every_page_of_a_mapped_file_can_be_touched(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(bytes(1 << 20))
    mapped = np.memmap(path, np.uint8, "r")
    touch(path)
    assert process.mapped(path) == 1 << 20
    assert mapped.size == 1 << 20


@pytest.mark.root
def test_a_memory_group_kills_what_goes_beyond_it_and_counts_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        with MemoryGroup(64 << 20) as group:
            program = "held = bytearray(256 << 20)"
            code = subprocess.run(group.command(sys.executable, "-c", program), check=False).returncode
            assert (code, group.oom_kills) == (-9, 1)
            inside = subprocess.run(group.command("cat", "/proc/self/cgroup"), check=True, capture_output=True, text=True).stdout
            assert group.folder.name in inside
            assert group.used < 64 << 20
        assert not group.folder.exists()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.root
@pytest.mark.slow
def test_an_agent_shares_a_group_with_a_greedy_neighbour_and_neither_is_killed(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not ((ROOT / "memory").exists() or "memory" in (ROOT / "cgroup.controllers").read_text()):
        pytest.skip("needs root, and a memory cgroup")
    found = budget.measure(80, tmp_path)
    assert not budget.failed(found)
    assert found["oom_kills"] == 0
    assert found["over_budget_minus_micro_batch_mb"] <= 0
    assert found["sheds"] > 0
    assert found["rounds_completed"] == 80
    assert found["digests_equal"]
