"""A device that follows tiles comes to the signed history and to nothing else, and spares the coordinator."""

import contextlib
import http.server
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from local_coordinator import LocalCoordinator
from test_daemon import PAIR, ROUNDS, Eager, EntriesOnly, advance, digest, ends_equal, has_reported, messages, working
from waiting import wait_until

from coordinator.bench import tiny_models
from coordinator.config import Round, TileSettings
from coordinator.demo import shares
from coordinator.publisher import Publisher
from coordinator.rounds import Rounds
from coordinator.signing import public_bytes
from coordinator.tile_writer import TileWriter
from edge_agent import tile_source
from edge_agent.config import AgentConfig
from edge_agent.daemon import Daemon
from edge_agent.state import State
from zo.address import free_port
from zo.bundle import Bundle
from zo.checkpoint import Checkpoint
from zo.group import Group, Tensor
from zo.ledger import Entry
from zo.parameters import Parameters
from zo.replica import Replica
from zo.terms import Term
from zo.tile_head import SIGNATURE_LINE, Head, read_head
from zo.tiles import HEAD, TILE, Tiles, tile_path

KEY, OTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PUBLIC = public_bytes(KEY)
GENESIS, BUNDLE, OTHER = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
LAST, CHECKPOINT = 2 * TILE + 44, 500
FOLLOWED, FORK = 200, 150  # of the device below, and of those who would lead it astray
DAILY = 1e9
VALUES = np.random.default_rng(0).standard_normal(200).astype(np.float32)


def base() -> dict[str, np.ndarray]:
    return {"w": np.rint(VALUES * 2**20).astype(np.float32) * np.float32(2**-20)}


def replica(genesis: bytes = GENESIS) -> Replica:
    """At the bundle."""
    return Replica(Parameters(3, [Group(0, "body", -20, (Tensor("w", (200,)),))], base()), genesis, base)


@cache
def history(fork_after: int = LAST, genesis: bytes = GENESIS) -> tuple[list[Entry], list[Checkpoint]]:
    """A ledger, and the state after each of its entries, from none on. Two with different `fork_after` part there."""
    here, entries = replica(genesis), []
    states = [here.checkpoint()]
    for number in range(1, LAST + 1):
        steps = np.array([number, 7 if number <= fork_after else 8])
        entries.append(Entry(number, number, 2, (Term((0,), 10 * number, steps),)))
        here.apply(entries[-1])
        states.append(here.checkpoint())
        if number % 50 == 0:  # the state is the same, the identity is that with the digest
            entries[-1] = replace(entries[-1], digest=states[-1].digest)
            here.restore(states[-2])
            here.apply(entries[-1])
            states[-1] = here.checkpoint()
    return entries, states


ENTRIES, STATES = history()


def publish(
    folder: Path,
    last: int = LAST,
    checkpoint: int | None = CHECKPOINT,
    fork_after: int = LAST,
    genesis: bytes = GENESIS,
    key: Ed25519PrivateKey = KEY,
) -> Head:
    """The tiles of a ledger, with a checkpoint at one of its entries."""
    entries, states = history(fork_after, genesis)
    stated = states[checkpoint] if checkpoint is not None and checkpoint <= last else None
    TileWriter(folder, key, genesis, BUNDLE, replica().sizes).publish(
        lambda n, most: entries[n : n + most], last, states[last].head, stated
    )
    return read_head((folder / HEAD).read_bytes(), public_bytes(key))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """places(...): the folder that `publish` with these arguments fills; tests must not change it."""

    @cache
    def place(**arguments: object) -> Path:
        folder = tmp_path_factory.mktemp("tiles")
        publish(folder, **arguments)
        return folder

    return place


