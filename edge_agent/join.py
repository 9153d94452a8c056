"""Joining a fleet by a token, and renewing the certificate that came of it."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent import reach
from edge_agent.identity import Identity, NewKey, pem, private_pem
from edge_agent.link import Link, Rejoin, Unreachable
from zo.errors import ConnectionFailed, RunRefused
from zo.messages import EnrolReply
from zo.token import Token

log = logging.getLogger(__name__)

PATIENCE, PAUSE = 4.0, 1.0  # seconds of trying to join, and between tries: a coordinator may be just about to start, an answer get lost


def join(token: Token, address: str = "", record: Callable[[str, bytes], None] | None = None, patience: float = PATIENCE) -> Identity:
    """Make a key, and have it certified. address: where the coordinator is, if not where the token says. record: see Link.
    patience: seconds of trying.

    ConnectionFailed says at which step it did not go on; RunRefused where the token does not work (any more).
    """
    address, key = address or token.address, NewKey()
    until = time.monotonic() + patience
    while True:
        try:
            return _joined(key, guest(token, address, pinned(address, token.fingerprint)), record)
        except ConnectionFailed:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE)


def _joined(key: NewKey, visitor: Identity, record: Callable[[str, bytes], None] | None) -> Identity:
    """The identity that a token's holder gets. ConnectionFailed, or RunRefused."""
    link = Link(visitor.coordinator, threading.Event(), identity=visitor, record=record)
    try:
        return _certified(key, link.ask(key.request), visitor.coordinator, visitor.authority)
    except (Unreachable, Rejoin) as error:
        reach.check(visitor.coordinator, visitor)  # tells why, where that can be seen from here
        raise ConnectionFailed(f"{visitor.coordinator} does not answer: {error}") from None
    finally:
        link.close()


def renewed(identity: Identity, ask: Callable[[Any], Any], state: Path) -> Identity:
    """A fresh key and certificate in place of an identity's, kept in the state folder. ask: a call as the present device."""
    key = NewKey()
    made = _certified(key, ask(key.request), identity.coordinator, identity.authority)
    made.save(state)
    log.info("a new certificate, valid until %s", time.strftime("%Y-%m-%d", time.gmtime(made.expires)))
    return made


def pinned(address: str, fingerprint: bytes) -> str:
    """The fleet's authority (PEM), from whoever answers at the address. RunRefused where they do not show the one pinned."""
    for certificate in reach.presented(address):
        if hashlib.sha256(certificate).digest() == fingerprint:
            return pem(certificate)
    raise RunRefused(
        f"{address} does not show the certificate that the token names: it is another coordinator, or something between intercepts TLS;"
        " compare the address, or ask the operator for a new token"
    )


def guest(token: Token, address: str, authority: str) -> Identity:
    """Who a device is until it has joined: the token's key, with a certificate that says so."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    key = token.key()
    made = x509.CertificateBuilder().subject_name(name("joining")).issuer_name(name(f"edge-zo token {token.name}"))
    made = made.public_key(key.public_key()).serial_number(x509.random_serial_number())
    begin, never = datetime.datetime(1970, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)  # whatever the clocks say
    signed = made.not_valid_before(begin).not_valid_after(never).sign(key, hashes.SHA256())
    return Identity(address, authority, signed.public_bytes(Encoding.PEM).decode(), private_pem(key).decode(), 0)


def _certified(key: NewKey, reply: EnrolReply, address: str, authority: str) -> Identity:
    try:
        return key.identity(reply, address, authority)
    except ValueError as error:
        raise RunRefused(f"what {address} sent is of no use: {error}; ask the operator") from None
