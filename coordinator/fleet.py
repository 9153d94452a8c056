"""A fleet: its certificates in a folder, and beside them the list of tokens and devices, which outlives any run."""

import contextlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from coordinator import authority, fleet_folder
from coordinator.authority import Peer
from coordinator.fleet_folder import DATABASE, check_address
from zo.disk import Disk
from zo.errors import ConfigError, StorageError
from zo.token import Token

REMEMBERED = 30 * 86400.0  # seconds for which a token that has run out is still answered by name
MOST_USES, MOST_SECONDS = 10**9, 1e9  # of a token


class NotAdmitted(Exception):
    """Somebody who may not come in, and why."""


@dataclass(frozen=True)
class Device:
    """A device that was enrolled. Times: seconds since 1970; revoked, seen: None where that never happened. refused: requests."""

    id: str
    token: str
    enrolled: float
    expires: float
    revoked: float | None
    seen: float | None
    refused: int


class Fleet:
    """The folder of a fleet, opened. StorageError where it cannot be read or written, or is not whole; ConfigError where it holds none."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._clock = folder, clock
        self.authority, self.server, self.address = fleet_folder.read(folder)
        with self._errors():
            self._db = sqlite3.connect(folder / DATABASE, isolation_level=None, timeout=10, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")

    @classmethod
    def make(cls, folder: Path, address: str, disk: Disk | None = None) -> "Fleet":
        """A new fleet, whose coordinator devices reach at `address` (host:port)."""
        fleet_folder.make(folder, address, disk or Disk())
        return cls(folder)

    def close(self) -> None:
        """Let go of files."""
        self._db.close()

    def create_token(self, uses: int, seconds: float, address: str = "") -> Token:
        """A new token for `uses` devices. address: where they find the coordinator, if that is not the fleet's."""
        if not 1 <= uses <= MOST_USES:
            raise ConfigError(f"--uses {uses} must be from 1 to {MOST_USES} devices")
        if not 0 < seconds < MOST_SECONDS:
            raise ConfigError(f"--ttl must be more than nothing, and at most {MOST_SECONDS // 86400:.0f}d")
        token = Token(check_address(address or self.address), authority.fingerprint(self.authority.certificate), secrets.token_bytes(16))
        key, root = authority.token_root(token)
        now = self._clock()
        with self._errors():
            self._db.execute("DELETE FROM tokens WHERE expires < ?", (now - REMEMBERED,))
            row = (key, token.name, root, now, now + seconds, uses)
            self._db.execute("INSERT INTO tokens (key, name, root, created, expires, uses) VALUES (?, ?, ?, ?, ?, ?)", row)
        return token

    def tokens(self) -> list[tuple[str, float, int]]:
        """Name, end (seconds since 1970) and uses left of the tokens that still let devices in."""
        with self._errors():
            wanted = "SELECT name, expires, uses FROM tokens WHERE expires > ? AND uses > 0 AND NOT revoked ORDER BY created"
            return self._db.execute(wanted, (self._clock(),)).fetchall()

    def revoke_token(self, name: str) -> None:
        """Let nobody in by it any more; devices that came in by it stay."""
        with self._errors():
            if not self._db.execute("UPDATE tokens SET revoked = 1 WHERE name = ?", (name,)).rowcount:
                raise ConfigError(f"there is no token {name}; 'edge-coordinator token list' shows them")

    def token_name(self, peer: Peer) -> str:
        """Of the token whose key this is; empty where it is none's. It may have run out."""
        with self._errors():
            row = self._db.execute("SELECT name FROM tokens WHERE key = ?", (peer.key,)).fetchone()
        return str(row[0]) if row else ""

    def roots(self) -> bytes:
        """All that the TLS handshake trusts: the authority, and the tokens. May be called from any thread."""
        with self._errors():
            rows = self._db.execute("SELECT root FROM tokens ORDER BY key").fetchall()
        return b"".join((self.authority.certificate, *(root for (root,) in rows)))

    def enrol(self, peer: Peer, x: bytes, y: bytes, seconds: float) -> tuple[bytes, float]:
        """A certificate (DER) for the key (x, y) that is valid for so long, and when it ends.

        peer: with a token, a new device, at the cost of one use (none if this key was enrolled by it before: the answer may have
        been lost); else a device that renews its own. NotAdmitted, or ValueError where (x, y) is no key.
        """
        now = self._clock()
        until = now + seconds
        with self._errors(), self._transaction():
            token = self._db.execute("SELECT name, expires, uses, revoked FROM tokens WHERE key = ?", (peer.key,)).fetchone()
            device = self._new_device(token, x + y, now) if token else self.admit(peer)
            made = authority.device_certificate(self.authority, device, x, y, until)
            row = (device, x + y, token[0] if token else "", now, until)
            self._db.execute(
                "INSERT INTO devices (id, key, token, enrolled, expires) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET key = excluded.key, expires = excluded.expires",
                row,
            )
        return made, until

    def _new_device(self, token: tuple[str, float, int, int], key: bytes, now: float) -> str:
        """Its id."""
        name, expires, uses, revoked = token
        if revoked:
            raise NotAdmitted(f"token {name} was revoked; ask the operator for a new one")
        known = self._db.execute("SELECT id FROM devices WHERE key = ? AND token = ? AND revoked IS NULL", (key, name)).fetchone()
        if known:
            return str(known[0])
        if now > expires:
            raise NotAdmitted(f"token {name} has run out, by the coordinator's clock; ask the operator for a new one")
        if uses < 1:
            raise NotAdmitted(f"token {name} has been used up; ask the operator for a new one")
        self._db.execute("UPDATE tokens SET uses = uses - 1 WHERE name = ?", (name,))
        return secrets.token_hex(8)

    def admit(self, peer: Peer) -> str:
        """The id of the device whose certificate this is. NotAdmitted where it may not come in."""
        with self._errors():
            row = self._db.execute("SELECT revoked FROM devices WHERE id = ?", (peer.device,)).fetchone() if peer.device else None
        if not peer.device:
            raise NotAdmitted("this certificate is no device's of this fleet; join with a token")
        if row is None:
            raise NotAdmitted(f"device {peer.device} is not in the list of this fleet; join again with a new token")
        if row[0] is not None:
            raise NotAdmitted(f"device {peer.device} was revoked; ask the operator, and join again with a new token")
        if peer.expires < self._clock():  # TLS looks at that as well, but only when the connection is made
            raise NotAdmitted(f"the certificate of device {peer.device} has run out; join again with a new token")
        return peer.device

    def devices(self) -> list[Device]:
        """All that were ever enrolled, oldest first."""
        with self._errors():
            wanted = "SELECT id, token, enrolled, expires, revoked, seen, refused FROM devices ORDER BY enrolled, id"
            return [Device(*row) for row in self._db.execute(wanted)]

    def revoke(self, device: str) -> None:
        """Turn a device away from now on. ConfigError where there is none of that id."""
        with self._errors():
            changed = self._db.execute("UPDATE devices SET revoked = coalesce(revoked, ?) WHERE id = ?", (self._clock(), device))
            if not changed.rowcount:
                raise ConfigError(f"there is no device {device}; 'edge-coordinator device list' shows them")

    def note(self, seen: Mapping[str, float], refused: Mapping[str, int]) -> None:
        """Keep when devices were seen last, and how many more of their requests were refused."""
        with self._errors(), self._transaction():
            self._db.executemany("UPDATE devices SET seen = ? WHERE id = ?", [(at, device) for device, at in seen.items()])
            rows = [(count, device) for device, count in refused.items()]
            self._db.executemany("UPDATE devices SET refused = refused + ? WHERE id = ?", rows)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise StorageError(f"{self.folder / DATABASE}: {error}; make room, or restore the folder of the fleet from a backup") from None
