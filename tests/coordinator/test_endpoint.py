"""Addresses to listen on."""

import socket

import pytest

from coordinator import endpoint
from zo.errors import ConfigError, ConnectionFailed


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7600", "127.0.0.1", 7600),
        ("[::1]:0", "::1", 0),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
        ("a-b.example:1", "a-b.example", 1),
    ],
)
def test_host_and_port_are_told_apart(text: str, host: str, port: int) -> None:
    assert endpoint.parse("listen", text) == (host, port)


WRONG = [
    "",
    ":",
    ":7600",
    "7600",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:99999",
    "127.0.0.1:-1",
    "127.0.0.1:x",
    "::1:7600",
    "unix:/a",
    "a b:1",
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_address_and_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        endpoint.parse("listen", text)
    expected = "listen must be address:port or [address]:port, such as 127.0.0.1:7600, with a port up to 65535, not "
    assert str(caught.value) == f"{expected}{text!r}"


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionFailed, match=r"cannot listen on here:1: the port is in use; choose another with --listen"):
            endpoint.check_free("here:1", "127.0.0.1", port)
    endpoint.check_free("here:1", "127.0.0.1", port)


@pytest.mark.parametrize(("host", "said"), [("192.0.2.1", "Cannot assign requested address"), ("none.invalid", "correct --listen")])
def test_an_address_of_another_machine_or_of_none_is_told(host: str, said: str) -> None:
    with pytest.raises(ConnectionFailed, match=said):
        endpoint.check_free(host, host, 0)
