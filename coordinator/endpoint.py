"""Where a server listens: address:port, or [address]:port."""

import errno
import os
import re
import socket

from zo.errors import ConfigError, ConnectionFailed

_FORM = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s:\[\]/]+)):([0-9]{1,5})")


def parse(setting: str, text: str) -> tuple[str, int]:
    """Address, without brackets, and port; 0 is any that is free. ConfigError, which names the setting, where it is none."""
    found = _FORM.fullmatch(text)
    if not found or int(found[3]) > 65535:
        raise ConfigError(
            f"{setting} must be address:port or [address]:port, such as 127.0.0.1:7600, with a port up to 65535, not {text!r}"
        )
    return found[1] or found[2], int(found[3])


def check_free(text: str, host: str, port: int) -> None:
    """ConnectionFailed where nobody can listen there now; gRPC would say so in lines of its own. text: as the operator wrote it."""
    try:
        failed = [_bound(family, place) for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise ConnectionFailed(f"cannot listen on {text}: {getattr(error, 'strerror', error)}; correct --listen") from None
    if errno.EADDRINUSE in failed:
        raise ConnectionFailed(f"cannot listen on {text}: the port is in use; choose another with --listen, or stop who has it")
    if all(failed):  # one of a name's addresses may be of a kind that this machine lacks
        raise ConnectionFailed(f"cannot listen on {text}: {os.strerror(failed[0])}; choose another address or port with --listen")


def _bound(family: int, place: tuple[object, ...]) -> int:
    """0, or why not (errno)."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        return error.errno or -1
    return 0
