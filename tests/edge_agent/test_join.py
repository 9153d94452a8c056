"""A device joins, renews its certificate in time, and is told plainly at which step something stands in its way."""

import asyncio
import base64
import contextlib
import dataclasses
import datetime
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from fleets import Serving, joined, linked, serving
from hypothesis import given
from hypothesis import strategies as st

from coordinator import authority
from coordinator.bench import tiny_models
from coordinator.config import Round
from coordinator.demo import shares
from edge_agent import cli, identity, join, reach
from edge_agent.config import AgentConfig, JoinConfig
from edge_agent.daemon import Daemon
from edge_agent.identity import Identity
from zo.address import free_port
from zo.bundle import Bundle
from zo.config import from_texts
from zo.errors import ConfigError, ConnectionFailed, RunRefused, StorageError
from zo.messages import PROTOCOL, EnrolReply, JoinRequest
from zo.token import Token


@pytest.fixture
def served(bert_bundle: Bundle, tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, bert_bundle) as made:
        yield made


def agent(token: Token, state: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """edge-agent join, as a process."""
    command = [sys.executable, "-m", "edge_agent.cli", "join", "-", f"--state={state}", *arguments]
    return subprocess.run(command, input=token.text, text=True, capture_output=True, timeout=60, env=os.environ | environment, check=False)


def test_key_and_certificate_are_kept_for_nobody_else_to_read(served: Serving, tmp_path: Path) -> None:
    token = served[0].create_token(1, 60)
    done = agent(token, tmp_path / "state")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "state/identity.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = identity.load(tmp_path / "state")
    assert found is not None
    name = authority.read_peer(found.certificate.encode(), served[0].authority.certificate).device
    assert [name] == [device.id for device in served[0].devices()]
    with linked(found) as link:
        assert link.ask(JoinRequest(PROTOCOL, 0)).device == 0
    assert token.text not in done.stdout + done.stderr + path.read_text()


def test_a_token_is_not_spent_where_the_examples_are_missing(served: Serving, tmp_path: Path) -> None:
    token = served[0].create_token(1, 60)
    done = agent(token, tmp_path / "state", f"--data={tmp_path / 'none'}")
    assert (done.returncode, done.stderr) == (
        4,
        f"edge-agent: {tmp_path / 'none'} does not exist; give a .jsonl file, or a folder of them\n",
    )
    assert agent(token, tmp_path / "state").returncode == 0


def test_its_help_asks_for_no_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command, required in (("join", False), ("run", True)):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert ("[required]" in text) == required
    with pytest.raises(ConfigError, match="data"):
        from_texts(AgentConfig, {})
    assert from_texts(JoinConfig, {}).data == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_it_at_once_and_nothing_is_left(number: int, code: int, served: Serving, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"--coordinator=127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "edge_agent.cli", "join", served[0].create_token(1, 60).text, f"--state={tmp_path / 'a'}", address]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        silent.settimeout(20)
        silent.accept()
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == code
    assert "internal error" not in said
    assert identity.load(tmp_path / "a") is None


def test_joining_again_makes_another_device_of_it(served: Serving, tmp_path: Path) -> None:
    first, second = (joined(served[0], tmp_path / "state") for _ in range(2))
    assert len(served[0].devices()) == 2
    assert identity.load(tmp_path / "state") == second != first


def test_a_coordinator_that_is_not_the_one_named_is_not_joined(served: Serving, tmp_path: Path) -> None:
    stranger = Token(served[0].address, bytes(32), bytes(16))
    with pytest.raises(RunRefused, match="does not show the certificate that the token names"):
        joined(served[0], tmp_path / "state", stranger)
    unknown = dataclasses.replace(served[0].create_token(1, 60), secret=bytes(16))
    with pytest.raises(RunRefused, match="hangs up when it sees this device's certificate or token"):
        joined(served[0], tmp_path / "state", unknown)
    assert not (tmp_path / "state/identity.json").exists()


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """An address where something else listens: it says `answer` and hangs up, or, None, says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line, _ = server.accept()
                    if answer is None:
                        held.append(line)
                        continue
                    line.sendall(answer)
                    line.close()

        held: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for line in held:
            line.close()


def test_each_step_that_fails_is_told_with_the_address_and_what_to_try(tmp_path: Path) -> None:
    def why(address: str) -> str:
        with pytest.raises(ConnectionFailed) as caught:
            join.join(Token(address, bytes(32), bytes(16)), patience=0.0)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    port = free_port()
    assert why(f"127.0.0.1:{port}").startswith(f"no connection to 127.0.0.1:{port}: Connection refused; check that the coordinator runs")
    assert why("no-such-host.invalid:443").startswith("the name no-such-host.invalid is not known here; check the address")
    with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        assert why(address).startswith(f"{address} takes connections but does not speak TLS 1.3")
        assert "check the port" in why(address)


def pretending(folder: Path, begin: datetime.datetime, end: datetime.datetime) -> tuple[bytes, Path]:
    """An authority, and a coordinator's certificate and key of it in a file, valid for that time only."""
    root = authority.new_authority()
    issuer = x509.load_pem_x509_certificate(root.certificate)
    key = identity.NewKey()._key
    made = x509.CertificateBuilder(
        issuer.subject,
        x509.load_pem_x509_certificate(authority.new_server(root).certificate).subject,
        key.public_key(),
        1,
        begin,
        end,
        [x509.Extension(x509.SubjectAlternativeName.oid, False, x509.SubjectAlternativeName([x509.DNSName("coordinator.edge-zo")]))],
    )
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    signed = made.sign(load_pem_private_key(root.key, None), hashes.SHA256())  # type: ignore[arg-type]
    path = folder / "server.pem"
    path.write_bytes(identity.private_pem(key) + signed.public_bytes(Encoding.PEM) + root.certificate)
    return root.certificate, path


def guest(root: str, address: str) -> Identity:
    """Who has a token that nobody knows."""
    return join.guest(Token(address, bytes(32), bytes(16)), address, root)


def why_not(address: str, who: Identity) -> str:
    with pytest.raises((ConnectionFailed, RunRefused)) as caught:
        reach.check(address, who)
    return str(caught.value)


@contextlib.contextmanager
def speaking_tls(path: Path) -> Iterator[str]:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), context.wrap_socket(line, server_side=True) as channel:
                    channel.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("years", "said"), [(range(1, 2), "not yet valid"), (range(-2, -1), "has expired")], ids=["early", "late"])
