"""Who this device is to a coordinator: a key made here, and the certificate that it was given; one file that only its owner may read."""

import base64
import contextlib
import json
import os
import ssl
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zo.disk import Disk, replace_secret
from zo.errors import StorageError
from zo.messages import EnrolReply, EnrolRequest
from zo.structure import StructureError, from_plain
from zo.token import is_address

NAME = "identity.json"
LATEST = 253_402_300_799  # the last second of the year 9999: later ones have no date


@dataclass(frozen=True)
class Identity:
    """coordinator: its address when this was issued. authority, certificate, key: PEM. expires: seconds since 1970, by the coordinator."""

    coordinator: str
    authority: str
    certificate: str
    key: str
    expires: int

    def __post_init__(self) -> None:
        if not is_address(self.coordinator):
            raise ValueError(f"coordinator = {self.coordinator!r} is no address")
        if not 0 <= self.expires <= LATEST:
            raise ValueError(f"expires = {self.expires} is no date")

    def context(self) -> ssl.SSLContext:
        """What TLS takes to speak as this device, to its fleet's coordinator only. ssl.SSLError or ValueError where that is damaged."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.load_verify_locations(cadata=self.authority.encode("ascii").decode())
        with _as_file(f"{self.key}{self.certificate}") as path:
            made.load_cert_chain(path, password="")  # or it would ask for one
        return made

    def save(self, state: Path, disk: Disk | None = None) -> None:
        """Keep it in the state folder, durably, in place of any other. StorageError where that cannot be."""
        try:
            replace_secret(disk or Disk(), state / NAME, (json.dumps(asdict(self), indent=1) + "\n").encode())
        except OSError as error:
            raise StorageError(f"{state / NAME}: {error.strerror}; give a folder that can be written with --state") from None


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Where a library can read a secret that must not be on any disk."""
    descriptor = os.memfd_create("identity")
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def load(state: Path) -> Identity | None:
    """The identity in a state folder; None where this device has not joined. StorageError where it cannot be read."""
    path = state / NAME
    try:
        found: Identity = from_plain(Identity, json.loads(path.read_bytes()))
        found.context()  # since gRPC only tells of what is no certificate when it dials
        return found
    except FileNotFoundError:
        return None
    except ssl.SSLError as error:
        raise StorageError(f"{path} is damaged ({error.reason or error}); join again with a new token") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; check who owns it, or give another folder with --state") from None
    except (ValueError, StructureError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({error}); join again with a new token") from None


class NewKey:
    """A private key on P-256, made here, and what asks for its certificate. It leaves in no message."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec  # here, since it costs a device 7 MB

        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def request(self) -> EnrolRequest:
        """The public half."""
        numbers = self._key.public_key().public_numbers()
        return EnrolRequest(numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big"))

    def identity(self, reply: EnrolReply, coordinator: str, authority: str) -> Identity:
        """With the certificate that was given for it. ValueError where that is for another key, or not by that authority."""
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature

        made = x509.load_der_x509_certificate(reply.certificate)
        try:
            made.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.encode()))
        except (InvalidSignature, TypeError):
            raise ValueError("the certificate is not by the fleet's authority") from None
        if made.public_key() != self._key.public_key():
            raise ValueError("the certificate is for another key")
        key = private_pem(self._key)
        return Identity(coordinator, authority, pem(reply.certificate), key.decode(), min(reply.expires, LATEST))


def private_pem(key: Any) -> bytes:
    """A private key as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    made: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made


def pem(certificate: bytes) -> str:
    """A certificate in DER as PEM."""
    text = base64.b64encode(certificate).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))
