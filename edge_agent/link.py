"""The line to the coordinator: calls that can be interrupted, and two kinds of failure."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import grpc

from edge_agent.stopping import Stopped
from zo import wire
from zo.address import is_loopback
from zo.errors import ConfigError, RunRefused

DEADLINE = 45.0  # seconds; above the coordinator's long poll
FRAMING = 300  # bytes of a call besides its messages: headers both ways, and packets of the transport
PATIENCE = 0.1  # seconds between looks at the stop event while a call is under way
AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}
OPTIONS = [
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.initial_reconnect_backoff_ms", 200),
]


class Unreachable(Exception):
    """The coordinator did not answer; the same call may succeed later."""


class Rejoin(Exception):
    """The coordinator does not know this run, device or entry any more; join again and rebuild."""


class Link:
    """A channel to one coordinator. `stop`: when it is set, calls under way end with Stopped."""

    def __init__(self, address: str, stop: threading.Event, insecure_loopback: bool) -> None:
        if not insecure_loopback:
            raise ConfigError("only plaintext to a loopback address is supported yet; say so with --insecure-loopback")
        if not is_loopback(address):
            raise ConfigError(f"coordinator = {address!r} is no loopback address; plaintext is spoken to 127.0.0.1 or [::1] only")
        self.address, self._stop = address, stop
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self.spend: Callable[[int], object] = lambda size: None  # told the bytes of every message, and of what frames it
        self._calls = {m.request: self._channel.unary_unary(m.path, self._encoded, self._decoder(m.reply)) for m in wire.METHODS}

    def ask(self, request: Any) -> Any:
        """Make the call that takes this kind of message. Raises Unreachable, Rejoin, Stopped, or RunRefused."""
        call = self._calls[type(request)].future(request, timeout=DEADLINE)
        try:
            while True:
                with contextlib.suppress(grpc.FutureTimeoutError):
                    return call.result(timeout=PATIENCE)
                if self._stop.is_set():
                    call.cancel()
                    raise Stopped
        except grpc.FutureCancelledError:
            raise Stopped from None
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _encoded(self, request: Any) -> bytes:
        content = wire.encode(request)
        self.spend(len(content) + FRAMING)
        return content

    def _decoder(self, kind: type) -> Callable[[bytes], Any]:
        decode: Callable[[bytes], Any] = wire.decoder(kind)

        def counted(content: bytes) -> Any:
            self.spend(len(content))
            return decode(content)

        return counted

    def _failure(self, error: Any) -> Exception:
        code, details = error.code(), error.details()
        if code in AGAIN:
            return Unreachable(details)
        if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE):
            return Rejoin(details)
        return RunRefused(f"the coordinator at {self.address} refused: {details} ({code.name.lower().replace('_', ' ')})")
