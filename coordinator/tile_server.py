"""Handing out a folder of tiles over HTTP: enough for a site; for more, put a web server or CDN before it, or in its place."""

import logging
import os
import re
import shutil
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from coordinator import endpoint
from zo.errors import ConnectionFailed

log = logging.getLogger(__name__)

_FILES = re.compile("/(head|checkpoints/[0-9]+|entries/(x[0-9]{3}/)*[0-9]{3}([.]p/[0-9]+)?)")


def serve(folder: Path, listen: str) -> "TileServer":
    """Hand out a folder that a TileWriter writes to, from a thread of its own. listen: address:port, or [address]:port.

    ConnectionFailed where that is not to be had; ConfigError where it is no such thing.
    """
    host, port = endpoint.parse("tiles.listen", listen)
    try:
        return TileServer(folder, host, port)
    except OSError as error:
        raise ConnectionFailed(f"tiles cannot be served on {listen}: {error.strerror}; choose another address or port") from None


class TileServer(ThreadingMixIn, TCPServer):
    """A server at work. Anybody may read; nothing is listed, and nothing but tiles, checkpoints and the head is given."""

    allow_reuse_address, daemon_threads, request_queue_size = True, True, 128
    MOST = 256  # connections at once, each with a thread; those beyond are closed

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._room = threading.BoundedSemaphore(self.MOST)
        self.folder, self.address_family = folder, socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.1,), name="tiles", daemon=True).start()

    @property
    def address(self) -> str:
        """address:port, with the port that it has."""
        host, port = self.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def close(self) -> None:
        """Stop."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, while there is room."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """That thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""
        log.debug("tiles: %s went away", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: TileServer
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds

    def do_GET(self) -> None:
        name = self.path.partition("?")[0]
        try:
            if not _FILES.fullmatch(name):
                raise FileNotFoundError
            file = (self.server.folder / name[1:]).open("rb")
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.send_header("Cache-Control", "no-cache" if name == "/head" else "public, max-age=31536000, immutable")
            self.end_headers()
            if self.command == "GET":
                shutil.copyfileobj(file, self.wfile)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("tiles: %s " + format, self.address_string(), *args)
