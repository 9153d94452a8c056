"""The string that lets a device join: where the coordinator is, how it is known for the right one, and a secret.

The secret is never sent: it is a private key on P-256 in short, and a device that joins proves in the TLS handshake that it has it.
"""

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zo.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SERVER_NAME = "coordinator.edge-zo"  # in every coordinator's certificate, so that its address may change
PREFIX = "edge-zo-1."
SECRET, FINGERPRINT, CHECK = 16, 32, 4  # bytes
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of the group P-256


@dataclass(frozen=True)
class Token:
    """address: `host:port`. fingerprint: SHA-256 of the fleet's authority, a certificate in DER. secret: 16 random bytes."""

    address: str
    fingerprint: bytes
    secret: bytes

    @property
    def text(self) -> str:
        """One line without spaces."""
        content = self.secret + self.fingerprint + self.address.encode()
        return PREFIX + base64.urlsafe_b64encode(_check(content) + content).decode().rstrip("=")

    @property
    def name(self) -> str:
        """What the token is called where it must not be betrayed: 16 hexadecimal digits."""
        return hashlib.sha256(b"edge-zo token name" + self.secret).hexdigest()[:16]

    def key(self) -> "EllipticCurvePrivateKey":
        """The private key that the secret stands for."""
        from cryptography.hazmat.primitives.asymmetric import ec  # here, since it costs a device 7 MB

        number = int.from_bytes(hashlib.sha512(b"edge-zo token key" + self.secret).digest(), "big")
        return ec.derive_private_key(number % (ORDER - 1) + 1, ec.SECP256R1())


def read(text: str) -> Token:
    """The token that a person gave. ConfigError where it is none, or not all of one."""
    text = text.strip()
    if not text.startswith(PREFIX):
        raise ConfigError(f"that is no token: one begins with {PREFIX}; ask the operator for what 'edge-coordinator token create' prints")
    body = text.removeprefix(PREFIX)
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), b"-_", validate=True)
        content = data[CHECK:]
        if data[:CHECK] != _check(content):
            raise ValueError
        address = content[SECRET + FINGERPRINT :].decode("ascii")
        if not is_address(address):
            raise ValueError
    except ValueError:
        raise ConfigError("the token is cut short or altered; copy the whole line that 'edge-coordinator token create' printed") from None
    return Token(address, content[SECRET : SECRET + FINGERPRINT], content[:SECRET])


def is_address(text: str) -> bool:
    """Whether it has the form host:port, or [address]:port."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host.startswith("[") and host.endswith("]")
    known = bool(bare) and len(bare) <= 253 and all(c.isascii() and (c.isalnum() or c in ".-_:") for c in bare)
    return known and (":" in bare) == bracketed and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536


def _check(content: bytes) -> bytes:
    return hashlib.sha256(b"edge-zo token" + content).digest()[:CHECK]
