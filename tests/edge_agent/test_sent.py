"""The record of what was sent is what was sent: complete, readable, bounded."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_coordinator import LocalCoordinator

from coordinator.bench import tiny_models
from coordinator.config import Round
from coordinator.demo import shares
from edge_agent import sent
from edge_agent.cli import main
from edge_agent.config import AgentConfig, Privacy
from edge_agent.daemon import Daemon
from edge_agent.flash import WriteBudget
from edge_agent.sent import Sent, messages
from zo import wire
from zo.address import free_port
from zo.bundle import Bundle
from zo.errors import PrivacySpent, StorageError
from zo.messages import JoinRequest, Report, Spent


class Tap:
    """Between an agent and a coordinator: hands every call on, and keeps its bytes."""

    def __init__(self, coordinator: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.address, self._server = f"127.0.0.1:{free_port()}", grpc.server(ThreadPoolExecutor(4))
        self._channel = grpc.insecure_channel(coordinator)
        handlers = {method.name: grpc.unary_unary_rpc_method_handler(self._hands_on(method)) for method in wire.METHODS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))
        self._server.add_insecure_port(self.address)
        self._server.start()

    def _hands_on(self, method: wire.Method) -> object:
        call = self._channel.unary_unary(method.path)

        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            self.heard.append((method.request.__name__, data))
            try:
                return call(data, timeout=30)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
                raise

        return handle

    def close(self) -> None:
        self._server.stop(0).wait()
        self._channel.close()


@pytest.fixture
def tap(bert_bundle: Bundle, tmp_path: Path) -> Iterator[Tap]:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", rounds=3, round=Round(1, 1, 30.0)) as coordinator:
        made = Tap(coordinator.address)
        yield made
        made.close()


def run_agent(tap: Tap, folder: Path, **changed: object) -> Path:
    """An agent that works until the run is over; gives its state folder."""
    shares.write(folder / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 40))
    settings = {"data": str(folder / "a.jsonl"), "state": str(folder / "state"), "coordinator": tap.address, "insecure_loopback": True}
    Daemon(AgentConfig(**settings | changed), threading.Event()).run()  # type: ignore[arg-type]
    return folder / "state"


def test_the_record_is_byte_for_byte_what_arrived(tap: Tap, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = run_agent(tap, tmp_path)
    assert [(each.name, each.content) for each in sent.messages(state)] == tap.heard
    assert {"JoinRequest", "FileRequest", "CatchUpRequest", "WorkRequest", "Report"} == {name for name, _ in tap.heard}
    assert main(["audit", f"--state={state}", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(tap.heard)
    reports = [wire.decoder(Report)(data) for name, data in tap.heard if name == "Report"]
    assert [line["scalars"] for line in lines if line["message"] == "Report"] == [report.scalars.tolist() for report in reports]
    assert main(["audit", f"--state={state}"]) == 0
    text = capsys.readouterr().out
    assert "3 times Report, " in text
    assert f"scalars {reports[0].scalars.tolist()}" in text


def test_with_noise_only_the_noisy_scalars_leave_and_the_budget_ends_it(tap: Tap, tmp_path: Path) -> None:
    with pytest.raises(PrivacySpent):
        run_agent(tap, tmp_path, dp=Privacy(clip=0.05, noise=20.0, epsilon=0.6))
    reports = [wire.decoder(Report)(data) for name, data in tap.heard if name == "Report"]
    assert len(reports) == 2  # epsilon 0.38 and 0.54; a third would make it 0.67
    for report in reports:
        assert (report.held_out, report.dropped, report.spent) == ((), 0, Spent())
        assert np.abs(report.scalars).max() > 0.05 * 2**14  # what a vector of that length cannot hold without noise


def test_without_room_for_it_no_record_is_kept(tmp_path: Path) -> None:
    Sent(tmp_path / "nowhere", 0).add("Report", b"content")
    assert not list(messages(tmp_path))


def test_what_is_noted_is_counted_even_where_no_budget_is_left(tmp_path: Path) -> None:
    budget = WriteBudget(0.0)
    Sent(tmp_path, 1e6, budget).add("Report", bytes(5000))
    assert budget.written >= 5000


def test_what_cannot_be_noted_is_not_sent(tap: Tap, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/sent").mkdir()
    with pytest.raises(StorageError, match="nothing is sent that is not noted there"):
        run_agent(tap, tmp_path)
    assert tap.heard == []


def test_a_torn_end_is_cut_and_what_follows_can_be_read(tmp_path: Path) -> None:
    Sent(tmp_path, 1e6).add("A", b"one")
    with (tmp_path / "sent").open("ab") as file:
        file.write(b"\xff\x00\x00\x00torn")
    Sent(tmp_path, 1e6).add("B", b"two")
    assert sent.unreadable(tmp_path) == []
    assert [(each.name, each.content) for each in sent.messages(tmp_path)] == [("A", b"one"), ("B", b"two")]


def test_on_a_disk_that_fills_no_record_is_cut_off(tmp_path: Path) -> None:
    # a limit on the size of files takes the beginning of a record, and the rest is lost, as on a full disk
    code = f"""
