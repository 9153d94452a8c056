"""Joules, by the best source there is, which is named."""

from pathlib import Path

import pytest

from edge_agent import energy
from edge_agent.energy import BoardModel, Counter, PowerSensor


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_any_source_there_is_no_meter(tmp_path: Path) -> None:
    assert energy.meter(tmp_path) is None
    write(tmp_path / "firmware/devicetree/base/model", "Some other board\0")
    assert energy.meter(tmp_path) is None


def test_a_counter_counts_over_its_end(tmp_path: Path) -> None:
    file = write(tmp_path / "class/powercap/intel-rapl:0/energy_uj", "9000000")
    write(file.with_name("max_energy_range_uj"), "10000000")
    write(tmp_path / "class/powercap/intel-rapl:0:0/energy_uj", "5")  # a part of the package: counted in it
    found = energy.meter(tmp_path)
    assert isinstance(found, Counter)
    write(file, "9500000")
    assert found.joules() == pytest.approx(0.5)
    write(file, "1000000")
    assert found.joules() == pytest.approx(2.0)
    found.begin()
    assert (found.joules(), found.source) == (0.0, "rapl")


def test_a_power_sensor_is_averaged_over_both_ends() -> None:
    watts, now = [2.0], [0.0]
    sensor = PowerSensor("ina3221", lambda: watts[0], lambda: now[0])
    watts[0], now[0] = 4.0, 10.0
    assert sensor.joules() == 30.0


def test_the_sensors_of_jetsons_and_batteries_are_found(tmp_path: Path) -> None:
    battery = write(tmp_path / "class/power_supply/BAT0/power_now", "7500000")
    found = energy.meter(tmp_path)
    assert isinstance(found, PowerSensor)
    assert (found.source, found._watts()) == ("battery", 7.5)
    assert battery.exists()
    rail = tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    write(rail / "in1_input", "5000")
    write(rail / "curr1_input", "1200")
    found = energy.meter(tmp_path)
    assert isinstance(found, PowerSensor)
    assert (found.source, found._watts()) == ("ina3221", pytest.approx(6.0))


def test_a_board_that_was_published_is_modelled_by_cpu_time(tmp_path: Path) -> None:
    write(tmp_path / "firmware/devicetree/base/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    found = energy.meter(tmp_path)
    assert isinstance(found, BoardModel)
    assert found.source == "model"
    seconds = [1.0]
    model = BoardModel(0.93, lambda: seconds[0])
    seconds[0] = 11.0
    assert model.joules() == pytest.approx(9.3)