class Plain(http.server.SimpleHTTPRequestHandler):
    """Python's own static file server, quiet; notes what is asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of a folder, and what it was asked for so far."""
    asked: list[str] = []
    kind = type("Here", (Plain,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: kind(*args, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


class Device:
    """A state folder and a replica, without a coordinator. saved: the entry whose position it saved when it was stopped."""

    def __init__(self, folder: Path, saved: int = 0, genesis: bytes = GENESIS) -> None:
        self.state, self.replica, self.steps = State(folder, DAILY), replica(genesis), 0
        if saved:
            self.replica.restore(STATES[saved])

    def follow(self, location: object, key: bytes = PUBLIC) -> None:
        tile_source.follow(str(location), key, self.state, self.replica, self._go_on)

    def _go_on(self) -> None:
        self.steps += 1

    def holds(self, entry: int) -> bool:
        """Whether all is as the ledger has it at an entry."""
        wanted = STATES[entry]
        place = (self.replica.entry, self.replica.head, self.replica.parameters.digest())
        return place == (entry, wanted.head, wanted.digest)

    @property
    def everything(self) -> tuple[object, ...]:
        """All that tiles that are refused must not touch."""
        here = self.replica
        return here.entry, here.head, here.parameters.flat(0).tobytes(), here.folding.terms(), self.state.tiles_head()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    """start(saved=0): the device, started again."""
    made: list[Device] = []

    def device(saved: int = 0, **changed: bytes) -> Device:
        for each in made:
            each.state.close()
        made.append(Device(tmp_path / "state", saved, **changed))
        return made[-1]

    yield device
    for each in made:
        each.state.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- which files are taken ---


def test_a_new_device_far_behind_takes_the_checkpoint(places: Callable[..., Path], start: Callable[..., Device]) -> None:
    device = start()
    with served(places()) as (address, asked):
        device.follow(address)
    assert device.holds(LAST)
    assert sorted(asked) == sorted([f"/{HEAD}", f"/checkpoints/{CHECKPOINT}", f"/{tile_path(1)}", f"/{tile_path(2, 44)}"])
    assert device.steps == LAST - CHECKPOINT


def test_a_device_with_a_history_checks_it_all_before_it_jumps(places: Callable[..., Path], start: Callable[..., Device]) -> None:
    device = start(10)
    with served(places()) as (address, asked):
        device.follow(address)
    assert device.holds(LAST)
    jump = asked.index(f"/checkpoints/{CHECKPOINT}")
    assert {f"/{tile_path(0)}", f"/{tile_path(1)}", f"/{tile_path(2, 44)}"} <= set(asked[:jump])
    assert device.steps == LAST - CHECKPOINT


def test_a_device_that_lost_its_position_but_not_its_head_checks_the_whole_way(
    places: Callable[..., Path], start: Callable[..., Device]
) -> None:
    start().state.save_tiles_head(publish_head(places(last=FOLLOWED)))
    device = start()
    with served(places()) as (address, asked):
        device.follow(address)
    assert device.holds(LAST)
    assert f"/{tile_path(0)}" in asked[: asked.index(f"/checkpoints/{CHECKPOINT}")]


def publish_head(folder: Path) -> bytes:
    return (folder / HEAD).read_bytes()


@pytest.mark.parametrize(("behind", "jumps"), [(1, False), (TILE, False), (TILE + 1, True)])
def test_over_a_tile_or_less_the_entries_are_taken(
    behind: int, jumps: bool, places: Callable[..., Path], start: Callable[..., Device]
) -> None:
    device = start(LAST - behind)
    with served(places()) as (address, asked):
        device.follow(address)
    assert device.holds(LAST)
    assert (f"/checkpoints/{CHECKPOINT}" in asked) == jumps
    assert device.steps == (LAST - CHECKPOINT if jumps else behind)


def test_a_checkpoint_that_is_not_further_on_is_not_taken(places: Callable[..., Path], start: Callable[..., Device]) -> None:
    device = start(10)
    with served(places(checkpoint=10)) as (address, asked):
        device.follow(address)
    assert device.holds(LAST)
    assert "/checkpoints/10" not in asked


@pytest.mark.parametrize("saved", [0, 10, LAST - 5, LAST])
def test_a_folder_does_as_well_and_the_head_is_kept(saved: int, places: Callable[..., Path], start: Callable[..., Device]) -> None:
    device = start(saved)
    device.follow(places())
    assert device.holds(LAST)
    assert device.state.tiles_head() == publish_head(places())


def test_a_device_stops_between_entries_when_it_is_told_to(places: Callable[..., Path], start: Callable[..., Device]) -> None:
    class Stop(Exception):
        pass

    device = start(LAST - 20)

    def go_on() -> None:
        if device.replica.entry == LAST - 10:
            raise Stop

    with pytest.raises(Stop):
        tile_source.follow(str(places()), PUBLIC, device.state, device.replica, go_on)
    assert device.holds(LAST - 10)
    assert device.state.tiles_head() == b""


def test_a_device_that_is_ahead_of_the_tiles_stays_where_it_is(places: Callable[..., Path], start: Callable[..., Device]) -> None:
    device = start(FOLLOWED + 30)
    device.follow(places(last=FOLLOWED))
    assert device.holds(FOLLOWED + 30)
    assert device.state.tiles_head() == publish_head(places(last=FOLLOWED))


# --- what must not be followed ---


def unsigned(folder: Path, places: Callable[..., Path]) -> Path:
    shutil.copytree(places(), folder)
    (folder / HEAD).write_bytes(publish_head(folder)[:-SIGNATURE_LINE])
    return folder


def altered(folder: Path, places: Callable[..., Path]) -> Path:
    """A tile of another history under the true head."""
    shutil.copytree(places(), folder)
    shutil.copy(places(fork_after=300) / tile_path(1), folder / tile_path(1))
    return folder


def gone(folder: Path, places: Callable[..., Path]) -> Path:
    shutil.copytree(places(), folder)
    (folder / tile_path(2, 44)).unlink()
    return folder


ASTRAY: dict[str, tuple[Callable[[Path, Callable[..., Path]], Path], str]] = {
    "unsigned": (unsigned, "it is not signed; "),
    "other key": (lambda _, places: places(key=OTHER_KEY), "it is not signed with the key of this run"),
    "other ledger": (lambda _, places: places(genesis=OTHER), "it is of another ledger"),
    "goes back": (lambda _, places: places(last=FOLLOWED - 10), f"it goes back, from entry {FOLLOWED} to {FOLLOWED - 10}"),
    "fork of equal length": (lambda _, places: places(last=FOLLOWED, fork_after=FORK), f"another history led to entry {FOLLOWED}"),
    "longer fork": (lambda _, places: places(last=FOLLOWED + 20, fork_after=FORK), "it forks"),
    "fork that jumps": (lambda _, places: places(fork_after=FORK), "it forks"),
    "altered tile": (altered, "or a tile is altered"),
    "lost tile": (gone, "No such file or directory"),
}


@pytest.mark.parametrize("saved", [FOLLOWED, FOLLOWED - 30, 0], ids=["with its position", "with an older position", "without position"])
@pytest.mark.parametrize("wrong", ASTRAY)
def test_tiles_that_lead_astray_change_nothing_also_after_a_restart(
    wrong: str, saved: int, places: Callable[..., Path], start: Callable[..., Device], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start().follow(places(last=FOLLOWED))
    device = start(saved)
    assert device.state.tiles_head() == publish_head(places(last=FOLLOWED))
    before = device.everything
    make, why = ASTRAY[wrong]
    device.follow(make(tmp_path / "astray", places))
    assert device.everything == before
    assert device.holds(saved)
    (told,) = warnings(caplog)
    assert why in told
    assert told.endswith("; the coordinator is asked instead")
    device.follow(places())
    assert device.holds(LAST)


@pytest.mark.parametrize("wrong", [wrong for wrong in ASTRAY if wrong not in ("goes back", "altered tile", "lost tile")])
def test_tiles_that_lead_astray_change_nothing_in_the_process_that_followed(
    wrong: str, places: Callable[..., Path], start: Callable[..., Device], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = start()
    device.follow(places(last=FOLLOWED))
    assert device.holds(FOLLOWED)
    before = device.everything
    make, why = ASTRAY[wrong]
    with served(make(tmp_path / "astray", places)) as (address, _):
        device.follow(address)
    assert device.everything == before
    assert [why in told for told in warnings(caplog)] == [True]


def test_a_fork_is_found_by_the_position_alone(
    places: Callable[..., Path], start: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    device = start(FOLLOWED)
    before = device.everything
    for last in (FOLLOWED, FOLLOWED + 20, LAST):
        device.follow(places(last=last, fork_after=FORK))
        assert device.everything == before
    assert ["it forks" in told for told in warnings(caplog)] == [True] * 3


def test_a_checkpoint_that_is_damaged_or_gone_changes_nothing(
    places: Callable[..., Path], start: Callable[..., Device], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(places(), folder)
    path, device = folder / f"checkpoints/{CHECKPOINT}", start(10)
    before = device.everything
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    device.follow(folder)
    path.unlink()
    device.follow(folder)
    assert device.everything == before
    assert [why in told for why, told in zip(("is damaged", "No such file"), warnings(caplog), strict=True)] == [True, True]


@pytest.mark.parametrize("saved", [0, 10])
def test_a_checkpoint_that_does_not_lead_to_the_head_is_not_gone_to(
    saved: int, places: Callable[..., Path], start: Callable[..., Device], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, forked = tmp_path / "astray", places(fork_after=FORK)
    shutil.copytree(places(), folder)
    shutil.copy(forked / f"checkpoints/{CHECKPOINT}", folder / f"checkpoints/{CHECKPOINT}")
    stated = read_head(publish_head(forked), PUBLIC).checkpoint
    (folder / HEAD).write_bytes(replace(read_head(publish_head(folder), PUBLIC), checkpoint=stated).signed(KEY))
    device = start(saved)
    before = device.everything
    device.follow(folder)
    assert device.everything == before
    assert ["it forks" in told for told in warnings(caplog)] == [True]


@pytest.mark.parametrize("kind", ["another run", "another key", "torn", "garbage"])
def test_a_kept_head_that_is_not_of_this_run_is_ignored(
    kind: str, places: Callable[..., Path], start: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    kept = {
        "another run": publish_head(places(genesis=OTHER)),
        "another key": publish_head(places(key=OTHER_KEY)),
        "torn": publish_head(places())[:100],
        "garbage": bytes(range(256)),
    }[kind]
    device = start()
    device.state.save_tiles_head(kept)
    device.follow(places(last=FOLLOWED))
    assert device.holds(FOLLOWED)
    assert warnings(caplog) == []
    assert device.state.tiles_head() == publish_head(places(last=FOLLOWED))


def test_a_server_that_is_gone_changes_nothing(
    places: Callable[..., Path], start: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    device = start(10)
    before = device.everything
    with served(places()) as (address, _):
        pass
    device.follow(address)
    assert device.everything == before
    assert warnings(caplog) == [f"{address}/head cannot be read: Connection refused; the coordinator is asked instead"]


# --- a whole agent ---


class Tiled(EntriesOnly):
    """Publishes tiles when it is told to, and offers devices nothing but entries, which it notes."""

    folder: Path

    def __init__(self, rounds: Rounds) -> None:
        super().__init__(rounds)
        config = replace(rounds.config, store=str(rounds.store.path), tiles=TileSettings(str(self.folder)))
        self.publisher = Publisher(config, rounds.store, rounds)
        self._tiles_key = self.publisher.public_key


class Site:
    """A coordinator that publishes tiles, and one agent that follows them."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle, self.folder, self.daemons = bundle, folder, list[Daemon]()
        data = folder / "a.jsonl"
        shares.write(data, tiny_models.examples(tiny_models.CLASSIFICATION, 30))
        self._settings = {"data": str(data), "state": str(folder / "state"), "bundle": str(bundle.folder), "insecure_loopback": True}

    def coordinator(self, tiles: str = "tiles", **changed: object) -> LocalCoordinator:
        kind = type("Here", (Tiled,), {"folder": self.folder / tiles})
        return LocalCoordinator(
            self.bundle, self.folder / "run.sqlite", kind, **{"round": PAIR, "rounds": ROUNDS, "digest_every": 4} | changed
        )

    def agent(self, coordinator: LocalCoordinator, tiles: object) -> Daemon:
        config = AgentConfig(**self._settings, coordinator=coordinator.address, tiles=str(tiles))
        self.daemons.append(Eager(config, threading.Event()))
        return self.daemons[-1]


@pytest.fixture
def site(bert_bundle: Bundle, tmp_path: Path) -> Iterator[Site]:
    made = Site(bert_bundle, tmp_path)
    yield made
    for each in made.daemons:
        each._stop.set()
        each.state.close()


def published(coordinator: LocalCoordinator, entry: int) -> None:
    """The run has come to an entry, and so have the tiles."""
    advance(coordinator, entry)
    coordinator.call(lambda s: s.publisher.publish())


def sent(coordinator: LocalCoordinator) -> list[int]:
    return coordinator.call(lambda s: s.sent)


def test_an_agent_with_tiles_asks_the_coordinator_only_for_what_is_newer(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with site.coordinator() as coordinator, served(site.folder / "tiles") as (address, asked):
        published(coordinator, 7)
        ends_equal(site.agent(coordinator, address), coordinator)
        assert sent(coordinator) == list(range(8, ROUNDS + 1))
        assert coordinator.call(lambda s: s.rounds.store.events(1)) == []
    assert asked == [f"/{HEAD}", f"/{tile_path(0, 7)}"]
    assert len(messages(caplog, f"{address}: entries 1 to 7 of 7")) == 1
    assert warnings(caplog) == []


def test_an_agent_that_comes_back_replays_only_what_it_lacks(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with site.coordinator() as coordinator:
        published(coordinator, 4)
        with working(site.agent(coordinator, site.folder / "tiles")):
            wait_until(lambda: has_reported(coordinator))
        assert sent(coordinator) == []
        published(coordinator, 9)
        ends_equal(site.agent(coordinator, site.folder / "tiles"), coordinator)
        assert sent(coordinator) == [10, 11, 12]
    assert len(messages(caplog, "entries 5 to 9 of 9")) == 1


def test_an_agent_that_comes_after_more_than_a_tile_takes_the_checkpoint(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    end = TILE + 8
    with site.coordinator(rounds=end) as coordinator, served(site.folder / "tiles") as (address, asked):
        published(coordinator, TILE + 2)
        published(coordinator, TILE + 5)
        advance(coordinator, end)
        ends_equal(site.agent(coordinator, address), coordinator, end)
        assert sent(coordinator) == [end - 2, end - 1, end]
    assert asked == [f"/{HEAD}", f"/checkpoints/{TILE + 2}", f"/{tile_path(1, 5)}"]
    assert len(messages(caplog, f"entries {TILE + 3} to {TILE + 5} of {TILE + 5}")) == 1


def test_an_agent_whose_tiles_cannot_be_had_asks_the_coordinator(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with site.coordinator() as coordinator:
        ends_equal(site.agent(coordinator, f"http://127.0.0.1:{free_port()}"), coordinator)
        assert sent(coordinator) == list(range(1, ROUNDS + 1))
    assert len(messages(caplog, "Connection refused; the coordinator is asked instead")) == 1


def test_an_agent_whose_tiles_are_of_another_key_asks_the_coordinator(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with site.coordinator() as coordinator:
        published(coordinator, ROUNDS)
        entries, head, genesis = coordinator.call(lambda s: (s.rounds.store.entries(1), s.rounds.ledger.replica.head, s.rounds.run.genesis))
        writer = TileWriter(site.folder / "other", OTHER_KEY, genesis, site.bundle.digest, {})
        writer.publish(lambda n, most: entries[n : n + most], ROUNDS, head)
        ends_equal(site.agent(coordinator, site.folder / "other"), coordinator)
        assert sent(coordinator) == list(range(1, ROUNDS + 1))
    assert len(messages(caplog, "it is not signed with the key of this run; the coordinator is asked instead")) == 1


def test_an_agent_follows_again_after_the_store_was_restored_and_the_tiles_begun_anew(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with site.coordinator() as coordinator:
        published(coordinator, 3)
    shutil.copy(site.folder / "run.sqlite", site.folder / "backup.sqlite")
    with site.coordinator() as coordinator:
        published(coordinator, 9)
        with working(site.agent(coordinator, site.folder / "tiles")):
            wait_until(lambda: has_reported(coordinator))
    shutil.copy(site.folder / "backup.sqlite", site.folder / "run.sqlite")
    with site.coordinator("tiles2", round=Round(1, 1, 30.0)) as coordinator:
        other = coordinator.answer(0, scalars=np.array([5, 6, 7]))
        coordinator.call(lambda s: s.send_report(other))
        published(coordinator, 7)
        daemon = site.agent(coordinator, site.folder / "tiles2")
        ends_equal(daemon, coordinator)
        assert min(sent(coordinator), default=8) == 8
        key, genesis = coordinator.call(lambda s: (s.publisher.public_key, s.rounds.run.genesis))
    told = warnings(caplog)
    assert "it goes back, from entry 9 to 7; the coordinator is asked instead" in told[0]
    assert "position is not used (entry 9 is not of the coordinator's history)" in told[1]
    assert len(messages(caplog, "entries 1 to 7 of 7")) == 1
    assert Tiles(str(site.folder / "tiles2")).head(key, genesis) == read_head(daemon.state.tiles_head(), key)


def test_a_kept_head_that_the_restored_coordinator_does_not_know_is_forgotten(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with site.coordinator() as coordinator:
        published(coordinator, 3)
    shutil.copy(site.folder / "run.sqlite", site.folder / "backup.sqlite")
    with site.coordinator() as coordinator:
        published(coordinator, 9)
        daemon = site.agent(coordinator, site.folder / "tiles")
        with working(daemon):
            wait_until(lambda: has_reported(coordinator))
    (daemon.state.folder / "position").unlink()
    shutil.copy(site.folder / "backup.sqlite", site.folder / "run.sqlite")
    with site.coordinator("tiles2", round=Round(1, 1, 30.0)) as coordinator:
        published(coordinator, 7)
        ends_equal(site.agent(coordinator, site.folder / "tiles2"), coordinator)
    assert ["it goes back, from entry 9 to 7" in told for told in warnings(caplog)] == [True]
    assert daemon.state.tiles_head() == b""


def test_the_key_of_the_tiles_comes_with_joining_and_without_one_they_are_not_looked_at(
    site: Site, bert_bundle: Bundle, tmp_path: Path
) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", EntriesOnly, round=PAIR, rounds=2) as coordinator:
        with served(tmp_path) as (address, asked):
            ends_equal(site.agent(coordinator, address), coordinator, 2)
        assert site.daemons[0].joined.tiles_key == b""
        assert told_digest(site.daemons[0]) == digest(coordinator)
    assert asked == []


def told_digest(daemon: Daemon) -> str:
    return json.loads((daemon.state.folder / "status.json").read_text())["digest"]
