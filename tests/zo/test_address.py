"""Which addresses name this machine only."""

import socket

import pytest

from zo.address import free_port, is_loopback, listens


@pytest.mark.parametrize(
    "address", ["127.0.0.1:7600", "127.0.0.1:0", "localhost:7600", "127.9.9.9:1", "127.255.255.254:1", "[::1]:7600", "::1:7600"]
)
def test_loopback_has_several_names(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:7600",
        "192.168.1.2:7600",
        "128.0.0.1:7600",
        "[::]:7600",
        "[fe80::1]:7600",
        "example.org:7600",
        "localhost.example:1",
        "127.0.0.1.example:1",
        "127.1:7600",
        "notlocalhost:7600",
        "7600",
        ":7600",
        "",
        "127.0.0.1",
        "localhost",
        "unix:/tmp/socket",
    ],
)
def test_everything_else_is_none(address: str) -> None:
    assert not is_loopback(address)


def test_an_address_is_listened_at_while_a_socket_accepts() -> None:
    port = free_port()
    assert not listens(f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", port)):
        assert listens(f"127.0.0.1:{port}")
    assert not listens(f"127.0.0.1:{port}")
