"""Tiles of a run that is served: never ahead of the ledger, no burden for the run, and enough for a third party to check it."""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_coordinator import answer, settings
from store_faults import FailingSync
from waiting import wait_until

from coordinator import cli
from coordinator.bench import tiny_models
from coordinator.config import Round, RunConfig, TileSettings
from coordinator.demo import shares
from coordinator.publisher import Publisher
from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from zo import config, wire
from zo.address import free_port
from zo.bundle import Bundle
from zo.disk import Disk
from zo.errors import ConfigError, StorageError
from zo.ledger import Tile
from zo.terms import Term
from zo.tile_head import Head
from zo.tiles import HEAD, TILE, Tiles, TilesUnavailable, tile_path

Make = Callable[..., "Counting"]

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
LAST = 80  # entries of the run that real processes serve


class Counting(Publisher):
    """Counts how often it looks at the folder. head: the one that is published."""

    times = 0

    def publish(self) -> None:
        self.times += 1
        super().publish()

    @property
    def rounds(self) -> Rounds:
        return self._rounds

    @property
    def head(self) -> Head:
        return Tiles(self._settings.folder).head(self.public_key, self._rounds.run.genesis)

    def go_on(self, entries: int = 1) -> None:
        """The run goes on."""
        for _ in range(entries):
            self.rounds.accept(answer(self.rounds, 0))
            assert self.rounds.close_if_due()


@pytest.fixture
def make(bert_bundle: Bundle, tmp_path: Path) -> Iterator[Make]:
    """make(disk=None, **settings of the tiles): a publisher over the same store and folder at each call, and its rounds."""
    made: list[Counting] = []

    def publisher(disk: Disk | None = None, **changed: Any) -> Counting:
        wanted = TileSettings(**{"folder": str(tmp_path / "tiles"), "every": 0.0} | changed)
        chosen = settings(bert_bundle, store=str(tmp_path / "run.sqlite"), rounds=10**6, round=Round(1, 1, 30.0), tiles=wanted)
        store = SqliteStore(Path(chosen.store), create=True, disk=disk)
        rounds = Rounds(store, store.open_run("run", bert_bundle.folder, bert_bundle.digest), bert_bundle, chosen)
        assert rounds.enrol(1000) == 0
        made.append(Counting(chosen, store, rounds))
        return made[-1]

    yield publisher
    for each in made:
        each.rounds.store.close()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# --- when, and how far ---


def test_the_folder_is_brought_up_to_the_last_entry_at_intervals(make: Make) -> None:
    publisher = make(every=0.4)
    publisher.publish_when_due()
    began = time.monotonic()
    assert (publisher.head.entries, publisher.times) == (0, 1)
    publisher.go_on(3)
    publisher.publish_when_due()
    assert time.monotonic() - began < 0.3, "too slow a machine to tell"
    assert (publisher.head.entries, publisher.times) == (0, 1)
    time.sleep(max(0.0, 0.42 - (time.monotonic() - began)))
    publisher.publish_when_due()
    assert (publisher.head.entries, publisher.times) == (3, 2)
    assert publisher.head.chain == publisher.rounds.ledger.replica.head


def test_where_nothing_is_new_nothing_is_done(make: Make) -> None:
    publisher = make()
    for _ in range(3):
        publisher.publish_when_due()
    assert publisher.times == 1
    publisher.go_on()
    for _ in range(3):
        publisher.publish_when_due()
    assert (publisher.times, publisher.head.entries) == (2, 1)


def test_all_that_is_published_can_be_followed(make: Make) -> None:
    publisher, rounds = make(), make().rounds
    publisher.go_on(5)
    publisher.publish_when_due()
    source = Tiles(publisher._settings.folder)
    entries = list(source.entries(publisher.head, 0, rounds.run.genesis))
    assert entries == publisher.rounds.store.entries(rounds.run.id)
    assert len(entries) == 5
    assert publisher.head.bundle == rounds.bundle.digest


def test_the_checkpoint_is_renewed_once_a_tile_is_full(make: Make) -> None:
    publisher = make()
    stated = []
    for entry in (1, TILE - 1, TILE, TILE + 1):
        publisher.go_on(entry - publisher.rounds.ledger.entry)
        publisher.publish_when_due()
        stated.append(publisher.head.checkpoint.entry)
        checkpoint = Tiles(publisher._settings.folder).checkpoint(publisher.head)
        assert checkpoint.head == publisher.rounds.store.head(1, checkpoint.entry)[1]
    assert stated == [1, 1, TILE, TILE]
    assert checkpoint.digest != publisher.rounds.bundle.parameters().digest()


