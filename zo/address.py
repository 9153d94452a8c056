"""Addresses of the form `host:port`."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether `host:port` names this machine only: localhost, 127.x.x.x or [::1]."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
