"""Which addresses name this machine only."""

import pytest

from zo.address import is_loopback


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