def test_a_clock_by_which_the_coordinators_certificate_is_not_valid_is_named(tmp_path: Path, years: range, said: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    begin, end = (now + datetime.timedelta(365 * year) for year in (years.start, years.stop))
    root, path = pretending(tmp_path, begin, end)
    with speaking_tls(path) as address:
        told = why_not(address, guest(root.decode(), address))
    assert said in told
    assert f"this device's clock says {now:%Y-%m-%d}; set it if that is wrong" in told


def test_another_authority_is_named_without_talk_of_clocks(served: Serving) -> None:
    told = why_not(served[0].address, guest(authority.new_authority().certificate.decode(), served[0].address))
    assert "is not to be trusted: certificate signature failure; is it the coordinator of this fleet" in told
    assert "clock" not in told


def test_a_certificate_that_ran_out_is_told_with_both_dates(served: Serving) -> None:
    stranger = guest(served[0].authority.certificate.decode(), served[0].address)
    told = why_not(served[0].address, dataclasses.replace(stranger, expires=86400))
    assert "ran out on 1970-01-02" in told
    assert f"clock says {time.strftime('%Y-%m-%d', time.gmtime())}" in told
    assert "join again with a new token" in told


def test_certificates_are_valid_whatever_a_devices_clock_says(served: Serving, tmp_path: Path) -> None:
    found = joined(served[0], tmp_path / "state")
    for text in (found.certificate.encode(), *(pair.certificate for pair in (served[0].authority, served[0].server))):
        assert x509.load_pem_x509_certificate(text).not_valid_before_utc.year == 1970
    for pair in (served[0].authority, served[0].server):
        assert x509.load_pem_x509_certificate(pair.certificate).not_valid_after_utc.year == 9999


def test_all_the_way_to_a_coordinator_that_takes_the_certificate(served: Serving, tmp_path: Path) -> None:
    reach.check(served[0].address, joined(served[0], tmp_path / "state"))


# --- renewal ---


def test_an_agent_renews_its_certificate_in_time_and_goes_on(bert_bundle: Bundle, tmp_path: Path) -> None:
    days = 60 / 86400  # with 20 s left it is renewed; time passes by giving it one of 10 s
    with serving(tmp_path, bert_bundle, rounds=6, round=Round(1, 1, 30.0), certificate_days=days) as (fleet, coordinator):
        state = tmp_path / "state"
        before = joined(fleet, state)
        peer = authority.read_peer(before.certificate.encode(), fleet.authority.certificate)
        key = identity.NewKey()
        old = fleet.enrol(peer, key.request.x, key.request.y, 15.0)
        key.identity(EnrolReply(old[0], int(old[1])), before.coordinator, before.authority).save(state)
        shares.write(tmp_path / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 40))
        Daemon(AgentConfig(data=str(tmp_path / "a.jsonl"), state=str(state)), threading.Event()).run()
        after = identity.load(state)
        assert after is not None
        assert after.expires - time.time() > 30
        names = {authority.read_peer(each.certificate.encode(), fleet.authority.certificate).device for each in (before, after)}
        assert len(names) == 1
        assert len({before.key, after.key}) == 2
        assert coordinator.call(lambda s: s.rounds.finished)
        assert coordinator.call(lambda s: s.rounds.devices) == 1


