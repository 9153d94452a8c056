"""Training alone: it learns, it can be stopped at any probe, and goes on where it stopped."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Bundles

from coordinator.bench import tiny_models
from coordinator.demo import shares
from edge_agent.flash import WriteBudget
from edge_agent.journal import NAME, Contents, read
from edge_agent.overlay import Overlay
from edge_agent.personal import Models
from edge_agent.solo import Solo
from edge_agent.solo_config import SoloConfig
from edge_agent.state import State
from edge_agent.status import read as read_status
from zo.bundle import Bundle
from zo.disk import Disk
from zo.errors import BundleError, ConfigError, DataError, StorageError
from zo.ledger import Entry, genesis
from zo.manifest import Precision
from zo.recipe import Probe, Rate, Split
from zo.replica import Replica
from zo.seeds import ALONE, SEEDS_PER_ROUND

Configure = Callable[..., SoloConfig]


def write_data(path: Path, count: int = 120) -> Path:
    shares.write(path, tiny_models.examples(tiny_models.CLASSIFICATION, count))
    return path


@pytest.fixture
def configure(bert_bundle: Bundle, tmp_path: Path) -> Configure:
    """configure(**settings): small rounds into one state folder."""
    data = write_data(tmp_path / "a.jsonl")

    def make(**settings: Any) -> SoloConfig:
        probe = Probe(directions=2, examples=4)
        given = {"data": str(data), "bundle": str(bert_bundle.folder), "state": str(tmp_path / "state"), "rounds": 6, "probe": probe}
        return SoloConfig(**given | settings)

    return make


def ledger(config: SoloConfig, bundle: Bundle) -> Contents:
    found = read(Path(config.state) / NAME, bundle.digest)
    assert found is not None
    return found


class Probes(threading.Event):
    """Set once it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


# --- what it does ---


def test_it_learns(configure: Configure, bert_bundle: Bundle, tmp_path: Path) -> None:
    config = configure(rounds=150, probe=Probe(directions=16, examples=8), split=Split((2,), (4,)))  # not as this moment's timings have it
    Solo(config, threading.Event()).run()
    found = Models(tmp_path / "state", str(bert_bundle.folder)).evaluate(tmp_path / "a.jsonl")
    assert found["personal"]["loss"] < 0.9 * found["common"]["loss"]


