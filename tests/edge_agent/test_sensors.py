"""Sensors are read from the files that boards have; where there are none, there is no value."""

from pathlib import Path

import psutil

from edge_agent import sensors
from edge_agent.sensors import Throttle


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_hottest_thermal_zone_counts(tmp_path: Path) -> None:
    assert sensors.hottest(tmp_path) is None
    for zone, text in enumerate(("41500\n", "67250\n", "-256000\n", "broken")):  # a Jetson gives -256 for what is switched off
        write(tmp_path / f"class/thermal/thermal_zone{zone}/temp", text)
    assert sensors.hottest(tmp_path) == 67.25


def test_throttle_flags_of_a_raspberry_pi_are_read(tmp_path: Path) -> None:
    assert sensors.throttle(tmp_path) is None
    write(tmp_path / "devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    found = sensors.throttle(tmp_path)
    assert found == Throttle(0x50005)
    assert found.told == "too little voltage, throttled"
    assert not Throttle(0x50000)
    assert Throttle(0b1000)


def test_the_machine_that_runs_this_can_be_asked() -> None:
    assert sensors.hottest() is None or -40 < sensors.hottest() < 200  # type: ignore[operator]
    assert sensors.battery() is None or 0 <= sensors.battery().percent <= 100  # type: ignore[union-attr]
    sensors.throttle()


def test_what_others_do_is_what_all_do_less_what_this_process_does() -> None:
    read = sensors.others()
    assert read() >= 0
    until = sum(psutil.Process().cpu_times()[:2]) + 0.2
    while sum(psutil.Process().cpu_times()[:2]) < until:
        pass
    assert 0 <= read() <= 1.5
