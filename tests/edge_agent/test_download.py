"""A bundle arrives whole and as announced, or not at all."""

import dataclasses
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Bundles, recalibrated
from local_coordinator import LocalCoordinator

from coordinator.service import Service
from edge_agent import download
from edge_agent.config import AgentConfig
from edge_agent.link import Link, Unreachable
from edge_agent.precision import Chooser
from edge_agent.state import State
from zo.bundle import Bundle
from zo.errors import BundleError, ConfigError, StorageError
from zo.manifest import FILE
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


def fetched(link: Link, joined: JoinReply, folder: Path, given: str = "", **changed: Any) -> Bundle:
    """The bundle, as an agent with these settings gets it that keeps its own files in folder/agent."""
    state = State(folder / "agent", 50e6)
    try:
        config = AgentConfig("unused", bundle=given, **changed)
        return download.bundle(link.ask, joined, folder, Chooser(config, state, lambda: None), config)
    finally:
        state.close()


def same_files(one: Path, other: Path) -> bool:
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, other)]
    return contents[0] == contents[1]


def test_the_bundle_arrives_as_it_is(link: BreakingLink, joined: JoinReply, bert_bundle: Bundle, tmp_path: Path) -> None:
    found = fetched(link, joined, tmp_path / "state")
    assert found.digest == bert_bundle.digest
    assert same_files(found.folder, bert_bundle.folder)
    assert [path.name for path in (tmp_path / "state/bundles").iterdir()] == [bert_bundle.digest.hex()]


def test_a_bundle_that_is_there_is_not_fetched_again(link: BreakingLink, joined: JoinReply, tmp_path: Path) -> None:
    fetched(link, joined, tmp_path)
    link.left = 0
    fetched(link, joined, tmp_path)


def test_a_download_goes_on_where_the_line_was_cut(
    coordinator: LocalCoordinator, link: BreakingLink, joined: JoinReply, bert_bundle: Bundle, tmp_path: Path
) -> None:
    asked = coordinator.call(lambda service: service.asked)
    link.left = 20
    with pytest.raises(Unreachable):
        fetched(link, joined, tmp_path)
    assert not (tmp_path / "bundles" / joined.bundle_digest.hex() / joined.bundle_files[asked[-1][0]]).exists()
    last = asked[-1]
    assert last[1] > 0
    asked.clear()
    link.left = 10**9
    assert same_files(fetched(link, joined, tmp_path).folder, bert_bundle.folder)
    assert (last[0], last[1] + PIECE) in asked
    assert last not in asked


def test_a_damaged_bundle_is_fetched_again(link: BreakingLink, joined: JoinReply, bert_bundle: Bundle, tmp_path: Path) -> None:
    folder = fetched(link, joined, tmp_path).folder
    (folder / "fp32.safetensors").write_bytes(b"")
    assert same_files(fetched(link, joined, tmp_path).folder, bert_bundle.folder)


def test_another_bundle_than_the_one_announced_is_refused(link: BreakingLink, joined: JoinReply, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not the bundle that the coordinator announced"):
        fetched(link, dataclasses.replace(joined, bundle_digest=bytes(32)), tmp_path)


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
            fetched(link, link.ask(JoinRequest(PROTOCOL, 7)), tmp_path)
        link.close()


def test_a_file_that_was_longer_before_it_was_cut_does_not_stay_so(
    link: BreakingLink, joined: JoinReply, bert_bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "bundles" / joined.bundle_digest.hex()
    folder.mkdir(parents=True)
    (folder / "tokenizer.json.part").write_bytes(b"x" * 10**6)
    assert same_files(fetched(link, joined, tmp_path).folder, bert_bundle.folder)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "..", "", ".hidden", "a\\b", "a\0b", "a\nb"])
def test_a_hostile_file_name_is_refused_and_writes_nothing(name: str, link: BreakingLink, joined: JoinReply, tmp_path: Path) -> None:
    hostile = dataclasses.replace(joined, bundle_files=(name,))
    with pytest.raises(BundleError, match="is no file name for a bundle"):
        fetched(link, hostile, tmp_path / "state")
    assert not (tmp_path / "state/bundles").exists()
    assert not list(tmp_path.rglob("*evil*"))


def test_a_bundle_given_is_used_without_a_download(link: BreakingLink, joined: JoinReply, bert_bundle: Bundle, tmp_path: Path) -> None:
    link.left = 0
    assert fetched(link, joined, tmp_path / "state", given=str(bert_bundle.folder)).folder == bert_bundle.folder
    assert not (tmp_path / "state/bundles").exists()


def test_a_bundle_given_that_is_another_is_refused(link: BreakingLink, joined: JoinReply, llama_bundle: Bundle, tmp_path: Path) -> None:
    said = rf"holds bundle '{llama_bundle.manifest.name}' .*announced for run '{joined.run_name}' .*; give the folder of that one, or"
    with pytest.raises(BundleError, match=said):
        fetched(link, joined, tmp_path, given=str(llama_bundle.folder))
    assert llama_bundle.folder.exists()


def test_a_state_folder_that_cannot_be_written_is_named(link: BreakingLink, joined: JoinReply, tmp_path: Path) -> None:
    (tmp_path / "bundles").write_text("a file")
    with pytest.raises(StorageError, match="give another with --state"):
        fetched(link, joined, tmp_path)


# --- one of several bases ---