@pytest.mark.parametrize(
    ("how", "most"),
    [
        ({"algorithm": "mezo"}, 2),
        ({}, 2 * 512),
        ({"split": Split((2,), (3,))}, 6),
        ({"split": Split((1,), (4,), joint=True)}, 8),
        ({"split": Split(clean=True)}, 2 * 512),
    ],
    ids=["mezo", "planned", "cut", "joint", "planned, clean allowed"],
)
def test_the_ledger_is_a_ledger(
    how: dict[str, Any], most: int, configure: Configure, bert_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = configure(rounds=12, **how)
    Solo(config, threading.Event()).run()
    found = ledger(config, bert_bundle)
    assert [(entry.number, entry.round, entry.contributors) for entry in found.entries] == [(n, n, 1) for n in range(1, 13)]
    assert [entry.number for entry in found.entries if entry.digest] == [10, 12]
    for entry in found.entries:
        first = ALONE + entry.round * SEEDS_PER_ROUND
        assert all(first <= term.first_seed <= term.first_seed + term.steps.size <= first + most for term in entry.terms)
    replica = Replica(bert_bundle.parameters(), found.opening.genesis, bert_bundle.initial_tensors)
    for entry in found.entries:
        replica.apply(entry)
    assert replica.head == found.head
    last = caplog.messages[-1]
    assert re.fullmatch(
        r"finished after round 12 of 12: held-out loss \d\.\d{4} at the start, \d\.\d{4} after round 12; digest [0-9a-f]{64}", last
    )
    assert last.endswith(replica.parameters.digest().hex())
    status = read_status(Path(config.state))
    assert (status["state"], status["digest"]) == ("finished", replica.parameters.digest().hex())
    assert (status["examples"], status["held_out"]) == (120, 12)


def test_stopped_at_any_probe_it_goes_on_where_it_was(configure: Configure, bert_bundle: Bundle) -> None:
    solo = Solo(configure(), Probes(10**9))
    solo.run()
    looks = 10**9 - solo._stop.looks  # type: ignore[attr-defined]
    before: tuple[Entry, ...] = ()
    for stop in range(0, looks + 40, 3):  # what goes on measures once more
        config = configure(state=f"{configure().state}-stopped")
        Solo(config, Probes(stop)).run()
        found = ledger(config, bert_bundle).entries
        assert found[: len(before)] == before
        before = found
    assert len(before) == 6
    last = before[-1]
    expected = bert_bundle.parameters()
    Overlay.of(before).add(expected)
    assert last.digest == expected.digest()


WAYS = {
    "planned": {},
    "cut": {"split": Split((2,), (5,))},
    "joint": {"split": Split((1,), (3,), joint=True)},
    "mezo": {"algorithm": "mezo"},
    "clean": {"split": Split((1, 2), (2, 2), clean=True)},
}


@pytest.mark.parametrize(
    ("before", "after"),
    [("cut", "cut"), ("joint", "joint"), ("planned", "planned"), ("mezo", "cut"), ("cut", "planned"), ("clean", "joint")],
)
def test_it_goes_on_where_it_was_however_parts_are_tried_now(before: str, after: str, configure: Configure, bert_bundle: Bundle) -> None:
    Solo(configure(rounds=3, **WAYS[before]), threading.Event()).run()
    first = ledger(configure(), bert_bundle)
    Solo(configure(rounds=7, **WAYS[after]), threading.Event()).run()
    second = ledger(configure(), bert_bundle)
    assert (second.opening, second.entries[:3], len(second.entries)) == (first.opening, first.entries, 7)
    assert all(entry.terms for entry in second.entries)
    expected = bert_bundle.parameters()
    Overlay.of(second.entries).add(expected)
    assert second.entries[-1].digest == expected.digest()


def test_it_says_which_way_is_the_cheapest_and_takes_it(configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    solo = Solo(configure(rounds=1), threading.Event())
    solo.run()
    (told,) = [message for message in caplog.messages if message.startswith("the cheapest way to equal progress:")]
    (starred,) = [line for line in told.splitlines() if line.startswith("*")]
    shape = solo.tree.shape
    assert " ".join(map(str, shape.cuts)) in starred or not shape.cuts
    assert " x ".join(map(str, shape.counts)) in starred
    kept = Solo(configure(rounds=2, split=Split(kept=0)), threading.Event())
    kept.run()
    assert kept.tree.shape.cuts == ()


def test_a_cut_that_the_bundle_has_not_is_refused_by_name(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"cuts = \[3\]: this bundle can be cut before stages 1 to 2"):
        Solo(configure(split=Split((3,), (5,))), threading.Event()).run()


def test_a_longer_ledger_can_be_asked_for(configure: Configure, bert_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Solo(configure(), threading.Event()).run()
    first = ledger(configure(), bert_bundle)
    Solo(configure(), threading.Event()).run()
    assert ledger(configure(), bert_bundle) == first
    assert "going on after round 6" in caplog.text
    Solo(configure(rounds=8), threading.Event()).run()
    second = ledger(configure(), bert_bundle)
    assert (second.opening, second.entries[:6], len(second.entries)) == (first.opening, first.entries, 8)


def test_a_language_model_is_trained_too(configure: Configure, bundles: Bundles, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_models.sentences(30)))
    bundle = bundles("llama-tied")
    config = configure(bundle=str(bundle.folder), data=str(tmp_path / "texts.jsonl"))
    Solo(config, threading.Event()).run()
    assert len(ledger(config, bundle).entries) == 6


@pytest.mark.parametrize("model", ["bert", "llama-tied"])
def test_probes_in_place_leave_no_trace(model: str, configure: Configure, bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles(model, "full")
    config = configure(bundle=str(bundle.folder), state=str(tmp_path / model))
    for stop in range(4, 30, 5):
        Solo(config, Probes(stop)).run()
    Solo(config, threading.Event()).run()
    found = ledger(config, bundle).entries
    expected = bundle.parameters()
    Overlay.of(found).add(expected)
    assert found[-1].digest == expected.digest()


# --- with the fleet ---


def fleet_at(bundle: Bundle, folder: Path, entries: int, changes: tuple[Entry, ...]) -> Replica:
    """The fleet's position in the state folder, as an agent saves it."""
    replica = Replica(bundle.parameters(), genesis(bundle.digest, b"fleet"), bundle.initial_tensors)
    for number in range(1, entries + 1):
        replica.apply(Entry(number, number, 8, changes[number % len(changes)].terms))
    state = State(folder, 1e9)
    assert state.save_position(replica.checkpoint())
    state.close()
    return replica


def test_a_device_is_personal_and_of_the_fleet(configure: Configure, bert_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Solo(configure(state=f"{configure().state}-other"), threading.Event()).run()
    changes = ledger(configure(state=f"{configure().state}-other"), bert_bundle).entries
    state = Path(configure().state)
    fleet = fleet_at(bert_bundle, state, 3, changes)
    Solo(configure(), threading.Event()).run()
    assert "on top of the fleet's entry 3" in caplog.text
    found = ledger(configure(), bert_bundle)
    assert (found.opening.fleet_entry, found.opening.fleet_head) == (3, fleet.head)

    fleet = fleet_at(bert_bundle, state, 5, changes)
    Solo(configure(rounds=9), threading.Event()).run()
    found = ledger(configure(), bert_bundle)
    assert (found.opening.fleet_entry, len(found.entries)) == (3, 9)
    assert "digest stated" not in caplog.text
    Overlay.of(found.entries).add(fleet.parameters)
    assert caplog.messages[-1].endswith(fleet.parameters.digest().hex())
    Overlay.of(found.entries).remove(fleet.parameters)
    position = State(state, 1e9).position()
    assert position is not None
    assert position.digest == fleet.parameters.digest()


# --- what goes wrong ---


class Worsening(Solo):
    """Its model is worse after every round."""

    def _look(self) -> None:
        super()._look()
        self.loss = 1.0 + self.round


def test_a_model_that_became_worse_is_said(configure: Configure, bert_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    config = configure(rounds=5)
    Worsening(config, threading.Event()).run()
    assert "training made the model worse" in caplog.text
    assert len(ledger(config, bert_bundle).entries) == 5


def test_rates_beyond_the_lattice_end_it(configure: Configure, bert_bundle: Bundle) -> None:
    config = configure(rate=Rate(body=1e6, head=1e6))
    with pytest.raises(ConfigError, match=r"round \d cannot be applied .*lower --rate"):
        Solo(config, threading.Event()).run()
    assert read_status(Path(config.state))["state"] == "failed"
    assert len(ledger(config, bert_bundle).entries) < 6


def test_without_held_out_examples_it_says_that_it_cannot_tell(configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Solo(configure(held_out_most=0), threading.Event()).run()
    assert "no examples were held out" in caplog.text
    assert "held-out loss unknown at the start" in caplog.messages[-1]


def test_two_agents_in_one_folder_are_refused(configure: Configure) -> None:
    state = State(Path(configure().state), 1e9)
    with pytest.raises(StorageError, match="another agent works"):
        Solo(configure(), threading.Event())
    state.close()
    Solo(configure(rounds=1), threading.Event()).run()


def test_a_ledger_of_another_bundle_is_refused(configure: Configure, bundles: Bundles) -> None:
    Solo(configure(rounds=1), threading.Event()).run()
    with pytest.raises(StorageError, match=r"another bundle.*--state"):
        Solo(configure(bundle=str(bundles("bert-classifier").folder)), threading.Event()).run()
    Solo(configure(rounds=2), threading.Event()).run()  # the folder is free again


@pytest.mark.parametrize(("settings", "error"), [({"data": "none"}, DataError), ({"bundle": "none"}, BundleError)])
def test_what_is_missing_is_said(settings: dict[str, str], error: type[Exception], configure: Configure) -> None:
    with pytest.raises(error, match="none"):
        Solo(configure(**settings), threading.Event()).run()


@pytest.mark.parametrize(
    "settings",
    [{"rounds": 0}, {"threads": 0}, {"held_out_share": 1.0}, {"held_out_most": -1}, {"clip": 0.0}, {"disk_bytes_per_day": -1.0}],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], configure: Configure) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}|clipped"):
        configure(**settings)


class FullDisk(Disk):
    """Full from the first entry on, until it is told to have room."""

    full = True

    def append(self, path: Path, start: int, content: bytes) -> None:
        if self.full:
            super().append(path, start, content[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(path, start, content)


class Eager(Solo):
    """Writes every round; at the fourth, there is room."""

    SYNC_EVERY = 0.0
    roomy = True

    def _work(self, number: int) -> None:
        if number == 4 and self.roomy:
            self._disk.full = False  # type: ignore[union-attr]
        super()._work(number)


def test_a_disk_that_is_full_for_a_while_costs_nothing(configure: Configure, bert_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    Eager(configure(), threading.Event(), FullDisk()).run()
    assert [message for message in caplog.messages if "No space left" in message] == [
        f"{configure().state}/{NAME}: No space left on device; training goes on, and it is tried again"
    ]
    assert len(ledger(configure(), bert_bundle).entries) == 6


class Cramped(Eager):
    """There never is room."""

    roomy = False


def test_a_disk_that_stays_full_is_an_error_at_the_end(configure: Configure, bert_bundle: Bundle) -> None:
    with pytest.raises(StorageError, match="No space left on device; what was learnt"):
        Cramped(configure(), threading.Event(), FullDisk()).run()
    assert ledger(configure(), bert_bundle).entries == ()
    Solo(configure(), threading.Event()).run()
    assert len(ledger(configure(), bert_bundle).entries) == 6


class Thrifty(Eager):
    """Its write budget is spent."""

    roomy = False

    def _prepare(self) -> None:
        super()._prepare()
        self.journal._budget = WriteBudget(0.0)


class Counting(Disk):
    """Counts what is appended."""

    appended = 0

    def append(self, path: Path, start: int, content: bytes) -> None:
        self.appended += 1
        super().append(path, start, content)


def test_without_a_write_budget_the_ledger_is_written_at_the_end(configure: Configure, bert_bundle: Bundle) -> None:
    disk = Counting()
    Thrifty(configure(), threading.Event(), disk).run()
    assert disk.appended == 1
    assert len(ledger(configure(), bert_bundle).entries) == 6


# --- as a process ---


class Process:
    """`edge-agent train --local` with its log."""

    def __init__(self, config: SoloConfig, folder: Path, rounds: int) -> None:
        place = [f"--data={config.data}", f"--bundle={config.bundle}", f"--state={config.state}", f"--rounds={rounds}"]
        command = [sys.executable, "-m", "edge_agent.cli", "train", "--local", *place, "--probe.directions=2", "--probe.examples=4"]
        self.path = folder / "log"
        with self.path.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log)

    @property
    def log(self) -> str:
        return self.path.read_text()

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 20
        while text not in self.log:
            assert time.monotonic() < until, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.02)


@pytest.fixture
def processes(configure: Configure, tmp_path: Path) -> Iterator[Callable[[int], Process]]:
    started: list[Process] = []

    def start(rounds: int) -> Process:
        started.append(Process(configure(), tmp_path, rounds))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_soon_and_it_goes_on(
    number: int, processes: Callable[[int], Process], configure: Configure, bert_bundle: Bundle
) -> None:
    first = processes(10**6)
    first.wait_for("round 1 of 1000000 begins")
    time.sleep(0.3)
    first.process.send_signal(number)
    assert first.process.wait(5) == 0, first.log
    assert "stopped after round" in first.log
    before = ledger(configure(), bert_bundle).entries
    assert before
    second = processes(len(before) + 5)
    assert second.process.wait(20) == 0, second.log
    assert f"going on after round {len(before)} of" in second.log
    after = ledger(configure(), bert_bundle).entries
    assert (after[: len(before)], len(after)) == (before, len(before) + 5)
    third = processes(1)
    assert third.process.wait(20) == 0, third.log
    assert f"finished after round {len(after)}, and 1 were asked for" in third.log


def test_a_kill_loses_what_was_not_written_and_nothing_else(
    processes: Callable[[int], Process], configure: Configure, bert_bundle: Bundle
) -> None:
    Solo(configure(), threading.Event()).run()
    before = ledger(configure(), bert_bundle).entries
    process = processes(10**6)
    process.wait_for("going on after round 6")
    time.sleep(0.2)
    process.process.kill()
    process.process.wait()
    assert ledger(configure(), bert_bundle).entries[:6] == before
    Solo(configure(rounds=7), threading.Event()).run()
    assert ledger(configure(), bert_bundle).entries[:6] == before


@pytest.mark.parametrize(
    ("line", "code", "part"),
    [
        ("train --data d --bundle b", 2, "--local"),
        ("train --local --data d", 3, "key 'bundle' is missing"),
        ("train --local --data d --bundle b", 5, "b is not a bundle"),
        ("train --local --data d --bundle b --rounds 0", 3, "rounds = 0 must be 1 to 536870912"),
        ("train --local --data d --bundle BUNDLE --probe.log2-eps-body 60", 3, "log2_eps_body = 60"),
        ("train --local --data d --bundle BUNDLE", 4, "d does not exist"),
        ("train --local --data d --bundle BUNDLE --state file/state", 8, "file/state"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(line: str, code: int, part: str, bert_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "edge_agent.cli", *line.replace("BUNDLE", str(bert_bundle.folder)).split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == code, done.stderr
    assert part in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("flags", "used"), [((), "named"), (("--state=flag",), "flag")])
def test_it_works_in_the_folder_that_the_other_commands_look_at(
    flags: tuple[str, ...], used: str, configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    command = [
        sys.executable,
        "-m",
        "edge_agent.cli",
        "train",
        "--local",
        f"--data={config.data}",
        f"--bundle={config.bundle}",
        "--rounds=1",
    ]
    environment = os.environ | {"EDGE_AGENT_STATE": "named"}
    done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True, timeout=20, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / used / "local_ledger").exists()


# --- several bases ---


@pytest.mark.parametrize(("named", "used"), [(None, "int8"), ("fp32", "fp32")])
def test_it_trains_with_the_base_named_or_the_default_one(
    named: Precision | None, used: str, configure: Configure, bundles: Bundles, tmp_path: Path
) -> None:
    bundle = bundles("bert", precision="int8,fp32,w4")
    config = configure(bundle=str(bundle.folder), precision=named)
    solo = Solo(config, threading.Event())
    solo.run()
    assert solo.manifest.precision == read_status(tmp_path / "state")["precision"] == used
    assert solo.rates.log2_eps["body"] == bundle.at(used).manifest.log2_eps("body")
    assert len(ledger(config, bundle).entries) == 6


def test_a_base_that_the_bundle_has_not_is_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="it has fp32"):
        Solo(configure(precision="w8"), threading.Event())