import pathlib, resource
from edge_agent.sent import Sent
from zo.errors import StorageError
sent, said = Sent(pathlib.Path({str(tmp_path)!r}), 1e6), []
for most in (100, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    for number in range(5):
        try:
            sent.add("Report", bytes([number]) * 20)
        except StorageError as error:
            said.append(str(error))
print(*said, sep="\\n")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 3
    assert all("nothing is sent that is not noted there: make room" in line for line in said)
    assert sent.unreadable(tmp_path) == []
    assert [each.content[0] for each in sent.messages(tmp_path)] == [0, 1, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("place", [1, 3, 12, 13])  # in the length, in the length of the name, in the name
def test_what_follows_a_flipped_bit_is_kept_and_missed(place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, path, join = Sent(tmp_path, 1e6), tmp_path / "sent", wire.encode(JoinRequest(1, 2))
    record.add("JoinRequest", join)
    first = path.stat().st_size
    for _ in range(20):
        record.add("JoinRequest", join)
    damaged = bytearray(path.read_bytes())
    damaged[first + place] ^= 0x80
    path.write_bytes(damaged)
    assert main(["audit", f"--state={tmp_path}"]) == 8
    out, err = capsys.readouterr()
    assert "1 times JoinRequest" in out
    assert f"what is shown is not all that was sent: {len(damaged) - first} bytes of {path} cannot be read" in err
    for _ in range(2):
        Sent(tmp_path, 1e6)
    assert path.read_bytes() == damaged[:first]
    assert (tmp_path / "sent.corrupt").read_bytes() == damaged[first:]
    warning = f"{path} is damaged at byte {first}; the {len(damaged) - first} bytes from there on are kept as sent.corrupt"
    assert capsys.readouterr().err.count(warning) == 1
    assert main(["audit", f"--state={tmp_path}", "--json"]) == 8
    assert f"{len(damaged) - first} bytes of {path}.corrupt cannot be read" in capsys.readouterr().err


def test_the_older_half_is_looked_at_too(tmp_path: Path) -> None:
    Sent(tmp_path, 1e6).add("Report", b"one")
    older = (tmp_path / "sent").replace(tmp_path / "sent.older")
    tail = b"no record" + older.read_bytes()
    older.write_bytes(older.read_bytes() + tail)
    Sent(tmp_path, 1e6)
    assert (tmp_path / "sent.older.corrupt").read_bytes() == tail


def test_the_record_stays_within_its_bytes_and_forgets_no_count(tmp_path: Path) -> None:
    record, most = Sent(tmp_path, 1e4), 10_000
    for number in range(2000):
        record.add("Report" if number % 4 else "WorkRequest", bytes(20))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= most + 200
    assert sent.totals(sent.messages(tmp_path)) == {"Report": (1500, 30_000), "WorkRequest": (500, 10_000)}
    first = next(sent.messages(tmp_path))
    assert "earlier, and dropped to save room: " in sent.told(first)
    assert sent.plain(first)["earlier"]["Report"][0] > 500


def test_a_crash_between_the_two_files_of_a_turn_loses_no_count(tmp_path: Path) -> None:
    record, number = Sent(tmp_path, 1e4), 0
    while b"earlier" not in (tmp_path / "sent").read_bytes() or number < 1000:
        record.add("Report", bytes(20))
        number += 1
    (tmp_path / "sent").replace(tmp_path / "sent.new")
    Sent(tmp_path, 1e4).add("Report", bytes(20))
    assert sent.totals(sent.messages(tmp_path)) == {"Report": (number + 1, 20 * (number + 1))}
    assert not (tmp_path / "sent.new").exists()


@given(st.binary(max_size=300))
def test_any_file_can_be_read_and_shown(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("state")
    (folder / "sent").write_bytes(content)
    for each in sent.messages(folder):
        json.dumps(sent.plain(each))
        sent.told(each)
    sent.totals(sent.messages(folder))
    Sent(folder, 1e6).add("JoinRequest", wire.encode(JoinRequest(1, 2)))
    assert sent.plain(list(sent.messages(folder))[-1])["device_id"] == 2


@given(
    st.sampled_from(["earlier", "Report", "JoinRequest", "x"]), st.binary(max_size=60) | st.just(b'{"a": [1, 2]}') | st.just(b'{"a": 1}')
)
def test_any_record_can_be_shown(name: str, content: bytes) -> None:
    message = sent.Message(0.0, name, content)
    json.dumps(sent.plain(message))
    assert "\n" not in sent.told(message)
    sent.totals(iter([message]))


def test_a_folder_without_a_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", f"--state={tmp_path}"]) == 8
    assert "holds no record of an agent" in capsys.readouterr().err
