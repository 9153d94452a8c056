"""The small server gives tiles, checkpoints and the head, and nothing else that lies near."""

import contextlib
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from coordinator.tile_server import TileServer, serve
from zo.errors import ConfigError, ConnectionFailed

FILES = ("head", "entries/000", "entries/x001/234", "entries/x001/235.p/17", "checkpoints/300")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TileServer]:
    """A server of a folder beside a secret."""
    folder = tmp_path_factory.mktemp("served") / "tiles"
    for name in (*FILES, "entries/000.new", "head.new", "key.pem", "../secret", "entries/readme", "checkpoints/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    server = serve(folder, "127.0.0.1:0")
    yield server
    server.close()


def ask(address: str, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(address, timeout=5)
    connection.request(method, path)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_given_with_how_long_it_may_be_cached(server: TileServer, name: str) -> None:
    response, content = ask(server.address, f"/{name}")
    assert (response.status, content) == (200, name.encode())
    wanted = "no-cache" if name == "head" else "public, max-age=31536000, immutable"
    assert response.headers["Cache-Control"] == wanted


def test_a_head_request_gives_the_size_and_no_content(server: TileServer) -> None:
    with socket.create_connection(server.server_address[:2], timeout=5) as connection:
        connection.sendall(b"HEAD /entries/000?now HTTP/1.1\r\nConnection: close\r\n\r\n")
        headers, _, content = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 200")
    assert b"Content-Length: 11\r\n" in headers
    assert content == b""


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/entries",
        "/entries/",
        "/entries/x001",
        "/entries/x001/235.p",
        "/entries/001",
        "/entries/000.new",
        "/entries/readme",
        "/checkpoints/x",
        "/head.new",
        "/head/",
        "/key.pem",
        "/../secret",
        "/%2e%2e/secret",
        "/entries/../key.pem",
        "/entries/../../secret",
        "//secret",
        "/entries/²²²",
        "/entries/000%0a",
        "head",
    ],
)
def test_nothing_else_is(server: TileServer, path: str) -> None:
    with socket.create_connection(server.server_address[:2], timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode("latin-1"))
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 404"), answer
    assert b"secret" not in answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_done_but_reading(server: TileServer, method: str) -> None:
    assert ask(server.address, "/head", method)[0].status == 501


def test_many_can_read_at_once_and_one_that_says_nothing_holds_nobody_up(server: TileServer) -> None:
    with socket.create_connection(server.server_address[:2]):
        connections = [http.client.HTTPConnection(server.address, timeout=5) for _ in range(20)]
        for connection in connections:
            connection.request("GET", "/head")
        for connection in connections:
            assert connection.getresponse().read() == b"head"
            connection.request("GET", "/entries/000")
            assert connection.getresponse().read() == b"entries/000"
            connection.close()


class Narrow(TileServer):
    """Has room for three."""

    MOST = 3


def test_connections_beyond_the_most_are_closed_until_there_is_room(tmp_path: Path) -> None:
    (tmp_path / "head").write_bytes(b"head")
    server = Narrow(tmp_path, "127.0.0.1", 0)
    held = [socket.create_connection(server.server_address[:2], timeout=5) for _ in range(3)]
    with socket.create_connection(server.server_address[:2], timeout=5) as beyond:
        assert beyond.recv(1) == b""
    held.pop().close()

    def answered() -> bool:
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            return ask(server.address, "/head")[1] == b"head"
        return False

    wait_until(answered)
    for each in held:
        each.close()
    server.close()


def test_a_port_that_is_taken_is_said_to_be(server: TileServer, tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match=f"^tiles cannot be served on {server.address}: Address already in use; "):
        serve(tmp_path, server.address)


def test_a_closed_server_leaves_its_port(tmp_path: Path) -> None:
    address = "127.0.0.1:0"
    for _ in range(2):
        server = serve(tmp_path, address)
        address = server.address
        server.close()
    with pytest.raises(ConnectionRefusedError):
        ask(address, "/head")


def test_it_serves_on_ipv6(tmp_path: Path) -> None:
    (tmp_path / "head").write_bytes(b"six")
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = serve(tmp_path, "[::1]:0")
    assert server.address.startswith("[::1]:")
    assert ask(server.address, "/head")[1] == b"six"
    server.close()


@pytest.mark.parametrize("listen", ["", "7600", ":7600", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1"])
def test_an_address_without_a_port_is_a_mistake_in_the_configuration(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"must be address:port"):
        serve(tmp_path, listen)
