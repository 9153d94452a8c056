"""The benchmark of memory tells what was measured, and reads a process's memory where there is one."""

import subprocess
import sys
from typing import Any

import numpy as np

from coordinator.bench import memory
from coordinator.bench.resident import high_water
from zo.memory import process

FOUND: dict[str, Any] = {
    "agent_over_inference": {"fp32": 1.25, "int8": 1.0},
    "peak_mib": {"agent": {"fp32": 250, "int8": 120}, "inference": {"fp32": 200, "int8": 120}},
    "by_max_rows": [
        {"max_rows": 128, "loaded_mib": 90, "peak_mib": 110, "seconds": 12.34},
        {"max_rows": 1536, "loaded_mib": 91, "peak_mib": 180, "seconds": 9.0},
    ],
}


def test_both_tables_hold_every_figure() -> None:
    lines = [line.split() for line in memory.told(FOUND).splitlines()]
    assert lines[1:3] == [["fp32", "250", "200", "1.250"], ["int8", "120", "120", "1.000"]]
    assert lines[3] == []
    assert lines[5] == ["max_rows", "MiB", "loaded", "MiB", "peak", "seconds"]
    assert lines[6:] == [["128", "90", "110", "12.3"], ["1536", "91", "180", "9.0"]]


def test_columns_stand_below_one_another() -> None:
    lines = memory.told(FOUND).splitlines()
    assert len(lines[1]) == len(lines[2])
    assert len(lines[6]) == len(lines[7])


def test_without_rows_there_is_the_first_table_alone_and_a_heading() -> None:
    assert memory.told(FOUND | {"by_max_rows": []}).splitlines() == memory.told(FOUND).splitlines()[:6]


def test_the_peak_of_a_process_is_at_least_what_it_holds_and_grows_with_it() -> None:
    before = high_water()
    assert 0 < process.resident() // 2 <= before
    size = before - process.resident() + (32 << 20)
    held = np.ones(size, np.int8)
    assert high_water() >= before + (16 << 20)
    assert held.sum(dtype=np.int64) == size


def test_of_another_process_the_memory_is_its_own_and_of_one_that_is_gone_none() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as other:
        while not high_water(other.pid):
            pass
        assert high_water(other.pid) < high_water()
        other.communicate("\n")
    assert high_water(other.pid) == 0
