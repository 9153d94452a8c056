"""What every kind of failure of a real call becomes."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from edge_agent.link import Link, Rejoin, Stopped, Unreachable
from zo import wire
from zo.address import free_port
from zo.errors import ConfigError, RunRefused
from zo.messages import JoinRequest, ReportReply, Verdict, WorkRequest

Serve = Callable[[Callable[[Any, grpc.ServicerContext], bytes]], Link]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(answer): a link to a server that answers every call so."""
    opened: list[Any] = []

    def start(answer: Callable[[Any, grpc.ServicerContext], bytes]) -> Link:
        server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(answer)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(wire.SERVICE, {method.name: handler for method in wire.METHODS}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        link = Link(f"127.0.0.1:{port}", threading.Event(), insecure_loopback=True)
        opened.append((server, link))
        return link

    yield start
    for server, link in opened:
        link.close()
        server.stop(0).wait()


def refusing(code: grpc.StatusCode) -> Callable[[Any, grpc.ServicerContext], bytes]:
    return lambda _, context: context.abort(code, "so it is")


AGAIN = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED", "UNKNOWN", "INTERNAL")
ANEW = ("NOT_FOUND", "OUT_OF_RANGE")


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=lambda code: code.name)
def test_every_status_is_tried_again_or_joined_again_or_final(code: grpc.StatusCode, serve: Serve) -> None:
    link = serve(refusing(code))
    expected = Unreachable if code.name in AGAIN else Rejoin if code.name in ANEW else RunRefused
    with pytest.raises(expected, match="so it is") as caught:
        link.ask(JoinRequest(1, 2))
    if expected is RunRefused:
        assert str(caught.value) == f"the coordinator at {link.address} refused: so it is ({code.name.lower().replace('_', ' ')})"


def test_an_answer_comes_back_as_a_message(serve: Serve) -> None:
    link = serve(lambda data, _: wire.encode(ReportReply(Verdict(wire.decoder(WorkRequest)(data).device))))
    path = next(method.path for method in wire.METHODS if method.request is WorkRequest)
    link._calls[WorkRequest] = link._channel.unary_unary(path, None, wire.decoder(ReportReply))
    assert link.ask(WorkRequest(1, 3, 0, 0, "fp32")) == ReportReply(Verdict.LATE)


def test_an_answer_that_is_no_message_is_tried_again(serve: Serve) -> None:
    with pytest.raises(Unreachable):  # grpc tells it as INTERNAL
        serve(lambda *_: b"\xff" * 9).ask(JoinRequest(1, 2))


def test_nobody_there_can_be_tried_again() -> None:
    link = Link(f"127.0.0.1:{free_port()}", threading.Event(), insecure_loopback=True)
    for _ in range(2):
        with pytest.raises(Unreachable):
            link.ask(JoinRequest(1, 2))
    link.close()


def test_a_server_that_comes_later_is_found_by_the_same_link() -> None:
    port = free_port()
    link = Link(f"127.0.0.1:{port}", threading.Event(), insecure_loopback=True)
    with pytest.raises(Unreachable):
        link.ask(JoinRequest(1, 2))
    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(refusing(grpc.StatusCode.NOT_FOUND))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, {"Join": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    until = time.monotonic() + 20
    found: type[Exception] | None = None
    while found is not Rejoin and time.monotonic() < until:
        try:
            link.ask(JoinRequest(1, 2))
        except (Unreachable, Rejoin) as error:
            found = type(error)
        time.sleep(0.05)
    assert found is Rejoin
    link.close()
    server.stop(0).wait()


def test_a_call_under_way_ends_soon_after_a_stop(serve: Serve) -> None:
    done = threading.Event()

    def answer(*_: object) -> bytes:
        done.wait(20)
        return b""

    link = serve(answer)
    threading.Timer(0.2, link._stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        link.ask(JoinRequest(1, 2))
    assert time.monotonic() - began < 5
    done.set()


@pytest.mark.parametrize(
    "address", ["192.168.1.2:7600", "example.org:7600", "0.0.0.0:7600", "[::]:7600", "7600", "", "localhost.example:1"]
)
def test_plaintext_beyond_loopback_is_refused_before_anything_is_sent(address: str) -> None:
    with pytest.raises(ConfigError, match="is no loopback address"):
        Link(address, threading.Event(), insecure_loopback=True)


def test_plaintext_has_to_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="--insecure-loopback"):
        Link("127.0.0.1:7600", threading.Event(), insecure_loopback=False)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"])
def test_loopback_has_several_names(address: str) -> None:
    Link(address, threading.Event(), insecure_loopback=True).close()