def test_an_answer_of_no_use_is_refused(served: Serving) -> None:
    fleet, key = served[0], identity.NewKey()
    other = authority.device_certificate(fleet.authority, "a" * 16, *dataclasses.astuple(identity.NewKey().request), time.time() + 60)
    with pytest.raises(ValueError, match="for another key"):
        key.identity(EnrolReply(other, 0), "a:1", fleet.authority.certificate.decode())
    forged = authority.device_certificate(authority.new_authority(), "a" * 16, *dataclasses.astuple(key.request), time.time() + 60)
    with pytest.raises(ValueError, match="not by the fleet's authority"):
        key.identity(EnrolReply(forged, 0), "a:1", fleet.authority.certificate.decode())
    with pytest.raises(ValueError):  # noqa: PT011
        key.identity(EnrolReply(b"nothing", 0), "a:1", fleet.authority.certificate.decode())


# --- the file ---


@given(
    st.binary(max_size=200)
    | st.dictionaries(st.text(max_size=12), st.text(max_size=5) | st.integers()).map(lambda d: json.dumps(d).encode())
)
def test_a_damaged_identity_is_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("state")
    (folder / "identity.json").write_bytes(content)
    with pytest.raises(StorageError, match="join again with a new token"):
        identity.load(folder)


@pytest.mark.parametrize("field", ["authority", "certificate", "key"])
@pytest.mark.parametrize(
    "damage", [lambda text: text[:100], lambda text: "", lambda text: text.replace("M", "é", 1)], ids=["cut", "empty", "é"]
)
def test_a_damaged_key_or_certificate_is_told_before_anything_is_dialled(field: str, damage: Callable[[str], str], tmp_path: Path) -> None:
    right = guest(authority.new_authority().certificate.decode(), "a:1")
    right.save(tmp_path)
    assert identity.load(tmp_path) == right
    dataclasses.replace(right, **{field: damage(getattr(right, field))}).save(tmp_path)
    with pytest.raises(StorageError, match=r"identity.json is damaged \(.+\); join again with a new token"):
        identity.load(tmp_path)


def test_a_certificate_of_another_key_is_damage(tmp_path: Path) -> None:
    root = authority.new_authority().certificate.decode()
    other = join.guest(Token("a:1", bytes(32), bytes([1] * 16)), "a:1", root)
    dataclasses.replace(guest(root, "a:1"), key=other.key).save(tmp_path)
    with pytest.raises(StorageError, match="is damaged"):
        identity.load(tmp_path)


def test_who_has_not_joined_is_told_how(tmp_path: Path) -> None:
    assert identity.load(tmp_path) is None
    with pytest.raises(ConfigError, match="'edge-agent join TOKEN'"):
        Daemon(AgentConfig(data="x", state=str(tmp_path)), threading.Event())


# --- through an HTTP proxy ---


class Proxy:
    """A real CONNECT proxy on loopback; counts what it let through and how. open: whether it lets anything through; user: whom alone."""

    def __init__(self, *, open: bool = True, user: str = "") -> None:
        self._wanted = f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        self.connections: list[str] = []
        self._open, self._ready = open, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked = request.split()
        self.connections.append(f"{asked[0]} {asked[1]}")
        if not self._open or self._wanted.lower() not in request.lower():
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            writer.close()
            return
        host, _, port = asked[1].rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer), return_exceptions=True)

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


def test_joining_and_calls_go_through_the_proxy_that_the_environment_names(served: Serving, tmp_path: Path) -> None:
    token = served[0].create_token(2, 60)
    with Proxy() as proxy:
        done = agent(token, tmp_path / "a", https_proxy=f"http://{proxy.address}", no_proxy="")
        assert done.returncode == 0, done.stderr
        assert proxy.connections == [f"CONNECT {served[0].address}"] * 2  # once for what the token pins, once for the call
        done = agent(token, tmp_path / "b", https_proxy=f"http://{proxy.address}", no_proxy="localhost,127.0.0.1")
        assert done.returncode == 0, done.stderr
        assert len(proxy.connections) == 2


def test_a_proxy_is_told_user_and_password_of_its_url(served: Serving, tmp_path: Path) -> None:
    with Proxy(user="pi:straw@berry") as proxy:
        done = agent(served[0].create_token(1, 60), tmp_path / "a", https_proxy=f"http://pi:straw%40berry@{proxy.address}", no_proxy="")
        assert done.returncode == 0, done.stderr
        assert len(proxy.connections) == 2
        done = agent(served[0].create_token(1, 60), tmp_path / "b", https_proxy=f"http://pi:raspberry@{proxy.address}", no_proxy="")
    assert done.returncode == 6
    assert f"through the proxy {proxy.address}: Tunnel connection failed: 403 Forbidden" in done.stderr
    assert "raspberry" not in done.stderr


def test_a_proxy_that_refuses_or_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def why() -> str:
        with pytest.raises(ConnectionFailed) as caught:
            reach.presented("10.1.2.3:443")
        return str(caught.value)

    monkeypatch.setenv("no_proxy", "")
    with Proxy(open=False) as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
        assert f"no connection to 10.1.2.3:443 through the proxy {proxy.address}: Tunnel connection failed: 403 Forbidden" in why()
    assert f"through the proxy {proxy.address}: Connection refused; check the proxy" in why()