def test_an_entry_that_is_not_synced_is_not_published(make: Make) -> None:
    disk = FailingSync()
    publisher = make(disk)
    publisher.go_on(2)
    publisher.publish_when_due()
    disk.failing = True
    publisher.rounds.reports[0] = answer(publisher.rounds, 0)
    with pytest.raises(StorageError, match="cannot be synced"):
        publisher.rounds.close_if_due()
    assert len(SqliteStore(publisher.rounds.store.path).entries(1)) == 3
    publisher.publish_when_due()
    publisher.publish()
    publisher.close()
    assert publisher.head.entries == 2


def test_what_somebody_else_has_appended_is_published_when_it_is_followed(make: Make) -> None:
    publisher = make()
    publisher.go_on(2)
    publisher.publish_when_due()
    other = make()
    other.go_on(2)
    publisher.publish()
    assert publisher.head.entries == 2
    assert publisher.rounds.follow()
    publisher.publish_when_due()
    assert (publisher.head.entries, publisher.head.chain) == (4, other.rounds.ledger.replica.head)


def test_closing_publishes_the_rest_and_stops_handing_out(make: Make) -> None:
    port = free_port()
    publisher = make(every=1e9, listen=f"127.0.0.1:{port}")
    publisher.publish_when_due()
    publisher.go_on(3)
    publisher.publish_when_due()
    source = Tiles(f"http://127.0.0.1:{port}")
    assert source.head(publisher.public_key).entries == 0
    publisher.close()
    assert publisher.head.entries == 3
    with pytest.raises(TilesUnavailable, match="Connection refused"):
        source.head(publisher.public_key)


def test_closing_where_all_is_published_does_nothing_more(make: Make) -> None:
    publisher = make()
    publisher.publish_when_due()
    publisher.close()
    assert publisher.times == 1


# --- restarts ---


def test_a_restart_goes_on_with_key_and_folder(make: Make) -> None:
    first = make()
    first.go_on(TILE + 3)
    first.publish_when_due()
    full = Path(first._settings.folder) / tile_path(0)
    os.utime(full, ns=(1, 1))
    second = make()
    assert second.public_key == first.public_key
    second.go_on(2)
    second.publish_when_due()
    assert (second.head.entries, second.head.chain) == (TILE + 5, second.rounds.ledger.replica.head)
    assert full.stat().st_mtime_ns == 1
    assert len(list(Tiles(second._settings.folder).entries(second.head, TILE + 3, first.rounds.ledger.replica.head, None))) == 2


def test_the_key_lies_beside_the_store_for_its_owner_only(make: Make, tmp_path: Path) -> None:
    make()
    assert (tmp_path / "run.sqlite.tiles-key").stat().st_mode & 0o777 == 0o600


# --- trouble ---


def test_trouble_with_the_folder_is_told_once_and_the_run_goes_on(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "tiles"
    blocked.write_text("in the way")
    publisher = make()
    for _ in range(3):
        publisher.go_on()
        publisher.publish_when_due()
    (told,) = errors(caplog)
    assert told.startswith("tiles cannot be written to ")
    assert "Not a directory" in told
    assert told.endswith("; the run goes on without tiles")
    assert (publisher.times, publisher.rounds.ledger.entry) == (3, 3)
    blocked.unlink()
    publisher.publish_when_due()
    assert publisher.head.entries == 3
    shutil.rmtree(blocked)
    blocked.write_text("again")
    for _ in range(2):
        publisher.go_on()
        publisher.publish_when_due()
    publisher.close()
    assert len(errors(caplog)) == 2
    assert publisher.rounds.ledger.entry == 5


def test_a_folder_that_is_mended_is_written_though_no_entry_came(make: Make, tmp_path: Path) -> None:
    (tmp_path / "tiles").write_text("in the way")
    publisher = make()
    publisher.go_on()
    publisher.publish_when_due()
    (tmp_path / "tiles").unlink()
    publisher.publish_when_due()
    assert publisher.head.entries == 1


def test_a_store_from_an_older_backup_does_not_take_back_what_was_published(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = make()
    before.go_on(2)
    before.rounds.store.close()
    shutil.copy(tmp_path / "run.sqlite", tmp_path / "backup.sqlite")
    ahead = make()
    ahead.go_on(3)
    ahead.publish_when_due()
    head = ahead.head
    ahead.rounds.store.close()
    for name in ("run.sqlite", "run.sqlite-wal", "run.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.sqlite", tmp_path / "run.sqlite")
    restored = make()
    for _ in range(3):
        restored.publish_when_due()
        restored.go_on()
    restored.close()
    assert restored.head == head
    (told,) = errors(caplog)
    assert "choose a new folder" in told
    assert told.endswith("; the run goes on without tiles")
    anew = make(folder=str(tmp_path / "new"))
    anew.publish_when_due()
    assert anew.head.entries == 5


# --- settings ---


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"tiles.listen": "127.0.0.1:7601"}, "listen = '127.0.0.1:7601' needs a folder"),
        ({"tiles.folder": "t", "tiles.every": "-1"}, "every = -1.0 must be a number of seconds, and not negative"),
        ({"tiles.folder": "t", "keep_entries": str(2 * TILE - 1)}, f"keep_entries = {2 * TILE - 1} must be 0, or at least {2 * TILE}"),
    ],
)
def test_settings_that_cannot_be_are_named(given: dict[str, str], part: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(part)):
        config.from_texts(RunConfig, {"bundle": "b"} | given)


