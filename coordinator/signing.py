"""The key that signs the heads of a run's tiles."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from zo.disk import Disk, replace_secret
from zo.errors import StorageError


def signing_key(path: Path, disk: Disk | None = None) -> Ed25519PrivateKey:
    """The key in a PEM file that only its owner may read; made if there is none. StorageError where that cannot be."""
    try:
        if not path.exists():
            made = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            replace_secret(disk or Disk(), path, made)
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise StorageError(f"signing key {path} cannot be read or made: {error.strerror}; check the path and its permissions") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"{path} is no unencrypted Ed25519 private key in PEM; restore it, or name a file that does not exist yet")
    return key


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes by which devices check what the key signs."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
