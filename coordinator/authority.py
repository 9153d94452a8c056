"""The certificates of a fleet: its authority, the coordinator's own, those of devices, and what stands for a token (library: cryptography).

All are valid from 1970 on, and the authority's and the coordinator's for ever: a device whose clock is wrong can still tell who
answers. What a device may do is decided by the coordinator's clock and list.
"""

import datetime
from functools import lru_cache
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from zo.token import SERVER_NAME, Token

UTC = datetime.UTC
BEGIN, NEVER = datetime.datetime(1970, 1, 1, tzinfo=UTC), datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280, 4.1.2.5
CURVE = ec.SECP256R1()


class Pair(NamedTuple):
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


class Peer(NamedTuple):
    """Who holds a certificate, as far as the certificate tells. key: SHA-256 of the public key. device: its id, in hex, or "" """

    key: bytes
    device: str
    expires: float


def new_authority() -> Pair:
    """The root of a fleet: it vouches for the coordinator and for every device."""
    key = ec.generate_private_key(CURVE)
    return Pair(_pem(_signed("edge-zo fleet", key.public_key(), "edge-zo fleet", key, NEVER, ca=True)), _secret(key))


def new_server(authority: Pair) -> Pair:
    """A coordinator's certificate, with that of the authority behind it, and its key."""
    key = ec.generate_private_key(CURVE)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH
    made = _issued("coordinator", key.public_key(), authority, NEVER, purpose, SERVER_NAME)
    return Pair(_pem(made) + authority.certificate, _secret(key))


def device_certificate(authority: Pair, device: str, x: bytes, y: bytes, expires: float) -> bytes:
    """For a device's public key, in DER. ValueError where the coordinates are of no point on the curve."""
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), CURVE)
    until = datetime.datetime.fromtimestamp(expires, UTC)
    return _issued(device, numbers.public_key(), authority, until, ExtendedKeyUsageOID.CLIENT_AUTH).public_bytes(Encoding.DER)


def token_root(token: Token) -> tuple[bytes, bytes]:
    """What the coordinator keeps of a token: SHA-256 of its public key, and the root (PEM) that TLS then trusts. Neither is secret."""
    key, name = token.key(), f"edge-zo token {token.name}"
    return key_hash(key.public_key()), _pem(_signed(name, key.public_key(), name, key, NEVER, ca=True))


def fingerprint(certificate: bytes) -> bytes:
    """SHA-256 of a PEM certificate's DER form: what a token pins."""
    return x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256())


def check(pair: Pair, issuer: Pair) -> None:
    """ValueError where a certificate and a key cannot be read, do not belong together, or are not of this issuer."""
    try:
        found, root = (x509.load_pem_x509_certificate(each.certificate) for each in (pair, issuer))
        alike = load_pem_private_key(pair.key, None).public_key() == found.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("damaged") from None
    try:
        found.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        raise ValueError("not signed by the authority of this fleet") from None
    if not alike:
        raise ValueError("they do not belong together")


def key_hash(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of a public key."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize()


@lru_cache(maxsize=16384)
def read_peer(certificate: bytes, authority: bytes) -> Peer:
    """Of a certificate (PEM) whose key the TLS handshake has proven.

    `device` is empty unless the authority itself has signed it: whoever has a token's secret can sign certificates that TLS accepts.
    ValueError where it is of a kind that nobody here issues.
    """
    try:
        found, root = x509.load_pem_x509_certificate(certificate), x509.load_pem_x509_certificate(authority)
        key = found.public_key()
    except (UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError(str(error)) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("its key is on no elliptic curve")
    device = ""
    try:
        found.verify_directly_issued_by(root)
        names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        purposes = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CLIENT_AUTH in purposes:
            device = str(names[0].value)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, IndexError, x509.ExtensionNotFound):
        pass
    return Peer(key_hash(key), device, found.not_valid_after_utc.timestamp())


def _issued(
    name: str, public: ec.EllipticCurvePublicKey, authority: Pair, until: datetime.datetime, purpose: x509.ObjectIdentifier, host: str = ""
) -> x509.Certificate:
    root, key = x509.load_pem_x509_certificate(authority.certificate), load_pem_private_key(authority.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = str(root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    return _signed(name, public, issuer, key, until, purpose=purpose, host=host)


def _signed(
    name: str,
    public: ec.EllipticCurvePublicKey,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    until: datetime.datetime,
    *,
    ca: bool = False,
    purpose: x509.ObjectIdentifier | None = None,
    host: str = "",
) -> x509.Certificate:
    made = x509.CertificateBuilder().subject_name(_name(name)).issuer_name(_name(issuer)).public_key(public)
    made = made.serial_number(x509.random_serial_number()).not_valid_before(BEGIN).not_valid_after(until)
    made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
    if purpose:
        made = made.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if host:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    return made.sign(key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _secret(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