def test_the_least_that_may_be_kept_and_nothing_are_allowed_with_tiles() -> None:
    for keep in (0, 2 * TILE):
        found = config.from_texts(RunConfig, {"bundle": "b", "tiles.folder": "t", "keep_entries": str(keep)})
        assert (found.keep_entries, found.tiles.folder) == (keep, "t")
    assert config.from_texts(RunConfig, {"bundle": "b", "keep_entries": "1"}).keep_entries == 1


@pytest.mark.parametrize(
    ("flags", "code", "part"),
    [
        (["--tiles.listen=127.0.0.1:1"], 3, "needs a folder"),
        (["--tiles.folder=tiles", "--keep-entries=10"], 3, "keep_entries = 10 must be 0, or at least"),
        (["--tiles.folder=tiles", "--tiles.listen=here"], 3, "must be address:port"),
    ],
)
def test_a_mistake_in_them_is_one_line(
    flags: list[str], code: int, part: str, bert_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [f"--bundle={bert_bundle.folder}", f"--store={tmp_path / 'run.sqlite'}", "--insecure-loopback"]
    assert cli.main(["serve", *place, *flags]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edge-coordinator: ")]
    assert part in line


# --- real processes ---


class Processes:
    """A coordinator that writes tiles, and agents that follow them, in one folder. They are killed at the end."""

    def __init__(self, bundle: Bundle, folder: Path, *flags: str) -> None:
        self.bundle, self.folder, self.port, tiles = bundle, folder, free_port(), free_port()
        self.address, self._started = f"http://127.0.0.1:{tiles}", list[subprocess.Popen[bytes]]()
        shares.write(folder / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30))
        place = [f"--bundle={bundle.folder}", "--store=run.sqlite", f"--listen=127.0.0.1:{self.port}", "--insecure-loopback"]
        place += ["--tiles.folder=tiles", f"--tiles.listen=127.0.0.1:{tiles}", "--round.goal=1", "--probe.directions=2"]
        self.coordinator = self._start("coordinator", "coordinator.cli", "serve", *place, *flags)
        wait_until(lambda: "serving run" in self.log("coordinator"))
        self.key = re.findall("are signed with the key ([0-9a-f]{64})", self.log("coordinator"))[0]

    def agent(self, name: str) -> int:
        """Runs one to its end; its exit code."""
        place = ["--data=a.jsonl", f"--state={name}-state", f"--coordinator=127.0.0.1:{self.port}", f"--bundle={self.bundle.folder}"]
        return self._start(name, "edge_agent.cli", "run", *place, "--insecure-loopback", f"--tiles={self.address}").wait(60)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def digest(self, name: str) -> str:
        return json.loads((self.folder / f"{name}-state/status.json").read_text())["digest"]

    def head(self, location: str = "") -> Head:
        return Tiles(location or self.address).head(bytes.fromhex(self.key))

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    def _start(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, cwd=self.folder, env=ENVIRONMENT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._started.append(process)
        return process


class Watch:
    """While entered, notes the heads that are published: how far they go, and those that are no state of the ledger."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stop = folder, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.heads, self.ahead = set[int](), list[str]()

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        store = SqliteStore(self._folder / "run.sqlite")
        while not self._stop.wait(0.01):
            with contextlib.suppress(FileNotFoundError):
                text = (self._folder / "tiles" / HEAD).read_text()
                entries = int(re.findall("entries ([0-9]+)", text)[0])
                self.heads.add(entries)
                if store.head(1)[0] < entries or store.head(1, entries)[1].hex() not in text:
                    self.ahead.append(text)
        store.close()


@pytest.fixture(scope="module")
def served(bert_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A run that is over, all of it published, while its coordinator still serves; agents `one` and `two` came one after the other."""
    made = Processes(
        bert_bundle, tmp_path_factory.mktemp("served"), "--digest-every=5", "--tiles.every=0", f"--rounds={LAST}", "--held-out-every=0"
    )
    try:
        with Watch(made.folder) as watch:
            assert [made.agent("one"), made.agent("two")] == [0, 0], made.log("one") + made.log("two")
            wait_until(lambda: made.head().entries == LAST)
        assert watch.ahead == []
        assert len(watch.heads) >= 3
        yield made
    finally:
        made.end()


def test_an_agent_that_comes_late_needs_nothing_but_tiles(served: Processes) -> None:
    assert served.agent("late") == 0
    assert f"{served.address}: entries 1 to {LAST} of {LAST}" in served.log("late")
    assert "catching up from" not in served.log("late")
    assert served.digest("late") == served.digest("one") == served.digest("two") != served.bundle.parameters().digest().hex()


def verify(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What a third party sees, in a folder that holds no store."""
    command = [sys.executable, "-m", "coordinator.cli", "verify", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=30)


def test_a_third_party_verifies_the_run_by_bundle_and_tiles_alone(served: Processes, tmp_path: Path) -> None:
    done = verify(tmp_path, "--tiles", served.address, "--key", served.key, "--bundle", served.bundle.folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    store = SqliteStore(served.folder / "run.sqlite")
    found = json.loads(done.stdout)
    assert found == {
        "tiles": served.address,
        "entries": LAST,
        "compacted": 0,
        "digests": LAST // 5,
        "digest": served.digest("one"),
        "chain": store.head(1)[1].hex(),
    }
    store.close()
    assert list(tmp_path.iterdir()) == []


def tampered(served: Processes, folder: Path) -> Path:
    """A copy of the tiles, in which one step of one entry is another."""
    copy = Path(shutil.copytree(served.folder / "tiles", folder / "tampered"))
    path = copy / tile_path(0, LAST)
    entries = list(wire.decoder(Tile)(path.read_bytes()).entries)
    first = entries[7].terms[0]
    steps = first.steps.copy()
    steps[0] += 1
    entries[7] = dataclasses.replace(entries[7], terms=(Term(first.groups, first.first_seed, steps), *entries[7].terms[1:]))
    path.write_bytes(wire.encode(Tile(tuple(entries))))
    return copy


@pytest.mark.parametrize(
    ("wrong", "code", "part"),
    [
        ("key", 8, "/head is refused: it is not signed with the key of this run"),
        ("tile", 8, "or a tile is altered"),
        ("bundle", 8, "is not the bundle that these tiles were begun with"),
        ("folder", 5, "is not a bundle"),
        ("no hex", 3, "--key 'xyz' must be 64 hexadecimal digits"),
        ("no key", 3, "--tiles needs --bundle FOLDER and --key HEX"),
        ("nowhere", 8, "head cannot be read: Connection refused"),
        ("run", 3, "are verified without a store, so name no run ('one')"),
    ],
)
def test_what_is_not_right_is_said_in_one_line(
    wrong: str, code: int, part: str, served: Processes, bundles: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = {"key": "ab" * 32, "no hex": "xyz"}.get(wrong, served.key)
    source = {"tile": lambda: str(tampered(served, tmp_path)), "nowhere": lambda: f"http://127.0.0.1:{free_port()}"}
    tiles = source.get(wrong, lambda: served.address)()
    bundle = {"bundle": lambda: bundles("bert-classifier").folder, "folder": lambda: tmp_path}.get(wrong, lambda: served.bundle.folder)()
    arguments = ["--tiles", tiles, "--bundle", str(bundle), *(["--key", key] if wrong != "no key" else [])]
    if wrong in ("key", "tile"):  # as a process; the others in this one, which is quicker
        done = verify(tmp_path, *arguments)
        found, lines = done.returncode, done.stderr.splitlines()
        assert done.stdout == ""
    else:
        found, lines = cli.main(["verify", *(["one"] if wrong == "run" else []), *arguments]), capsys.readouterr().err.splitlines()
    assert found == code, lines
    assert len(lines) == 1
    assert lines[0].startswith("edge-coordinator: ")
    assert part in lines[0]


def test_a_coordinator_that_is_told_to_stop_publishes_the_rest(bert_bundle: Bundle, tmp_path: Path) -> None:
    made = Processes(bert_bundle, tmp_path, "--tiles.every=1000", "--rounds=6", "--held-out-every=0")
    try:
        wait_until((tmp_path / "tiles" / HEAD).exists)
        assert made.agent("one") == 0, made.log("one")
        assert made.head().entries < 6
        made.coordinator.send_signal(signal.SIGTERM)
        assert made.coordinator.wait(20) == 0
        assert made.head(str(tmp_path / "tiles")).entries == 6
        with pytest.raises(TilesUnavailable, match="Connection refused"):
            made.head()
    finally:
        made.end()
    assert "Traceback" not in made.log("coordinator") + made.log("one")
