"""`edge-coordinator plan`: the table, the picture, files of devices, and one line for what is wrong."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from local_coordinator import report, settings

from coordinator import plan_command
from coordinator.allocation import Asked, Asking, Base, allocate
from coordinator.bench.random_fleets import manifest_of
from coordinator.cli import main
from coordinator.config import Round
from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from zo.bundle import Bundle
from zo.memory import PUBLISHED
from zo.messages import Profile

FULL = manifest_of("bert-base")


@pytest.fixture
def store(bert_bundle: Bundle, tmp_path: Path) -> Path:
    """Of a run with one round, to which a fast and a slow device have reported."""
    path = tmp_path / "run.sqlite"
    made = SqliteStore(path, create=True)
    run = made.open_run("fleet", bert_bundle.folder, bert_bundle.digest)
    rounds = Rounds(made, run, bert_bundle, settings(bert_bundle, round=Round(2, 2, 30.0)))
    slow = (5 * 10**8,) * 3
    for device, profile in enumerate((Profile(), Profile(0, slow, slow))):
        rounds.enrol(device)
        plan = rounds.work(device, "fp32", profile)
        assert plan is not None
        rounds.accept(report(device, 1, (1,) * plan.root.scalars, plan=plan.id, shape=plan.shape))
    assert rounds.close_if_due()
    made.close()
    return path


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["plan", *map(str, arguments)])
    written = capsys.readouterr()
    return code, written.out + written.err


def listed(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_the_runs_own_devices_are_planned_as_the_rounds_did(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = command(capsys, "fleet", "--store", store, "--json")
    found = json.loads(text)
    assert code == 0
    assert (found["run"], found["count"], found["window"], found["exact"], found["too_small"]) == ("fleet", 3, 1, True, {})
    assert [row["blocks"] for row in found["devices"]] == [[[0, 1, 2]], [[1, 2]]]
    code, text = command(capsys, "fleet", "--store", store)
    assert code == 0
    assert "block  devices 0 to 1\n    2  ##  2\n    1  ##  2\n    0  #.  1\n" in text
    assert "3 of 3" in text
    assert "2 of 3" in text


def test_a_file_of_devices_is_planned_instead(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = listed(tmp_path / "devices.json", {"count": 3}, {"memory_mib": 300, "precision": "fp32"})
    code, text = command(capsys, "fleet", "--store", store, "--devices", file, "--json")
    assert code == 0
    assert [(row["device"], row["memory_mib"]) for row in json.loads(text)["devices"]] == [(0, 0), (1, 0), (2, 0), (3, 300)]
    code, text = command(capsys, "fleet", "--store", store, "--devices", file, "--slack", "0.9", "--json")
    assert sum(len(row["blocks"][0]) for row in json.loads(text)["devices"]) < 9


@pytest.mark.parametrize(
    ("content", "code", "wanted"),
    [
        ("no json", 3, "is no list of devices"),
        ('[{"memory_mb": 3}]', 3, "unknown key 'devices.json[0].memory_mb'; did you mean 'memory_mib'?"),
        ("[" * 100_000, 3, "is no list of devices"),
        ('[{"count": 0}]', 3, "devices.json[0].count = 0 must be at least 1"),
        ('[{"count": 100001}]', 3, "must list from 1 to 100000 devices"),
        ('[{}, {"memory_mib": -1}]', 3, "devices.json[1].memory_mib must be from 0 to"),
        ('[{"stage_ns": [1, 2, -3], "single_ns": [1, 2, 3]}]', 3, "devices.json[0].stage_ns must be from 0 to"),
        ('[{"stage_ns": [1, 2], "single_ns": [1, 2]}]', 3, "each of the bundle's 3 stages, or both be left out"),
        ('[{"stage_ns": [1, 2, 3]}]', 3, "each of the bundle's 3 stages, or both be left out"),
        (f'[{{"bytes_per_second": {10**400}}}]', 3, "devices.json[0].bytes_per_second must be from 0 to"),
        ('[{"precision": "int8"}]', 3, "no base of precision 'int8'"),
        ("[]", 3, "must list from 1 to 100000 devices"),
    ],
)
def test_a_file_that_is_none_gets_one_line(
    content: str, code: int, wanted: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "devices.json"
    file.write_text(content)
    found, text = command(capsys, "fleet", "--store", store, "--devices", file)
    assert (found, text.count("\n")) == (code, 1)
    assert wanted in text


def test_a_file_that_is_not_there_is_told(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "none.json"
    said = f"edge-coordinator: {file} cannot be read: No such file or directory; check the path after --devices\n"
    assert command(capsys, "fleet", "--store", store, "--devices", file) == (3, said)


def test_devices_that_are_too_small_are_named_with_the_code_for_what_does_not_fit(
    bert_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bert_bundle.folder, folder)
    dataclasses.replace(bert_bundle.manifest, model=PUBLISHED["bert-base"]).write(folder)
    path = tmp_path / "run.sqlite"
    made = SqliteStore(path, create=True)
    made.open_run("fleet", folder, Bundle(folder, bert_bundle.manifest).digest)
    made.close()
    code, text = command(capsys, "fleet", "--store", path)
    assert (code, "has not closed a round" in text) == (3, True)
    code, text = command(capsys, "fleet", "--store", path, "--devices", listed(tmp_path / "d.json", {"memory_mib": 90, "count": 2}))
    assert code == 10
    assert "device 0 is too small (one block with base fp32 needs" in text
    assert "device 1 is too small" in text


def test_turns_are_shown_by_the_round_and_large_fleets_in_parts() -> None:
    base = Base(FULL, Asked())
    two = Profile((base.needed(2) >> 20) + 1)
    devices = {place: plan_command.Asking(two) for place in range(3)}
    found = plan_command.described(allocate(devices, FULL, Asked()), devices, FULL, Asked())
    assert found["window"] == 2
    cells = [line[7:10] for line in plan_command.picture(found).splitlines()[1:]]
    assert sorted("".join(cells).replace(".", "")) == ["1"] * 6 + ["2"] * 6
    assert "every block has its turn in 2 rounds" in plan_command.told(found)
    many = {place: plan_command.Asking(Profile()) for place in range(250)}
    found = plan_command.described(allocate(many, FULL, Asked()), many, FULL, Asked())
    assert [line for line in plan_command.picture(found).splitlines() if "devices" in line] == [
        "block  devices 0 to 99",
        "block  devices 100 to 199",
        "block  devices 200 to 249",
    ]


def test_where_blocks_go_round_it_says_so_and_counts_the_longest_round() -> None:
    manifest, asked = dataclasses.replace(FULL, trainable="lora"), Asked()
    base, times = Base(manifest, asked), (10**6,) * len(FULL.stages)
    small = Profile((base.needed(3) >> 20) + 1, times, times)
    devices = {0: Asking(small, "w4"), 1: Asking(Profile(), "w4")}
    found = plan_command.described(allocate(devices, manifest, asked), devices, manifest, asked)
    assert found["moves"]
    assert found["devices"][0]["seconds"] == round(base.seconds(small)[0], 3)
    assert [len(tried) for tried in found["devices"][0]["blocks"]] == [3]
    assert "blocks go round the devices, those where the loss slopes most more often" in plan_command.told(found)
    whole = {0: Asking(Profile(), "w4")}
    assert not plan_command.described(allocate(whole, manifest, asked), whole, manifest, asked)["moves"]
    assert not plan_command.described(allocate(devices, FULL, asked), devices, FULL, asked)["moves"]
