"""Where the coordinator listens, what it answers where it errs itself, and what it holds for those who do not listen."""

import asyncio
import logging
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fleets import joined, serving
from local_coordinator import LocalCoordinator, settings
from waiting import wait_until

from coordinator import listening
from coordinator.config import Limits
from coordinator.rounds import Rounds
from coordinator.service import CHUNK, Service
from coordinator.sqlite_store import SqliteStore
from edge_agent.link import Link, Unreachable
from zo.address import free_port
from zo.bundle import Bundle
from zo.errors import ConfigError, ConnectionFailed
from zo.messages import PROTOCOL, FileChunk, FileRequest, JoinReply, JoinRequest


def start(bundle: Bundle, tmp_path: Path, listen: str, insecure_loopback: bool = True) -> str:
    """The address that it has."""

    async def go() -> str:
        store = SqliteStore(tmp_path / "run.sqlite", create=True)
        run = store.open_run("run", bundle.folder, bundle.digest)
        server, address = await listening.start(Service(Rounds(store, run, bundle, settings(bundle))), listen, insecure_loopback)
        await server.stop(0)
        return address

    return asyncio.run(go())


@pytest.mark.parametrize("listen", ["0.0.0.0:7600", "192.168.1.2:7600", "[::]:7600", "example.org:7600"])
def test_plaintext_beyond_loopback_is_refused(listen: str, bert_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no loopback address"):
        start(bert_bundle, tmp_path, listen)


def test_plaintext_has_to_be_asked_for(bert_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--insecure-loopback"):
        start(bert_bundle, tmp_path, "127.0.0.1:0", insecure_loopback=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.3.2.1"])
def test_loopback_addresses_are_served(host: str, bert_bundle: Bundle, tmp_path: Path) -> None:
    address = f"{host}:{free_port()}"
    assert start(bert_bundle, tmp_path, address) == address


def test_any_free_port_is_told(bert_bundle: Bundle, tmp_path: Path) -> None:
    host, _, port = start(bert_bundle, tmp_path, "127.0.0.1:0").partition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


def test_what_is_no_address_is_refused(bert_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="listen must be address:port"):
        start(bert_bundle, tmp_path, "127.0.0.1:99999")


def test_a_port_in_use_is_refused(bert_bundle: Bundle, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConnectionFailed, match="the port is in use; choose another"):
        start(bert_bundle, tmp_path, f"127.0.0.1:{taken.getsockname()[1]}")


class Erring(Service):
    """Is wrong itself about one device."""

    async def join(self, request: JoinRequest) -> JoinReply:
        if request.device_id == 13:
            raise ZeroDivisionError("secrets of the coordinator")
        return await super().join(request)


def test_an_error_in_the_coordinator_is_one_line_and_tells_devices_nothing(
    bert_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", Erring) as coordinator:
        link = Link(coordinator.address, threading.Event(), insecure_loopback=True)
        with caplog.at_level(logging.INFO), pytest.raises(Unreachable) as caught:
            link.ask(JoinRequest(PROTOCOL, 13))
        assert str(caught.value) == "an error in the coordinator itself; its log says which"
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
            "Join: internal error: ZeroDivisionError: secrets of the coordinator"
        ]
        assert not any(record.exc_info for record in caplog.records)
        assert link.ask(JoinRequest(PROTOCOL, 77)).device == 0
        link.close()


class Large(Service):
    """Its files are more than any buffer on the way holds."""

    async def fetch_file(self, request: FileRequest) -> FileChunk:
        return FileChunk(bytes(CHUNK), CHUNK)


ASKS_FOR_MUCH = """
import sys, threading, time
from pathlib import Path
from edge_agent import identity
from edge_agent.link import Link, Unreachable
from zo.messages import PROTOCOL, FileRequest, JoinRequest

mine = identity.load(Path(sys.argv[1]))
link = Link(mine.coordinator, threading.Event(), identity=mine)
link.ask(JoinRequest(protocol=PROTOCOL, device_id=0))

def ask():
    while True:
        try:
            link.ask(FileRequest(1, 0, 0))
        except Unreachable:
            time.sleep(0.01)

for _ in range(40):
    threading.Thread(target=ask).start()
"""


def test_replies_that_nobody_reads_are_calls_under_way_until_the_caller_has_gone(bert_bundle: Bundle, tmp_path: Path) -> None:
    limits = Limits(rate=1000.0, burst=1000.0, at_once=16)
    with serving(tmp_path, bert_bundle, kind=Large, limits=limits) as (fleet, coordinator):
        joined(fleet, tmp_path / "device")
        (name,) = (device.id for device in fleet.devices())

        def under_way() -> int:
            return coordinator.call(lambda service: service.admission.calls_of(name))

        with subprocess.Popen([sys.executable, "-c", ASKS_FOR_MUCH, tmp_path / "device"]) as client:
            try:
                wait_until(lambda: under_way() > 4)
                client.send_signal(signal.SIGSTOP)
                threading.Event().wait(1.0)
                assert 0 < under_way() <= limits.at_once
            finally:
                client.kill()
        wait_until(lambda: under_way() == 0)
