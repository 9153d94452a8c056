"""Reaching a coordinator step by step, by plain sockets: to fetch what a token pins, and to tell at which step a connection fails."""

import base64
import contextlib
import http.client
import os
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from edge_agent.identity import Identity
from zo.errors import ConnectionFailed, RunRefused
from zo.token import SERVER_NAME

TIMEOUT = 10.0  # seconds, of each step, at most
ANSWER = 3.0  # seconds in which a coordinator that turns a certificate away has hung up


def proxy(host: str) -> tuple[str, dict[str, str]]:
    """host:port of the HTTP proxy that the environment names for a host, as gRPC reads it, and headers for it; empty without one."""
    for name in ("no_grpc_proxy", "no_proxy"):
        if name in os.environ:
            suffixes = [each.strip() for each in os.environ[name].split(",")]
            if any(each and host.endswith(each) for each in suffixes):
                return "", {}
            break
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        if os.environ.get(name):
            user, _, place = urlsplit(os.environ[name]).netloc.rpartition("@")
            secret = base64.b64encode(unquote(user).encode()).decode()
            return place, {"Proxy-Authorization": f"Basic {secret}"} if user else {}
    return "", {}


def presented(address: str) -> list[bytes]:
    """The certificates (DER) shown at an address, its own first; nothing about them is checked. ConnectionFailed where there are none."""
    context = _narrowed(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with _tls(address, context) as channel:
        if hasattr(channel, "get_unverified_chain"):  # Python 3.13
            return list(channel.get_unverified_chain())
        inner = channel._sslobj  # type: ignore[attr-defined]  # 3.11 and 3.12 have it under this name only
        return [_der(each) for each in inner.get_unverified_chain()]


def check(address: str, identity: Identity, timeout: float = TIMEOUT) -> None:
    """Go all the way to a coordinator that takes this identity. timeout: seconds, of each step.

    ConnectionFailed or RunRefused tell where it ends, and what to try.
    """
    with _tls(address, _narrowed(identity.context()), timeout) as channel:
        channel.settimeout(min(ANSWER, timeout))
        try:
            if channel.recv(1):  # the beginning of HTTP/2
                return
        except TimeoutError:
            raise ConnectionFailed(f"{address} shows the right certificate, but does not answer; it may be busy or stopping") from None
        except OSError:
            pass
    raise RunRefused(_turned_away(address, identity.expires))


def _turned_away(address: str, expires: float) -> str:
    if expires and expires < time.time():
        return (
            f"{address} hangs up when it sees this device's certificate, which ran out on {_day(expires)} (this device's clock says"
            f" {_day(time.time())}); set the clock if that is wrong, else join again with a new token"
        )
    return (
        f"{address} hangs up when it sees this device's certificate or token: it is of another fleet, has run out by the"
        " coordinator's clock, or was removed; join again with a new token"
    )


@contextlib.contextmanager
def _tls(address: str, context: ssl.SSLContext, timeout: float = TIMEOUT) -> Iterator[ssl.SSLSocket]:
    with _connected(address, timeout) as line:
        try:
            channel = context.wrap_socket(line, server_hostname=SERVER_NAME)
        except ssl.SSLCertVerificationError as error:
            clock = f" (this device's clock says {_day(time.time())}; set it if that is wrong)" if error.verify_code in (9, 10) else ""
            raise ConnectionFailed(
                f"{address} shows a certificate that is not to be trusted: {error.verify_message}{clock}; is it the coordinator of this"
                " fleet, or does something between intercept TLS? If it was set up anew, join again with a new token"
            ) from None
        except (ssl.SSLError, OSError) as error:
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error or type(error).__name__
            raise ConnectionFailed(f"{address} takes connections but does not speak TLS 1.3 ({why}); check the port") from None
        with channel:
            yield channel


@contextlib.contextmanager
def _connected(address: str, timeout: float) -> Iterator[socket.socket]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    via, headers = proxy(host)
    try:
        if via:
            tunnel = http.client.HTTPConnection(via, timeout=timeout)
            tunnel.set_tunnel(host, int(port), headers)
            tunnel.connect()
            line = tunnel.sock
        else:
            line = socket.create_connection((host, int(port)), timeout)
    except socket.gaierror:
        raise ConnectionFailed(f"the name {via or host} is not known here; check the address, and that this device has DNS") from None
    except (OSError, http.client.HTTPException) as error:
        through = f" through the proxy {via}" if via else ""
        hint = "check the proxy, and that it may reach that port" if via else "check that the coordinator runs, its port and any firewall"
        why = "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or error
        raise ConnectionFailed(f"no connection to {address}{through}: {why}; {hint}") from None
    with line:
        line.settimeout(timeout)
        yield line


def _narrowed(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # there the coordinator shows its certificate before it asks for one
    context.set_alpn_protocols(["h2"])
    return context


def _der(certificate: object) -> bytes:
    text: str = certificate.public_bytes()  # type: ignore[attr-defined]
    return ssl.PEM_cert_to_DER_cert(text)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
