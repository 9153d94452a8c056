"""The relay forwards every byte and counts it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from coordinator.demo.relay import Relay
from zo.address import free_port


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends everything back twice."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(taken: socket.socket) -> None:
            with taken:
                while data := taken.recv(1 << 16):
                    taken.sendall(data * 2)

        def serve() -> None:
            while True:
                try:
                    taken = server.accept()[0]
                except OSError:
                    return
                threading.Thread(target=answer, args=(taken,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def exchange(port: int, data: bytes) -> bytes:
    """What comes back for `data`; what came until then where the far end hangs up, with a reset or without."""
    with socket.create_connection(("127.0.0.1", port), 10) as dialled, ThreadPoolExecutor(1) as pool:
        pool.submit(dialled.sendall, data)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while len(found) < 2 * len(data) and (piece := dialled.recv(1 << 16)):
                found += piece
        return found


def test_every_byte_goes_both_ways_and_is_counted(echo: int) -> None:
    relay = Relay(echo)
    data = bytes(range(256)) * 4000
    assert len(exchange(relay.port, data)) == 2 * len(data)
    assert exchange(relay.port, b"ab") == b"abab"
    assert (relay.up, relay.down) == (len(data) + 2, 2 * len(data) + 4)
    relay.close()


def test_connections_stand_side_by_side(echo: int) -> None:
    relay = Relay(echo)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: exchange(relay.port, b"%d" % n * 1000), range(4))) == [b"%d" % n * 2000 for n in range(4)]
    assert relay.up == 4000
    relay.close()


def test_nobody_at_the_far_end_hangs_up_and_a_later_try_gets_through(echo: int) -> None:
    relay = Relay(free_port())
    assert exchange(relay.port, b"a") == b""
    relay._target = echo
    assert exchange(relay.port, b"a") == b"aa"
    relay.close()


def test_a_closed_relay_listens_no_more(echo: int) -> None:
    relay = Relay(echo)
    held = socket.create_connection(("127.0.0.1", relay.port), 5)
    relay.close()
    assert held.recv(1) == b""
    held.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", relay.port), 5)
