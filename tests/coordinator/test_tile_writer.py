"""Tiles are written so that a crash, a full disk or an old backup never makes a signed history untrue."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from tile_ledger import BUNDLE, CHAINS, GENESIS, LAST, LEDGER, chains, entries

from coordinator.signing import public_bytes, signing_key
from coordinator.tile_writer import PARTIALS, EntriesAfter, TileWriter
from zo.checkpoint import Checkpoint
from zo.disk import Disk
from zo.errors import StorageError
from zo.ledger import Entry
from zo.terms import Term
from zo.tile_head import Head, read_head
from zo.tiles import MAX_TILE, TILE, Tiles

KEY, SIZES = Ed25519PrivateKey.generate(), {0: 1000}


def reading(ledger: list[Entry]) -> EntriesAfter:
    return lambda after, most: ledger[after : after + most]


def publish(folder: Path, last: int, checkpoint_at: int | None = None, ledger: list[Entry] = LEDGER, disk: Disk | None = None) -> None:
    """As a coordinator that has just started does."""
    checkpoint = None if checkpoint_at is None else checkpoint_of(checkpoint_at)
    TileWriter(folder, KEY, GENESIS, BUNDLE, SIZES, disk).publish(reading(ledger), last, chains(ledger)[last], checkpoint)


def checkpoint_of(entry: int) -> Checkpoint:
    return Checkpoint(GENESIS, entry, CHAINS[entry], bytes(32), (Term((0,), 1, np.arange(entry + 1)),))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(folder: Path, last: int, ledger: list[Entry] = LEDGER) -> Head:
    """The folder holds a signed head at `last`, and all that it names."""
    source = Tiles(str(folder))
    head = source.head(public_bytes(KEY), GENESIS)
    assert (head.entries, head.bundle) == (last, BUNDLE)
    assert list(source.entries(head, 0, GENESIS)) == ledger[:last]
    if head.checkpoint:
        source.checkpoint(head)
    return head


@pytest.mark.parametrize("last", [0, 1, TILE - 1, TILE, TILE + 1, LAST])
def test_what_is_published_can_be_read(tmp_path: Path, last: int) -> None:
    publish(tmp_path / "tiles", last)
    assert check(tmp_path / "tiles", last).checkpoint is None


def test_files_lie_where_readers_look_and_nothing_else_does(tmp_path: Path) -> None:
    publish(tmp_path, LAST, 300)
    assert set(content(tmp_path)) == {"head", "entries/000", "entries/001", "entries/002.p/44", "checkpoints/300"}


def test_publishing_the_same_again_touches_no_file(tmp_path: Path) -> None:
    publish(tmp_path, LAST, 300)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for path in tmp_path.rglob("*"):
        os.utime(path, ns=(1, 1))
    publish(tmp_path, LAST, 300)
    publish(tmp_path, LAST)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == dict.fromkeys(before, 1)


def test_a_ledger_that_grows_never_changes_a_tile_and_asks_only_for_what_is_new(tmp_path: Path) -> None:
    writer, seen = TileWriter(tmp_path, KEY, GENESIS, BUNDLE, SIZES), dict[str, bytes]()
    for last in (0, 5, 5, 250, TILE, TILE + 1, 500, LAST):
        asked: list[int] = []

        def after(number: int, most: int, asked: list[int] = asked, known: int = last) -> list[Entry]:
            asked.append(number)
            return LEDGER[number : min(number + most, known)]

        previous = read_head((tmp_path / "head").read_bytes(), public_bytes(KEY)).entries if seen else 0
        writer.publish(after, last, CHAINS[last])
        assert all(number >= previous // TILE * TILE for number in asked)
        assert bool(asked) == (last > previous)
        now = content(tmp_path)
        assert all(seen[name] == now[name] for name in seen.keys() & now.keys() - {"head"})
        seen |= now
        check(tmp_path, last)


def test_a_device_with_the_head_of_a_few_entries_ago_still_finds_its_tiles(tmp_path: Path) -> None:
    writer, heads, source = TileWriter(tmp_path, KEY, GENESIS, BUNDLE, SIZES), [], Tiles(str(tmp_path))
    for last in range(TILE - 6, TILE + 10):
        writer.publish(reading(LEDGER), last, CHAINS[last])
        heads.append(source.head(public_bytes(KEY)))
        oldest = heads[-PARTIALS:][0]
        assert list(source.entries(oldest, 0, GENESIS)) == LEDGER[: oldest.entries]
    assert len(list(tmp_path.glob("entries/*.p/*"))) == PARTIALS
    publish(tmp_path, 2 * TILE)
    assert len(list(tmp_path.glob("entries/*.p/*"))) == PARTIALS
    for last in range(2 * TILE + 1, 2 * TILE + 1 + PARTIALS):
        writer.publish(reading(LEDGER), last, CHAINS[last])
    assert [path.name for path in tmp_path.glob("entries/*.p")] == ["002.p"]


def test_a_settled_tile_that_was_lost_comes_back(tmp_path: Path) -> None:
    publish(tmp_path, LAST)
    before = content(tmp_path)
    shutil.rmtree(tmp_path / "entries")
    publish(tmp_path, LAST)
    assert content(tmp_path) == before


# checkpoints


def test_the_head_states_the_checkpoint_and_what_it_costs(tmp_path: Path) -> None:
    publish(tmp_path, LAST, 300)
    head = check(tmp_path, LAST)
    assert head.checkpoint is not None
    assert Tiles(str(tmp_path)).checkpoint(head) == checkpoint_of(300)
    assert (head.checkpoint.entry, head.checkpoint.signs) == (300, 301 * 1000)


def test_a_new_checkpoint_takes_the_place_of_the_one_before_the_last_and_an_old_one_of_none(tmp_path: Path) -> None:
    stated = []
    for last, checkpoint_at in ((10, None), (20, 15), (30, None), (40, 40), (50, 30), (60, 60), (60, 60), (61, None)):
        publish(tmp_path, last, checkpoint_at)
        checkpoint = check(tmp_path, last).checkpoint
        stated.append(checkpoint and checkpoint.entry)
    assert stated == [None, 15, 15, 40, 40, 60, 60, 60]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["40", "60"]


def test_a_checkpoint_beyond_the_last_entry_is_not_signed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="entry 31 lies beyond entry 30"):
        publish(tmp_path, 30, 31)
    assert content(tmp_path) == {}


# crashes and full disks


class Crash(BaseException):
    """The process dies here."""


class Faulty(Disk):
    """Fails at its n-th call; a write has then been done in part."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.calls, self.at, self.error = 0, at, error

    def write(self, path: Path, content: bytes) -> None:
        self._call(lambda: path.write_bytes(content[: len(content) // 2]))
        super().write(path, content)

    def sync(self, path: Path) -> None:
        self._call()

    def rename(self, old: Path, new: Path) -> None:
        self._call()
        super().rename(old, new)

    def sync_folder(self, folder: Path) -> None:
        self._call()

    def _call(self, first: Callable[[], object] = lambda: None) -> None:
        self.calls += 1
        if self.calls == self.at:
            first()
            raise self.error


def test_whatever_instant_it_dies_at_the_old_or_the_new_is_published_and_the_next_goes_on(tmp_path: Path) -> None:
    start, old, new = tmp_path / "start", TILE - 6, TILE + 10
    publish(start, old, 200)
    shutil.copytree(start, undisturbed := tmp_path / "undisturbed")
    counting = Faulty(0, Crash())
    publish(undisturbed, new, new - 2, disk=counting)
    published = []
    for at in range(1, counting.calls + 1):
        shutil.copytree(start, folder := tmp_path / str(at))
        with pytest.raises(Crash):
            publish(folder, new, new - 2, disk=Faulty(at, Crash()))
        published.append(read_head((folder / "head").read_bytes(), public_bytes(KEY)).entries)
        check(folder, published[-1])
        publish(folder, new, new - 2)
        assert content(folder) == content(undisturbed)
    assert published == sorted(published)
    assert set(published) == {old, new}


def test_a_writer_that_died_before_the_first_head_begins_again(tmp_path: Path) -> None:
    publish(tmp_path / "undisturbed", 270)
    counting = Faulty(0, Crash())
    publish(tmp_path / "counted", 270, disk=counting)
    for at in range(1, counting.calls + 1):
        with pytest.raises(Crash):
            publish(tmp_path / str(at), 270, disk=Faulty(at, Crash()))
        publish(tmp_path / str(at), 270)
        assert content(tmp_path / str(at)) == content(tmp_path / "undisturbed")


def test_what_a_dead_writer_left_of_entries_that_were_lost_with_it_is_replaced(tmp_path: Path) -> None:
    publish(tmp_path, TILE - 6)
    lost, kept = entries(LAST, TILE - 6), LEDGER
    with pytest.raises(Crash):
        publish(tmp_path, 300, ledger=lost, disk=_dies_at_the_head())
    assert (tmp_path / "entries/000").exists()
    assert (tmp_path / "entries/001.p/44").exists()
    publish(tmp_path, TILE + 2, ledger=kept)
    check(tmp_path, TILE + 2)
    assert sorted(os.listdir(tmp_path / "entries/001.p")) == ["2"]
    publish(tmp_path, 300, ledger=kept)
    check(tmp_path, 300)


def test_what_was_never_wholly_written_is_removed(tmp_path: Path) -> None:
    for name in ("entries/000.p/21.new", "checkpoints/15.new"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"half")
    publish(tmp_path, 22, 16)
    assert set(content(tmp_path)) == {"head", "entries/000.p/22", "checkpoints/16"}


def _dies_at_the_head() -> Disk:
    class Dying(Disk):
        def rename(self, old: Path, new: Path) -> None:
            if new.name == "head":
                raise Crash
            super().rename(old, new)

    return Dying()


class Recording(Disk):
    """Knows what a power cut would leave; everything that a head names must be among it before the head is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.synced, self.durable, self.heads = folder, set[int](), set[Path](), 0

    def sync(self, path: Path) -> None:
        super().sync(path)
        self.synced.add(path.stat().st_ino)

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self.durable |= {path for path in folder.iterdir() if path.is_dir() or path.stat().st_ino in self.synced}

    def rename(self, old: Path, new: Path) -> None:
        assert old.stat().st_ino in self.synced
        super().rename(old, new)
        if new.name == "head":
            self.heads += 1
            others = {path for path in self.folder.rglob("*") if path != new}
            assert others <= self.durable
            assert self.folder in self.durable


def test_all_that_a_head_names_is_on_the_disk_before_it(tmp_path: Path) -> None:
    disk = Recording(tmp_path / "tiles")
    for last, checkpoint_at in ((10, None), (TILE + 3, 200), (LAST, None)):
        publish(tmp_path / "tiles", last, checkpoint_at, disk=disk)
    assert disk.heads == 3
    assert tmp_path / "tiles/head" in disk.durable


@pytest.mark.parametrize("at", range(1, 12))
def test_a_full_disk_is_one_clear_line_and_what_was_published_stays(tmp_path: Path, at: int) -> None:
    publish(tmp_path, 250)
    with pytest.raises(
        StorageError, match=rf"^tiles cannot be written to {tmp_path}.*: No space left.*; check disk space and permissions$"
    ):
        publish(tmp_path, 300, 280, disk=Faulty(at, OSError(28, "No space left on device")))
    check(tmp_path, 250)


# what must not be signed


def test_a_store_from_an_old_backup_does_not_sign_a_fork(tmp_path: Path) -> None:
    publish(tmp_path, 300)
    before = content(tmp_path)
    for last, ledger in ((299, LEDGER), (0, LEDGER), (300, entries(LAST, 290)), (310, entries(LAST, 290)), (LAST, entries(LAST, 299))):
        with pytest.raises(StorageError, match=r"published up to entry 300 and the store .*backup, choose a new folder"):
            publish(tmp_path, last, ledger=ledger)
        assert content(tmp_path) == before
    publish(tmp_path, LAST, ledger=LEDGER)


def test_a_folder_of_another_ledger_or_key_is_left_alone(tmp_path: Path) -> None:
    publish(tmp_path, 300)
    before = content(tmp_path)
    with pytest.raises(StorageError, match="head of another ledger; choose another folder"):
        TileWriter(tmp_path, KEY, bytes(32), BUNDLE, SIZES).publish(reading(LEDGER), 300, CHAINS[300])
    with pytest.raises(StorageError, match="not signed with the key of this run; use the key that signed it"):
        TileWriter(tmp_path, Ed25519PrivateKey.generate(), GENESIS, BUNDLE, SIZES).publish(reading(LEDGER), LAST, CHAINS[LAST])
    assert content(tmp_path) == before


@pytest.mark.parametrize("given", [LEDGER[:299], LEDGER[1:], [*LEDGER[:10], LEDGER[11], LEDGER[10], *LEDGER[12:]], []])
def test_a_store_that_does_not_hold_the_entries_signs_nothing(tmp_path: Path, given: list[Entry]) -> None:
    with pytest.raises(StorageError, match=r"the store does not hold entries (1 to 256|257 to 300)"):
        TileWriter(tmp_path, KEY, GENESIS, BUNDLE, SIZES).publish(reading(given), 300, CHAINS[300])
    assert content(tmp_path) == {}


def test_a_tile_that_no_device_would_accept_is_not_published(tmp_path: Path) -> None:
    large = [Entry(1, 1, 1, (Term((0,), 0, np.full(MAX_TILE // 7, 2**50)),))]
    with pytest.raises(StorageError, match=f"devices accept {MAX_TILE}"):
        publish(tmp_path, 1, ledger=large)
    assert content(tmp_path) == {}


# the key


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    old = os.umask(0)
    try:
        made = signing_key(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_bytes(signing_key(path)) == public_bytes(made)
    assert len(public_bytes(made)) == 32
    assert os.listdir(tmp_path) == ["key.pem"]


def test_a_key_that_was_half_written_is_made_again(tmp_path: Path) -> None:
    for at in range(1, 5):
        path = tmp_path / f"{at}.pem"
        with pytest.raises(Crash):
            signing_key(path, Faulty(at, Crash()))
        key = signing_key(path)
        assert public_bytes(signing_key(path)) == public_bytes(key)
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_such_key_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    pem = (Encoding.PEM, PrivateFormat.PKCS8)
    for wrong in (
        b"",
        b"no key",
        KEY.private_bytes(*pem, BestAvailableEncryption(b"x")),
        generate_private_key(SECP256R1()).private_bytes(*pem, NoEncryption()),
    ):
        path.write_bytes(wrong)
        with pytest.raises(StorageError, match=f"{path} is no unencrypted Ed25519 private key in PEM; "):
            signing_key(path)
        assert path.read_bytes() == wrong
    with pytest.raises(StorageError, match="cannot be read or made: No such file or directory; check the path"):
        signing_key(tmp_path / "nowhere" / "key.pem")
    with pytest.raises(StorageError, match="cannot be read or made: Is a directory"):
        signing_key(tmp_path)