@pytest.fixture
def several(bundles: Bundles, tmp_path: Path) -> Iterator[tuple[Bundle, LocalCoordinator, Link, JoinReply]]:
    """A bundle with the bases int8 (its default, and hopeless by its calibration), fp32 and w4; a coordinator that serves it."""
    bundle = recalibrated(bundles("bert", precision="int8,fp32,w4"), tmp_path / "several", "int8", correlation=-0.5)
    with LocalCoordinator(bundle, tmp_path / "several.sqlite", SmallPieces) as coordinator:
        link = BreakingLink(coordinator.address, threading.Event(), insecure_loopback=True)
        yield bundle, coordinator, link, link.ask(JoinRequest(PROTOCOL, 7))
        link.close()


Several = tuple[Bundle, LocalCoordinator, BreakingLink, JoinReply]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def asked_for(several: Several) -> list[str]:
    """Names of the files that the coordinator was asked for, in order."""
    _, coordinator, _, joined = several
    return list(dict.fromkeys(joined.bundle_files[file] for file, _ in coordinator.call(lambda service: service.asked)))


@pytest.mark.parametrize("precision", ["int8", "fp32", "w4"])
def test_of_several_bases_the_one_named_arrives_alone(precision: str, several: Several, tmp_path: Path) -> None:
    whole, _, link, joined = several
    found = fetched(link, joined, tmp_path / "state", precision=precision)
    assert found.manifest == whole.manifest.at(precision)
    assert names(found.folder) == {FILE, *found.manifest.needed}
    assert found.digest == whole.digest
    assert found.parameters().digest() == whole.parameters().digest()


def test_the_bases_are_compared_before_any_weights_are_fetched(several: Several, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, _, link, joined = several
    with caplog.at_level(logging.INFO):
        found = fetched(link, joined, tmp_path)
    chosen = found.manifest.precision
    assert chosen in ("fp32", "w4")  # int8 is faster perhaps, and its probes point the wrong way
    weights = {base.file for base in whole.manifest.bases.values()}
    order = asked_for(several)
    assert order[-1] == found.manifest.base.file
    assert set(order) == {FILE, *whole.manifest.files} - weights | {order[-1]}
    assert names(found.folder) == set(order)
    table = [record.getMessage() for record in caplog.records if record.name == "edge_agent.precision"]
    assert [line.split()[0] for line in table] == ["comparing", "base", "int8", "fp32", "w4", "computing"]
    assert [line.endswith("*") for line in table[2:5]] == [each == chosen for each in ("int8", "fp32", "w4")]
    assert float(table[2].split()[3]) == 0
    assert names(tmp_path / "agent") == {"device_id", "lock", "comparison"}


def test_a_restart_does_not_compare_again_and_other_settings_do(several: Several, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, _, link, joined = several
    chosen = fetched(link, joined, tmp_path).manifest.precision
    caplog.set_level(logging.INFO)
    caplog.clear()
    link.left = 0
    assert fetched(link, joined, tmp_path).manifest.precision == chosen
    assert "comparing" not in caplog.text
    link.left = 10**9
    fetched(link, joined, tmp_path, max_rows=96)
    assert "comparing 3 bases" in caplog.text


def test_another_base_is_fetched_beside_the_one_there(several: Several, tmp_path: Path) -> None:
    whole, coordinator, link, joined = several
    fetched(link, joined, tmp_path, precision="int8")
    coordinator.call(lambda service: service.asked.clear())
    fetched(link, joined, tmp_path, precision="w4")
    assert set(asked_for(several)) == set(whole.manifest.bases["w4"].files)
    link.left = 0
    assert [fetched(link, joined, tmp_path, precision=each).manifest.precision for each in ("int8", "w4")] == ["int8", "w4"]


def test_a_base_that_the_bundle_has_not_is_refused_and_those_there_are_named(several: Several, tmp_path: Path) -> None:
    _, _, link, joined = several
    with pytest.raises(ConfigError, match="has no base of precision 'w8'; it has int8, fp32, w4"):
        fetched(link, joined, tmp_path, precision="w8")


def test_of_a_bundle_given_the_bases_there_are_compared(several: Several, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, _, link, joined = several
    caplog.set_level(logging.INFO)
    link.left = 0
    assert fetched(link, joined, tmp_path, given=str(whole.folder)).manifest.precision != "int8"
    assert "comparing 3 bases" in caplog.text
    caplog.clear()
    for precision in ("fp32", "w4"):
        (whole.folder / whole.manifest.bases[precision].file).unlink()
    assert fetched(link, joined, tmp_path, given=str(whole.folder)).manifest.precision == "int8"
    assert "comparing" not in caplog.text
    with pytest.raises(BundleError, match=r"w4\.safetensors is missing"):
        fetched(link, joined, tmp_path, given=str(whole.folder), precision="w4")


def test_a_changed_graph_is_refused_before_it_is_compared(bundles: Bundles, tmp_path: Path) -> None:
    with LocalCoordinator(bundles("bert", precision="int8,fp32,w4"), tmp_path / "run.sqlite", Flipping) as coordinator:
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        with pytest.raises(BundleError, match="does not have the digest that the manifest states"):
            fetched(link, link.ask(JoinRequest(PROTOCOL, 7)), tmp_path)
        link.close()
    assert not list(tmp_path.rglob("*.safetensors.part"))
    assert not (tmp_path / "agent/comparison").exists()
