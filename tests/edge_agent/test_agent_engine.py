"""The agent's engine keeps a prefix where, and as large as, the owner of the device allows."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bundles
from tiny_walks import batch_of, moved

from edge_agent.config import AgentConfig, PrefixSettings
from edge_agent.engine import PREFIX, engine
from edge_agent.flash import cost
from edge_agent.solo_config import SoloConfig
from edge_agent.state import State
from zo.bundle import Bundle
from zo.config import from_texts
from zo.engine import Engine
from zo.errors import ConfigError

DAILY = 1e6  # bytes a day, of which half may be written at once
MEMORY = AgentConfig("data").prefix.memory


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "state", DAILY)
    yield made
    made.close()


@pytest.fixture
def top_bundle(bundles: Bundles) -> Bundle:
    """BERT of which one block is trained."""
    return bundles("bert", top_blocks=1)


def made(bundle: Bundle, state: State, **prefix: Any) -> Engine:
    return engine(AgentConfig("data", prefix=PrefixSettings(**prefix)), bundle, moved(bundle), state)


def room(engine: Engine) -> np.ndarray | None:
    """Where the engine keeps its prefix, if it does."""
    return engine._prefix._room if engine._prefix else None


def mapped(state: State) -> list[str]:
    """Lines of this process's memory map that are of the state folder's prefix."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if line.endswith(f"{state.folder / PREFIX} (deleted)")]


# --- settings ---


@pytest.mark.parametrize("key", ["memory", "disk"])
@pytest.mark.parametrize("value", ["-1", "-0.001", "-Infinity", "Infinity", "NaN"])
@pytest.mark.parametrize(("kind", "needed"), [(AgentConfig, {"data": "d"}), (SoloConfig, {"data": "d", "bundle": "b"})])
def test_no_room_is_less_than_nothing(key: str, value: str, kind: type, needed: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must be finite, and not negative"):
        PrefixSettings(**{key: float(value.lower())})
    with pytest.raises(ConfigError, match=f"--prefix.{key}|prefix: memory and disk must be finite, and not negative"):
        from_texts(kind, needed | {f"prefix.{key}": value})


@pytest.mark.parametrize(("kind", "needed"), [(AgentConfig, {"data": "d"}), (SoloConfig, {"data": "d", "bundle": "b"})])
def test_settings_are_read_alike_in_a_fleet_and_alone(kind: type, needed: dict[str, str]) -> None:
    assert from_texts(kind, needed).prefix == PrefixSettings()
    given = needed | {"prefix.memory": "0", "prefix.disk": "5e6", "prefix.float16": "true"}
    assert from_texts(kind, given).prefix == PrefixSettings(0.0, 5e6, True)


# --- where it is kept ---


@pytest.mark.parametrize("disk", [0.0, 1e5])
def test_nothing_is_kept_or_written_where_all_is_trained(disk: float, bert_bundle: Bundle, state: State) -> None:
    before = state.budget.written
    assert room(made(bert_bundle, state, disk=disk)) is None
    assert state.budget.written == before


@pytest.mark.parametrize(("settings", "kind", "size"), [
    ({}, np.float32, int(MEMORY)),
    ({"memory": 1000}, np.float32, 1000),
    ({"memory": 1000, "float16": True}, np.float16, 1000),
    ({"disk": 1e5}, np.float32, 100_000),
    ({"disk": 1e5, "float16": True, "memory": 0}, np.float16, 100_000),
])  # fmt: skip
def test_the_room_is_as_large_and_as_exact_as_the_settings_say(
    settings: dict[str, Any], kind: type, size: int, top_bundle: Bundle, state: State
) -> None:
    found = room(made(top_bundle, state, **settings))
    assert found is not None
    assert (found.dtype, found.nbytes) == (kind, size)
    assert isinstance(found, np.memmap) == ("disk" in settings)


def test_no_room_at_all_keeps_nothing(top_bundle: Bundle, state: State) -> None:
    assert room(made(top_bundle, state, memory=0)) is None


def test_a_file_is_within_the_write_budget_and_without_a_name(top_bundle: Bundle, state: State, caplog: pytest.LogCaptureFixture) -> None:
    names, before = set(state.folder.iterdir()), state.budget.written
    keeping = made(top_bundle, state, disk=1e5)
    assert state.budget.written - before == cost(100_000)
    assert set(state.folder.iterdir()) == names
    assert len(mapped(state)) == 1
    del keeping
    assert mapped(state) == []
    assert caplog.records == []


def test_memory_costs_no_write_budget(top_bundle: Bundle, state: State) -> None:
    before = state.budget.written
    made(top_bundle, state)
    assert state.budget.written == before
    assert mapped(state) == []


@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_a_file_beyond_the_write_budget_is_warned_of_and_memory_serves(
    memory: float, top_bundle: Bundle, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    before = state.budget.written
    found = room(made(top_bundle, state, disk=DAILY, memory=memory))
    assert (found is not None and not isinstance(found, np.memmap)) == (memory > 0)
    assert state.budget.written == before
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "prefix.disk = 1000000 is more than may be written now" in caplog.text


def test_a_second_file_may_be_more_than_is_left_for_the_day(top_bundle: Bundle, state: State, caplog: pytest.LogCaptureFixture) -> None:
    one, two = (room(made(top_bundle, state, disk=3e5)) for _ in range(2))
    assert isinstance(one, np.memmap)
    assert not isinstance(two, np.memmap)
    assert "more than may be written now" in caplog.text


def test_a_disk_without_room_is_warned_of_and_memory_serves(top_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = State(tmp_path / "large", 2.0**62)
    found = room(made(top_bundle, state, disk=2.0**60))
    state.close()
    assert found is not None
    assert not isinstance(found, np.memmap)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{state.folder / PREFIX}: " in caplog.text
    assert not (state.folder / PREFIX).exists()


def test_a_name_that_is_taken_by_a_folder_is_warned_of_and_memory_serves(
    top_bundle: Bundle, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    (state.folder / PREFIX).mkdir()
    found = room(made(top_bundle, state, disk=1e5))
    assert found is not None
    assert not isinstance(found, np.memmap)
    assert "Is a directory; outputs of the untrained stages are kept in memory" in caplog.text


# --- and what comes of it ---


@pytest.mark.parametrize("settings", [{}, {"disk": 1e5}, {"memory": 0}], ids=["memory", "disk", "nothing"])
def test_losses_are_the_same_wherever_it_is_kept(settings: dict[str, Any], top_bundle: Bundle, state: State) -> None:
    batch, keeping = batch_of(top_bundle), made(top_bundle, state, **settings)
    expected = Engine(top_bundle, moved(top_bundle)).loss(batch)
    for _ in range(2):
        assert keeping.loss(batch) == pytest.approx(expected, abs=1e-6)
