"""A coordinator with certificates, and devices that have joined it, inside the test process."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from local_coordinator import LocalCoordinator

from coordinator.fleet import Fleet
from edge_agent import join
from edge_agent.identity import Identity
from edge_agent.link import Link
from zo import wire
from zo.address import free_port
from zo.bundle import Bundle
from zo.token import SERVER_NAME, Token

Serving = tuple[Fleet, LocalCoordinator]


@contextlib.contextmanager
def serving(folder: Path, bundle: Bundle, **changed: Any) -> Iterator[Serving]:
    """A new fleet in a folder, and a coordinator that serves it over TLS on a loopback port."""
    port = free_port()
    fleet = Fleet.make(folder / "fleet", f"127.0.0.1:{port}")
    with LocalCoordinator(bundle, folder / "run.sqlite", port=port, fleet=folder / "fleet", **changed) as coordinator:
        yield fleet, coordinator
    fleet.close()


def joined(fleet: Fleet, state: Path, token: Token | None = None) -> Identity:
    """A new device of the fleet."""
    state.mkdir(parents=True, exist_ok=True)
    made = join.join(token or fleet.create_token(1, 60))
    made.save(state)
    return made


@contextlib.contextmanager
def linked(identity: Identity) -> Iterator[Link]:
    """A line to the coordinator, as this device."""
    link = Link(identity.coordinator, threading.Event(), identity=identity)
    try:
        yield link
    finally:
        link.close()


def status_of(identity: Identity, method: str, data: bytes = b"", *, anonymous: bool = False) -> tuple[grpc.StatusCode, str]:
    """How a call with any bytes ends for whoever holds this identity, or, anonymous, only knows the authority."""
    given = [None if anonymous else each.encode() for each in (identity.key, identity.certificate)]
    credentials = grpc.ssl_channel_credentials(identity.authority.encode(), *given)
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    with grpc.secure_channel(identity.coordinator, credentials, options) as channel:
        try:
            channel.unary_unary(f"/{wire.SERVICE}/{method}")(data, timeout=10)
        except grpc.RpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def forged(identity: Identity, **changed: str) -> Identity:
    """The same with other parts."""
    return dataclasses.replace(identity, **changed)
