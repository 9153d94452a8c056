"""The signed head of a ledger's tiles: how far the ledger goes, and its identity there (zo.tiles says what lies beside it)."""

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_LINE = len("signature \n") + 128

_DIGEST, _COUNT = "([0-9a-f]{64})", "(0|[1-9][0-9]{0,18})"
_FORM = (
    f"edge-zo head 1\ngenesis {_DIGEST}\nbundle {_DIGEST}\nentries {_COUNT}\nchain {_DIGEST}\n"
    f"(?:checkpoint {_COUNT}\nsize {_COUNT}\nsigns {_COUNT}\ndigest {_DIGEST}\n)?"
)


class HeadRefused(ValueError):
    """A head that must not be followed: not signed, of another ledger, going back, or of another history."""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint as a head states it. size: bytes. signs: see zo.checkpoint. digest: BLAKE2b-256 of the file."""

    entry: int
    size: int
    signs: int
    digest: bytes

    @property
    def path(self) -> str:
        """Where it lies."""
        return f"checkpoints/{self.entry}"


@dataclass(frozen=True)
class Head:
    """How far a ledger goes. genesis, bundle: 32 bytes each, of the run. chain: identity of the state after `entries` entries."""

    genesis: bytes
    bundle: bytes
    entries: int
    chain: bytes
    checkpoint: CheckpointFile | None = None
    signature: bytes = field(default=b"", compare=False)

    def signed(self, key: "Ed25519PrivateKey") -> bytes:
        """The head as a file."""
        return replace(self, signature=key.sign(self._text())).encoded

    @property
    def encoded(self) -> bytes:
        """The file that it was read from: what to keep, so that a later head can be held against it."""
        return self._text() + f"signature {self.signature.hex()}\n".encode()

    def _text(self) -> bytes:
        lines = ["edge-zo head 1", f"genesis {self.genesis.hex()}", f"bundle {self.bundle.hex()}"]
        lines += [f"entries {self.entries}", f"chain {self.chain.hex()}"]
        if stated := self.checkpoint:
            lines += [f"checkpoint {stated.entry}", f"size {stated.size}", f"signs {stated.signs}", f"digest {stated.digest.hex()}"]
        return "".join(f"{line}\n" for line in lines).encode()


def read_head(data: bytes, public_key: bytes) -> Head:
    """A head from its file. public_key: 32 bytes, Ed25519. HeadRefused says what is wrong with it."""
    from cryptography.exceptions import InvalidSignature  # here, since it costs a device 7 MB
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    text, line = data[:-SIGNATURE_LINE], data[-SIGNATURE_LINE:]
    match = re.fullmatch(rb"signature ([0-9a-f]{128})\n", line)
    if not match:
        raise HeadRefused("it is not signed")
    signature = bytes.fromhex(match[1].decode())
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text)
    except InvalidSignature:
        raise HeadRefused("it is not signed with the key of this run") from None
    except ValueError:
        raise HeadRefused("the key to check it with is not an Ed25519 public key of 32 bytes") from None
    match = re.fullmatch(_FORM.encode(), text)
    if not match:
        raise HeadRefused("it is signed, but not of form 1, which is all that this version knows; update edge-zo")
    genesis, bundle, entries, chain, *rest = match.groups()
    stated = CheckpointFile(int(rest[0]), int(rest[1]), int(rest[2]), _unhex(rest[3])) if rest[0] else None
    if stated and stated.entry > int(entries):
        raise HeadRefused("it is signed, but its checkpoint lies beyond its entries")
    return Head(_unhex(genesis), _unhex(bundle), int(entries), _unhex(chain), stated, signature)


def _unhex(text: bytes) -> bytes:
    return bytes.fromhex(text.decode())
