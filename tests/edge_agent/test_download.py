"""A bundle arrives whole and as announced, or not at all."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_coordinator import LocalCoordinator

from coordinator.service import Service
from edge_agent import download
from edge_agent.link import Link, Unreachable
from zo.bundle import Bundle
from zo.errors import BundleError, StorageError
from zo.messages import PROTOCOL, FileChunk, FileRequest, JoinReply, JoinRequest

PIECE = 1000


class SmallPieces(Service):
    """Sends little at a time, and notes what was asked for."""

    def __init__(self, rounds: Any) -> None:
        super().__init__(rounds)
        self.asked: list[tuple[int, int]] = []

    async def fetch_file(self, request: FileRequest) -> FileChunk:
        self.asked.append((request.file, request.offset))
        chunk = await super().fetch_file(request)
        return FileChunk(chunk.content[:PIECE], chunk.size)


class BreakingLink(Link):
    """The line is cut after some calls."""

    left = 10**9

    def ask(self, request: Any) -> Any:
        if self.left == 0:
            raise Unreachable("cut")
        self.left -= 1
        return super().ask(request)


@pytest.fixture
def coordinator(bert_bundle: Bundle, tmp_path: Path) -> Iterator[LocalCoordinator]:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", SmallPieces) as running:
        yield running


@pytest.fixture
def link(coordinator: LocalCoordinator) -> Iterator[BreakingLink]:
    made = BreakingLink(coordinator.address, threading.Event(), insecure_loopback=True)
    yield made
    made.close()


@pytest.fixture
def joined(link: BreakingLink) -> JoinReply:
    return link.ask(JoinRequest(PROTOCOL, 7))


def same_files(one: Path, other: Path) -> bool:
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, other)]
    return contents[0] == contents[1]


def test_the_bundle_arrives_as_it_is(link: BreakingLink, joined: JoinReply, bert_bundle: Bundle, tmp_path: Path) -> None:
    found = download.bundle(link, joined, tmp_path / "state")
    assert found.digest == bert_bundle.digest
    assert same_files(found.folder, bert_bundle.folder)
    assert [path.name for path in (tmp_path / "state/bundles").iterdir()] == [bert_bundle.digest.hex()]


def test_a_bundle_that_is_there_is_not_fetched_again(link: BreakingLink, joined: JoinReply, tmp_path: Path) -> None:
    download.bundle(link, joined, tmp_path)
    link.left = 0
    download.bundle(link, joined, tmp_path)


def test_a_download_goes_on_where_the_line_was_cut(
    coordinator: LocalCoordinator, link: BreakingLink, joined: JoinReply, bert_bundle: Bundle, tmp_path: Path
) -> None:
    asked = coordinator.call(lambda service: service.asked)
    link.left = 20
    with pytest.raises(Unreachable):
        download.bundle(link, joined, tmp_path)
    assert not (tmp_path / "bundles" / joined.bundle_digest.hex()).exists()
    last = asked[-1]
    assert last[1] > 0
    asked.clear()
    link.left = 10**9
    assert same_files(download.bundle(link, joined, tmp_path).folder, bert_bundle.folder)
    assert (last[0], last[1] + PIECE) in asked
    assert last not in asked


def test_a_damaged_bundle_is_fetched_again(link: BreakingLink, joined: JoinReply, bert_bundle: Bundle, tmp_path: Path) -> None:
    folder = download.bundle(link, joined, tmp_path).folder
    (folder / "base.safetensors").write_bytes(b"")
    assert same_files(download.bundle(link, joined, tmp_path).folder, bert_bundle.folder)


def test_another_bundle_than_the_one_announced_is_refused(link: BreakingLink, joined: JoinReply, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not the bundle that the coordinator announced"):
        download.bundle(link, dataclasses.replace(joined, bundle_digest=bytes(32)), tmp_path)


class Flipping(Service):
    """Changes one bit of every file."""

    async def fetch_file(self, request: FileRequest) -> FileChunk:
        chunk = await super().fetch_file(request)
        content = bytearray(chunk.content)
        if request.offset == 0 and request.file > 0:
            content[0] ^= 1
        return FileChunk(bytes(content), chunk.size)


def test_a_changed_file_is_refused_by_name(bert_bundle: Bundle, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", Flipping) as coordinator:
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        with pytest.raises(BundleError, match="does not have the digest that the manifest states"):
            download.bundle(link, link.ask(JoinRequest(PROTOCOL, 7)), tmp_path)
        link.close()


def test_a_file_that_was_longer_before_it_was_cut_does_not_stay_so(
    link: BreakingLink, joined: JoinReply, bert_bundle: Bundle, tmp_path: Path
) -> None:
    part = tmp_path / "bundles" / f"{joined.bundle_digest.hex()}.part"
    part.mkdir(parents=True)
    (part / "tokenizer.json").write_bytes(b"x" * 10**6)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        download.bundle(link, joined, tmp_path)
    assert same_files(download.bundle(link, joined, tmp_path).folder, bert_bundle.folder)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "..", "", ".hidden", "a\\b", "a\0b", "a\nb"])
def test_a_hostile_file_name_is_refused_and_writes_nothing(name: str, link: BreakingLink, joined: JoinReply, tmp_path: Path) -> None:
    hostile = dataclasses.replace(joined, bundle_files=(name,))
    with pytest.raises(BundleError, match="is no file name for a bundle"):
        download.bundle(link, hostile, tmp_path / "state")
    assert [path for path in (tmp_path / "state").rglob("*") if path.is_file()] == []
    assert not (tmp_path / "state/bundles/evil").exists()


def test_a_bundle_given_is_used_without_a_download(link: BreakingLink, joined: JoinReply, bert_bundle: Bundle, tmp_path: Path) -> None:
    link.left = 0
    assert download.bundle(link, joined, tmp_path / "state", str(bert_bundle.folder)).folder == bert_bundle.folder
    assert not (tmp_path / "state").exists()


def test_a_bundle_given_that_is_another_is_refused(link: BreakingLink, joined: JoinReply, llama_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not the bundle that the coordinator announced; remove it, or leave out --bundle"):
        download.bundle(link, joined, tmp_path, str(llama_bundle.folder))
    assert llama_bundle.folder.exists()


def test_a_state_folder_that_cannot_be_written_is_named(link: BreakingLink, joined: JoinReply, tmp_path: Path) -> None:
    (tmp_path / "bundles").write_text("a file")
    with pytest.raises(StorageError, match="give another with --state"):
        download.bundle(link, joined, tmp_path)
