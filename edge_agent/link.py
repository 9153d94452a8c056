"""The line to the coordinator: calls that can be interrupted, and two kinds of failure."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import grpc

from edge_agent.identity import Identity
from edge_agent.stopping import Stopped
from zo import wire
from zo.address import is_loopback
from zo.errors import ConfigError, ConnectionFailed, RunRefused
from zo.token import SERVER_NAME

DEADLINE = 45.0  # seconds; above the coordinator's long poll
FRAMING = 300  # bytes of a call besides its messages: headers both ways, and packets of the transport
CONNECT = 20.0  # seconds in which a coordinator has to take a connection and say the first word, at most
LEAST = 2.0  # seconds for the same, whatever the patience
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
    ("grpc.dns_min_time_between_resolutions_ms", 5000),  # a coordinator may have moved
    ("grpc.keepalive_time_ms", 20_000),  # while a call is under way: a line that has died without a word is noticed
    ("grpc.keepalive_timeout_ms", 10_000),
]


def _channel(address: str, identity: Identity | None, connect: float) -> grpc.Channel:
    options: list[tuple[str, int | str]] = [
        *OPTIONS,
        ("grpc.min_reconnect_backoff_ms", int(1000 * connect)),
    ]  # which is also how long a try to connect may take
    if identity is None:
        return grpc.insecure_channel(address, options=options)
    given = (identity.authority, identity.key, identity.certificate)
    options.append(("grpc.ssl_target_name_override", SERVER_NAME))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*(each.encode() for each in given)), options)


class Unreachable(Exception):
    """The coordinator did not answer; the same call may succeed later."""


class Rejoin(Exception):
    """The coordinator does not know this run, device or entry any more; join again and rebuild."""


class Link:
    """A channel to one coordinator. `stop`: when it is set, calls under way end with Stopped.

    identity: by which both sides know each other (TLS); ConfigError where there is none, unless plaintext to a loopback address is
    asked for. record: is given the name and the bytes of every message before it leaves; what it raises keeps the message here.
    patience: seconds after which it is pointless to wait any longer for a connection; 0 for as long as usual.
    """

    def __init__(
        self,
        address: str,
        stop: threading.Event,
        insecure_loopback: bool = False,
        identity: Identity | None = None,
        record: Callable[[str, bytes], None] | None = None,
        patience: float = 0.0,
    ) -> None:
        if insecure_loopback and not is_loopback(address):
            raise ConfigError(f"coordinator = {address!r} is no loopback address; plaintext is spoken to 127.0.0.1 or [::1] only")
        if not insecure_loopback and identity is None:
            raise ConfigError(
                "this device has not joined a fleet: 'edge-agent join TOKEN' does that; or try out plaintext, on this machine only, with"
                " --insecure-loopback"
            )
        self.address, self._stop, self._record = address, stop, record
        self._identity = None if insecure_loopback else identity
        self._step = min(CONNECT, max(LEAST, patience)) if patience else CONNECT
        self._channel = _channel(address, self._identity, self._step)
        self.spend: Callable[[int], object] = lambda size: None  # told the bytes of every message, and of what frames it
        self._calls = {m.request: self._channel.unary_unary(m.path, None, self._decoder(m.reply)) for m in wire.METHODS}

    def ask(self, request: Any) -> Any:
        """Make the call that takes this kind of message. Raises Unreachable, Rejoin, Stopped, or RunRefused."""
        content = wire.encode(request)
        if self._record:
            self._record(type(request).__name__, content)
        self.spend(len(content) + FRAMING)
        call = self._calls[type(request)].future(content, timeout=DEADLINE)
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

    def why(self, error: object) -> str:
        """Why calls fail, in words: the step that does not succeed, and what to try; `error` where that cannot be seen from outside."""
        from edge_agent import reach  # what speaks HTTP takes 3 MB, and few agents need it

        try:
            if self._identity:
                reach.check(self.address, self._identity, min(reach.TIMEOUT, self._step))
        except (ConnectionFailed, RunRefused) as found:
            return str(found)
        return str(error)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _decoder(self, kind: type) -> Callable[[bytes], Any]:
        decode: Callable[[bytes], Any] = wire.decoder(kind)

        def counted(content: bytes) -> Any:
            self.spend(len(content))
            return decode(content)

        return counted

    def _failure(self, error: Any) -> Exception:
        code, details = error.code(), wire.printable(error.details() or "")
        if code in AGAIN:
            return Unreachable(details)
        if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE):
            return Rejoin(details)
        return RunRefused(f"the coordinator at {self.address} refused: {details} ({code.name.lower().replace('_', ' ')})")
