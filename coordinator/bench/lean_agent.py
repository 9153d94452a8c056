"""A connection that speaks just enough HTTP/2 for unary gRPC calls, one at a time: thousands of them fit one process.

RFC 9113 and the gRPC protocol over it, without what a coordinator does not do: flow control of large replies, padding,
compression. Headers are sent as literals (RFC 7541, 6.2.2), so that neither side keeps a table.
"""

import asyncio
import struct

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER = 9  # bytes before every frame
NO_TABLE = struct.pack(">HI", 1, 0)  # SETTINGS_HEADER_TABLE_SIZE = 0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class CallFailed(Exception):
    """A call ended without a reply."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame as it goes over the wire."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(path: str) -> bytes:
    """The header block of a call."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers"}
    fields["content-type"] = "application/grpc"
    return b"".join(b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields.items())


class LeanAgent(asyncio.Protocol):
    """One connection. Made by `connect`."""

    def __init__(self) -> None:
        self._stream, self._rest, self._reply = -1, b"", b""
        self._answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(PREFACE + frame(SETTINGS, 0, 0, NO_TABLE))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self._fail("the connection was closed")

    async def call(self, header: bytes, request: bytes) -> bytes:
        """The reply to one call. header: of `headers`. CallFailed where there is none."""
        self._answered, self._reply = asyncio.get_running_loop().create_future(), b""
        self._stream += 2
        message = b"\0" + struct.pack(">I", len(request)) + request
        self._transport.write(frame(HEADERS, END_HEADERS, self._stream, header) + frame(DATA, END_STREAM, self._stream, message))
        return await self._answered

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take the frames out of what has come."""
        data, start = self._rest + data, 0
        while len(data) - start >= HEADER:
            end = start + HEADER + int.from_bytes(data[start : start + 3], "big")
            if len(data) < end:
                break
            kind, flags, stream = struct.unpack_from(">BBI", data, start + 3)
            self._take(kind, flags, stream, data[start + HEADER : end])
            start = end
        self._rest = data[start:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == GOAWAY:
            self._fail("the server says goodbye")
        elif stream == self._stream and kind == DATA:
            self._reply += payload
        elif stream == self._stream and kind == RESET:
            self._fail("the server has reset the call")
        elif stream == self._stream and kind == HEADERS and flags & END_STREAM:
            if len(self._reply) < 5:  # a status that is not OK comes without a message
                self._fail(f"refused: {payload!r}")
            elif not self._answered.done():
                self._answered.set_result(self._reply[5:])

    def _fail(self, why: str) -> None:
        if not self._answered.done():
            self._answered.set_exception(CallFailed(why))


async def connect(address: str) -> LeanAgent:
    """A connection to "address:port"."""
    host, port = address.rsplit(":", 1)
    return (await asyncio.get_running_loop().create_connection(LeanAgent, host, int(port)))[1]
