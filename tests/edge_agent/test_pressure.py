"""The limits of both versions of cgroups, the machine and stalls are read as the kernel states them; the smallest limit wins."""

import os
from pathlib import Path

import psutil
import pytest

from edge_agent.guest_config import Memory
from edge_agent.pressure import OWN, RESERVE, RESERVE_LEAST, budget, gauges, groups
from zo.errors import ConfigError

V1_UNLIMITED = "9223372036854771712\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return tmp_path / "proc"


def v1(root: Path, proc: Path, limits: dict[str, str]) -> None:
    """Groups by path, with limits; the process is in the last."""
    for path, limit in limits.items():
        write(root / "memory" / path / "memory.limit_in_bytes", limit)
        write(root / "memory" / path / "memory.usage_in_bytes", "500000000\n")
        write(root / "memory" / path / "memory.stat", "cache 1\ntotal_inactive_file 100000000\ntotal_active_file 50000000\nrss 7\n")
        write(proc / "self/cgroup", f"4:memory:/{path}\n1:cpu:/\n0::/\n")


def v2(root: Path, proc: Path, limits: dict[str, str]) -> None:
    for path, limit in limits.items():
        write(root / path / "memory.max", limit)
        write(root / path / "memory.current", "300000000\n")
        write(root / path / "memory.stat", "anon 1\ninactive_file 100000000\nactive_file 20000000\n")
        write(proc / "self/cgroup", f"0::/{path}\n")


def test_every_limited_group_up_to_the_root_counts_in_version_1(root: Path, proc: Path) -> None:
    v1(root, proc, {"": V1_UNLIMITED, "system": "800000000\n", "system/agent": "400000000\n"})
    found = groups(root, proc)
    assert [(group.folder.name, group.limit) for group in found] == [("agent", 400_000_000), ("system", 800_000_000)]
    assert found[0].used() == 350_000_000  # what the kernel can take back by itself is not counted


def test_every_limited_group_up_to_the_root_counts_in_version_2(root: Path, proc: Path) -> None:
    v2(root, proc, {"system.slice": "600000000\n", "system.slice/edge-agent.service": "max\n"})
    found = groups(root, proc)
    assert [(group.folder.name, group.limit) for group in found] == [("system.slice", 600_000_000)]
    assert found[0].used() == 180_000_000


def test_in_a_container_the_mount_is_the_own_group(root: Path, proc: Path) -> None:
    v1(root, proc, {"": "200000000\n"})
    write(proc / "self/cgroup", "4:memory:/docker/0123\n")
    assert [group.limit for group in groups(root, proc)] == [200_000_000]


def test_without_any_cgroup_there_is_no_group(root: Path, proc: Path) -> None:
    assert groups(root, proc) == []


def test_the_smallest_limit_wins(root: Path, proc: Path) -> None:
    total = 1_000_000_000
    assert budget(Memory("800MB", leave="1%"), total, []) == 800e6
    assert budget(Memory("25%", leave="1%"), total, []) == 250e6
    assert budget(Memory("99%", leave="200MB"), total, []) == 800e6
    v1(root, proc, {"": "100000000\n"})
    found = budget(Memory("800MB"), total, groups(root, proc))
    assert found == 100e6 - max(RESERVE * 100e6, RESERVE_LEAST)


def test_every_gauge_has_its_two_lines(root: Path, proc: Path) -> None:
    v2(root, proc, {"a": "600000000\n"})
    write(proc / "pressure/memory", "some avg10=12.50 avg60=1.00 avg300=0.00 total=9\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=1\n")
    settings = Memory("50%", pressure=10.0)
    lines = {line.name: line for line in (gauge() for gauge in gauges(settings, proc, groups(root, proc))) if line}
    assert lines.keys() == {OWN, "the machine", "stalls for memory", "cgroup a"}
    own, stalls, group = lines[OWN], lines["stalls for memory"], lines["cgroup a"]
    assert own.used == pytest.approx(psutil.Process(os.getpid()).memory_info().rss, rel=0.2)
    assert own.soft == pytest.approx(settings.soft * own.hard)
    assert own.hard == pytest.approx(600e6 * (1 - RESERVE))
    assert (stalls.used, stalls.soft, stalls.hard) == (12.5, 10.0, 40.0)
    assert stalls.told == "stalls for memory: 12 % of 40 %"
    assert (group.used, group.told) == (180_000_000, "cgroup a: 180 MB of 576 MB")
    machine = lines["the machine"]
    assert 0 < machine.used < machine.hard <= psutil.virtual_memory().total


def test_a_machine_without_stalls_has_no_such_line(proc: Path) -> None:
    assert gauges(Memory(), proc, [])[2]() is None


def test_to_leave_all_of_the_machine_free_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"memory.leave = '200GB' leaves nothing of the 8.00 GB of this machine"):
        budget(Memory(leave="200GB"), 8 * 10**9, [])


@pytest.mark.parametrize("changed", [{"budget": "much"}, {"leave": "-1"}, {"soft": 1.0}, {"soft": 0.0}, {"pressure": 0.0}])
def test_an_impossible_budget_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"amount of memory|soft"):
        Memory(**changed)  # type: ignore[arg-type]
