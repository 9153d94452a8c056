"""Tiles are read from anybody's server; whatever that server does, only the signed history is ever given out."""

import contextlib
import hashlib
import http.server
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tile_ledger import BUNDLE, CHAINS, GENESIS, LAST, LEDGER, chains, entries

from zo import tile_head, tiles, wire
from zo.checkpoint import Checkpoint, GroupValues
from zo.errors import ConfigError
from zo.ledger import Entry, Tile
from zo.terms import Term
from zo.tile_head import CheckpointFile, Head, HeadRefused, read_head
from zo.tiles import MAX_TILE, TILE, Tiles, TilesUnavailable, tile_path

KEY, OTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
HEAD = Head(GENESIS, BUNDLE, LAST, CHAINS[LAST])


def publish(folder: Path, ledger: list[Entry], count: int, key: Ed25519PrivateKey = KEY) -> Head:
    """Tiles of the first entries of a ledger, without the help of the writer."""
    for tile in range(-(-count // TILE)):
        part = tuple(ledger[tile * TILE : min(count, (tile + 1) * TILE)])
        put(folder, tile_path(tile, len(part)), wire.encode(Tile(part)))
    head = Head(GENESIS, BUNDLE, count, chains(ledger)[count])
    put(folder, "head", head.signed(key))
    return head


def put(folder: Path, path: str, content: bytes) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The whole ledger, published."""
    publish(tmp_path, LEDGER, LAST)
    return tmp_path


class Plain(http.server.SimpleHTTPRequestHandler):
    """Python's own static file server, quiet."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path, kind: type[Plain] = Plain) -> Iterator[str]:
    """The address of a server of a folder."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: kind(*args, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


# format


@pytest.mark.parametrize(
    ("tile", "width", "path"),
    [
        (0, TILE, "entries/000"),
        (7, 5, "entries/007.p/5"),
        (999, TILE, "entries/999"),
        (1000, TILE, "entries/x001/000"),
        (1234067, TILE, "entries/x001/x234/067"),
        (1234067, 8, "entries/x001/x234/067.p/8"),
    ],
)
def test_a_tile_lies_where_transparency_logs_have_it(tile: int, width: int, path: str) -> None:
    assert tile_path(tile, width) == path


def test_a_head_is_a_text_that_says_everything_and_is_signed_to_the_last_byte() -> None:
    head = replace(HEAD, checkpoint=CheckpointFile(300, 17, 10**15, bytes(32)))
    text, line = re.fullmatch(rb"(.*\n)signature ([0-9a-f]{128})\n", head.signed(KEY), re.DOTALL).groups()
    assert text.decode().splitlines() == [
        "edge-zo head 1",
        f"genesis {GENESIS.hex()}",
        f"bundle {BUNDLE.hex()}",
        f"entries {LAST}",
        f"chain {CHAINS[LAST].hex()}",
        "checkpoint 300",
        "size 17",
        f"signs {10**15}",
        f"digest {bytes(32).hex()}",
    ]
    KEY.public_key().verify(bytes.fromhex(line.decode()), text)


@pytest.mark.parametrize("stated", [None, CheckpointFile(0, 0, 0, bytes(32)), CheckpointFile(LAST, 2**40, 2**60, bytes(range(32)))])
def test_a_head_comes_back_from_its_file_and_the_file_from_it(stated: CheckpointFile | None) -> None:
    data = replace(HEAD, checkpoint=stated).signed(KEY)
    head = read_head(data, PUBLIC)
    assert head == replace(HEAD, checkpoint=stated)
    assert head.encoded == data


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_a_head_altered_anywhere_is_refused(data: st.DataObject) -> None:
    signed = replace(HEAD, checkpoint=CheckpointFile(300, 17, 9, bytes(32))).signed(KEY)
    place = data.draw(st.integers(0, len(signed) - 1))
    altered = bytearray(signed)
    altered[place] ^= data.draw(st.integers(1, 255))
    for wrong in (bytes(altered), signed[:place], signed[:place] + signed[place + 1 :], signed + signed[place:]):
        with pytest.raises(HeadRefused):
            read_head(wrong, PUBLIC)


def signed_text(text: bytes) -> bytes:
    return text + f"signature {KEY.sign(text).hex()}\n".encode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"head 1", b"head 2"),
        (b"entries ", b"entries 0"),
        (b"entries ", b"entries -"),
        (b"\n", b"\r\n"),
        (b"bundle", b"bundel"),
        (b"chain ", b"chain 00"),
        (b"checkpoint", b"note x\ncheckpoint"),
        (b"size 17\n", b""),
        (b"genesis 0", b"genesis A"),
    ],
)
def test_a_signed_text_of_another_form_is_refused(old: bytes, new: bytes) -> None:
    text = replace(HEAD, checkpoint=CheckpointFile(300, 17, 9, bytes(32))).signed(KEY)[: -tile_head.SIGNATURE_LINE]
    read_head(signed_text(text), PUBLIC)
    with pytest.raises(HeadRefused, match="not of form 1"):
        read_head(signed_text(text.replace(old, new)), PUBLIC)


def test_why_a_head_is_refused_is_said() -> None:
    for data, key, why in (
        (b"", PUBLIC, "not signed$"),
        (HEAD.signed(KEY)[:-1], PUBLIC, "not signed$"),
        (HEAD.signed(OTHER_KEY), PUBLIC, "not signed with the key"),
        (HEAD.signed(KEY), b"", "not an Ed25519 public key"),
        (replace(HEAD, checkpoint=CheckpointFile(LAST + 1, 1, 1, bytes(32))).signed(KEY), PUBLIC, "beyond its entries"),
    ):
        with pytest.raises(HeadRefused, match=why):
            read_head(data, key)


# reading


@pytest.mark.parametrize("after", [0, 1, TILE - 1, TILE, TILE + 1, 2 * TILE, LAST - 1, LAST, LAST + 9])
def test_all_entries_above_a_number_come_in_order_from_a_plain_server_and_a_folder(folder: Path, after: int) -> None:
    with served(folder) as address:
        for location in (address, address + "/", str(folder)):
            source = Tiles(location)
            head = source.head(PUBLIC, GENESIS)
            state = CHAINS[after] if after <= LAST else bytes(32)
            assert head == HEAD
            assert list(source.entries(head, after, state)) == LEDGER[after:]


@pytest.mark.parametrize("count", [0, 1, TILE, 2 * TILE])
def test_a_ledger_of_any_length_can_be_read(tmp_path: Path, count: int) -> None:
    head = publish(tmp_path, LEDGER, count)
    assert list(Tiles(str(tmp_path)).entries(head, 0, GENESIS)) == LEDGER[:count]


def test_only_the_tiles_that_are_needed_are_fetched(folder: Path) -> None:
    (folder / tile_path(0)).unlink()
    assert list(Tiles(str(folder)).entries(HEAD, TILE, CHAINS[TILE])) == LEDGER[TILE:]
    (folder / tile_path(1)).unlink()
    (folder / tile_path(2, 44)).unlink()
    assert list(Tiles(str(folder)).entries(HEAD, LAST, CHAINS[LAST])) == []


class Counting(Tiles):
    """Notes what is read, and holds none of it."""

    def __init__(self, location: str) -> None:
        super().__init__(location, memory=0)
        self.read: list[str] = []

    def _read(self, path: str, most: int) -> bytes:
        self.read.append(path)
        return super()._read(path, most)


def test_tiles_that_memory_does_not_hold_are_fetched_again_and_must_not_have_changed(folder: Path) -> None:
    source = Counting(str(folder))
    assert list(source.entries(HEAD, 0, GENESIS)) == LEDGER
    assert source.read == [tile_path(2, 44), tile_path(0), tile_path(1), tile_path(0), tile_path(1)]
    given = source.entries(HEAD, 0, GENESIS)
    put(folder, tile_path(1), wire.encode(Tile(tuple(entries(LAST, 300)[TILE : 2 * TILE]))))
    received: list[Entry] = []
    with pytest.raises(TilesUnavailable, match=r"tile 1 .* has changed"):
        received.extend(given)
    assert received == LEDGER[:TILE]


# heads that must not be followed


def test_a_head_that_another_key_signed_is_refused_and_the_message_says_where(folder: Path) -> None:
    publish(folder, LEDGER, LAST, OTHER_KEY)
    with pytest.raises(HeadRefused, match=f"^{folder}/head is refused: it is not signed with the key of this run$"):
        Tiles(str(folder)).head(PUBLIC, GENESIS)


def test_a_head_of_another_ledger_is_refused(folder: Path) -> None:
    source = Tiles(str(folder))
    with pytest.raises(HeadRefused, match="another ledger"):
        source.head(PUBLIC, bytes(32))
    with pytest.raises(HeadRefused, match="another ledger"):
        source.head(PUBLIC, None, replace(HEAD, genesis=bytes(32)))
    assert source.head(PUBLIC) == HEAD


def test_a_head_that_goes_back_is_refused_and_one_that_stays_is_not(folder: Path) -> None:
    source = Tiles(str(folder))
    assert source.head(PUBLIC, GENESIS, HEAD) == HEAD
    publish(folder, LEDGER, LAST - 1)
    with pytest.raises(HeadRefused, match=f"goes back, from entry {LAST} to {LAST - 1}"):
        source.head(PUBLIC, GENESIS, HEAD)


def test_a_head_as_long_as_the_last_but_of_another_history_is_refused(folder: Path) -> None:
    publish(folder, entries(LAST, LAST - 1), LAST)
    with pytest.raises(HeadRefused, match=f"forks: another history led to entry {LAST}"):
        Tiles(str(folder)).head(PUBLIC, GENESIS, HEAD)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Tiles, Head]]:
    """Properly signed ledgers that part from LEDGER after some entry."""
    made = {}
    for split in (0, 100, TILE - 1, TILE, 299, LAST):
        folder = tmp_path_factory.mktemp("fork")
        made[split] = Tiles(str(folder)), publish(folder, entries(LAST, split), LAST)
    return made


@example(split=0, at=LAST, followed=LAST)
@example(split=0, at=0, followed=LAST)
@example(split=100, at=100, followed=100)
@given(split=st.sampled_from((0, 100, TILE - 1, TILE, 299, LAST)), at=st.integers(0, LAST), followed=st.integers(0, LAST))
@settings(deadline=None, max_examples=35)
def test_a_fork_from_the_device_or_from_the_last_head_gives_nothing(
    forks: dict[int, tuple[Tiles, Head]], split: int, at: int, followed: int
) -> None:
    source, head = forks[split]
    last = Head(GENESIS, BUNDLE, followed, CHAINS[followed])
    if at > split or followed > max(split, at - 1):
        with pytest.raises(HeadRefused, match="forks"):
            source.entries(head, at, CHAINS[at], last)
    else:
        assert list(source.entries(head, at, CHAINS[at], last)) == entries(LAST, split)[at:]


def test_a_tile_altered_on_the_way_gives_nothing(folder: Path) -> None:
    put(folder, tile_path(1), wire.encode(Tile(tuple(entries(LAST, 400)[TILE : 2 * TILE]))))
    with pytest.raises(HeadRefused, match="a tile is altered"):
        Tiles(str(folder)).entries(HEAD, 0, GENESIS)


# damage


def damaged(change: Callable[[list[Entry]], list[Entry]]) -> bytes:
    return wire.encode(Tile(tuple(change(LEDGER[TILE : 2 * TILE]))))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not here</html>",
        damaged(lambda tile: tile)[:-1],
        damaged(lambda tile: tile[:-1]),
        damaged(lambda tile: tile[::-1]),
        damaged(lambda tile: [*tile, LEDGER[2 * TILE]]),
        damaged(lambda _: LEDGER[:TILE]),
    ],
    ids=["empty", "page", "cut", "short", "reversed", "long", "other"],
)
def test_a_damaged_tile_is_unavailable_and_nothing_is_given(folder: Path, content: bytes) -> None:
    put(folder, tile_path(1), content)
    with pytest.raises(TilesUnavailable, match=r"tile 1 at .* is damaged"):
        Tiles(str(folder)).entries(HEAD, 0, GENESIS)


@pytest.mark.parametrize("digest", [bytes(32), bytes(range(32))])
def test_a_digest_that_was_added_is_found(folder: Path, digest: bytes) -> None:
    put(folder, tile_path(1), damaged(lambda tile: [replace(tile[0], digest=digest), *tile[1:]]))
    with pytest.raises(HeadRefused, match="a tile is altered"):
        Tiles(str(folder)).entries(HEAD, 0, GENESIS)


def test_a_missing_file_is_unavailable(folder: Path) -> None:
    (folder / tile_path(2, 44)).unlink()
    with served(folder) as address:
        for location, why in ((str(folder), "No such file"), (address, "404")):
            with pytest.raises(TilesUnavailable, match=f"{location}/entries/002.p/44 cannot be read: .*{why}"):
                Tiles(location).entries(HEAD, 0, GENESIS)
    with pytest.raises(TilesUnavailable, match="head cannot be read"):
        Tiles(str(folder / "nowhere")).head(PUBLIC)


def test_a_server_that_is_gone_is_unavailable(folder: Path) -> None:
    with served(folder) as address:
        source = Tiles(address)
        source.head(PUBLIC)
    with pytest.raises(TilesUnavailable, match=f"^{address}/head cannot be read: Connection refused$"):
        source.head(PUBLIC)


class Endless(Plain):
    """Sends more than anybody asked for, and does not say how much."""

    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                Endless.sent += self.wfile.write(bytes(2**16))


def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    with served(tmp_path, Endless) as address:
        with pytest.raises(TilesUnavailable, match="head cannot be read: it is longer than 4096 bytes"):
            Tiles(address).head(PUBLIC)
        Endless.sent = 0
        with pytest.raises(TilesUnavailable, match=f"longer than {MAX_TILE} bytes"):
            Tiles(address).entries(HEAD, 0, GENESIS)
        assert Endless.sent < 2 * MAX_TILE
    put(tmp_path, "head", bytes(4097))
    with pytest.raises(TilesUnavailable, match="longer than 4096 bytes"):
        Tiles(str(tmp_path)).head(PUBLIC)


class Cut(Plain):
    """Hangs up half way."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(HEAD.signed(KEY)[:100])


class Silent(Plain):
    """Never answers."""

    def do_GET(self) -> None:
        time.sleep(0.6)


class Dripping(Plain):
    """Sends a byte now and then, for ever."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"e")
                time.sleep(0.05)


class Nonsense(Plain):
    """Does not speak HTTP."""

    def do_GET(self) -> None:
        self.wfile.write(b"220 mail.example.org\r\n")


@pytest.mark.parametrize(
    ("kind", "why"), [(Cut, "cut short"), (Silent, "timed out"), (Dripping, "too slowly"), (Nonsense, "mail.example.org")]
)
def test_a_server_that_answers_badly_is_unavailable(tmp_path: Path, kind: type[Plain], why: str) -> None:
    with served(tmp_path, kind) as address, pytest.raises(TilesUnavailable, match=f"{address}/head cannot be read: .*{why}"):
        Tiles(address, timeout=0.3).head(PUBLIC)


class Elsewhere(Plain):
    """Redirects to /to/<what the address names>."""

    target = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.target + self.path)
        self.end_headers()


def test_a_redirect_is_followed_to_another_server_but_to_nothing_else(folder: Path) -> None:
    with served(folder) as address, served(folder, Elsewhere) as moved:
        Elsewhere.target = address
        assert Tiles(moved).head(PUBLIC) == HEAD
        for Elsewhere.target in (f"file://{folder}", "ftp://127.0.0.1:1", "data:text/plain,"):
            with pytest.raises(TilesUnavailable, match=r"[Rr]edirect"):
                Tiles(moved).head(PUBLIC)
        Elsewhere.target = moved
        with pytest.raises(TilesUnavailable, match="redirect"):
            Tiles(moved).head(PUBLIC)


def test_a_redirect_away_from_https_is_not_followed() -> None:
    secure = Request("https://example.org/head")
    redirect = tiles._Redirects().redirect_request
    assert redirect(secure, None, 302, "", {}, "https://example.com/head").full_url == "https://example.com/head"
    with pytest.raises(URLError, match="of another kind"):
        redirect(secure, io.BytesIO(), 302, "", {}, "http://example.com/head")


@pytest.mark.parametrize("location", ["ftp://example.org/", "file:///tiles", "HTTP://x"])
def test_an_address_of_another_kind_is_a_mistake_in_the_configuration(location: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(location))):
        Tiles(location)


# checkpoints

CHECKPOINT = Checkpoint(GENESIS, 300, CHAINS[300], bytes(32), (Term((0,), 1, np.array([5, -6])),), (GroupValues(3, bytes(8)),))


def stating(folder: Path, checkpoint: Checkpoint, **stated: object) -> Head:
    content = wire.encode(checkpoint)
    put(folder, "checkpoints/300", content)
    file = CheckpointFile(300, len(content), 2, hashlib.blake2b(content, digest_size=32).digest())
    return replace(HEAD, checkpoint=replace(file, **stated))


def test_a_checkpoint_comes_as_it_was_and_the_entries_go_on_from_it(folder: Path) -> None:
    with served(folder) as address:
        source, head = Tiles(address), stating(folder, CHECKPOINT)
        checkpoint = source.checkpoint(head)
        assert checkpoint == CHECKPOINT
        assert list(source.entries(head, checkpoint.entry, checkpoint.head)) == LEDGER[300:]


def test_a_checkpoint_that_is_not_what_the_head_states_is_not_given(folder: Path) -> None:
    source, size = Tiles(str(folder)), len(wire.encode(CHECKPOINT))
    for head, why in (
        (HEAD, "states no checkpoint"),
        (stating(folder, CHECKPOINT, digest=bytes(32)), "is damaged"),
        (stating(folder, CHECKPOINT, size=size - 1), f"longer than {size - 1} bytes"),
        (stating(folder, CHECKPOINT, entry=299), "cannot be read: No such file"),
    ):
        with pytest.raises(TilesUnavailable, match=why):
            source.checkpoint(head)
    for wrong in (replace(CHECKPOINT, genesis=bytes(32)), replace(CHECKPOINT, entry=299)):
        with pytest.raises(HeadRefused, match="another ledger or entry"):
            source.checkpoint(stating(folder, wrong))
