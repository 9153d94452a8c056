"""The folder of a fleet: its certificates and their keys, where devices find the coordinator, and the list of tokens and devices."""

import sqlite3
from pathlib import Path
from typing import NamedTuple

from coordinator import authority
from coordinator.authority import Pair
from zo.disk import Disk, replace_secret
from zo.errors import ConfigError, StorageError
from zo.token import is_address

AUTHORITY, SERVER, ADDRESS, DATABASE = "authority", "server", "address", "devices.sqlite"
SCHEMA = """
CREATE TABLE tokens (key BLOB PRIMARY KEY, name TEXT UNIQUE NOT NULL, root BLOB NOT NULL, created REAL NOT NULL, expires REAL NOT NULL,
                     uses INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE devices (id TEXT PRIMARY KEY, key BLOB NOT NULL, token TEXT NOT NULL, enrolled REAL NOT NULL, expires REAL NOT NULL,
                      revoked REAL, seen REAL, refused INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX keys ON devices (key);
"""


class Contents(NamedTuple):
    """What is read of a folder. address: host:port."""

    authority: Pair
    server: Pair
    address: str


def read(folder: Path) -> Contents:
    """ConfigError where the folder holds no fleet; StorageError where a part of it is missing, damaged, or another fleet's."""
    _check_whole(folder)
    if not (folder / f"{AUTHORITY}.pem").exists():
        raise ConfigError(f"{folder} holds no fleet; make one with 'edge-coordinator init', or give another folder with --fleet")
    try:
        root, server = (Pair((folder / f"{name}.pem").read_bytes(), (folder / f"{name}.key").read_bytes()) for name in (AUTHORITY, SERVER))
        address = (folder / ADDRESS).read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}; restore the folder of the fleet from a backup") from None
    for name, pair in ((AUTHORITY, root), (SERVER, server)):
        try:
            authority.check(pair, root)
        except ValueError as error:
            raise StorageError(f"{folder}: {name}.pem and {name}.key: {error}; restore both from a backup") from None
    if not is_address(address):
        raise StorageError(f"{folder / ADDRESS} holds no address; write host:port there, as it was given to 'edge-coordinator init'")
    if not (folder / DATABASE).is_file():
        raise StorageError(f"{folder / DATABASE}, the list of tokens and devices, is missing; restore the folder from a backup")
    return Contents(root, server, address)


def make(folder: Path, address: str, disk: Disk) -> None:
    """A new fleet's. What an `init` that was interrupted has left is made anew, until there is a key that devices might trust."""
    check_address(address)
    _check_whole(folder)
    if (folder / f"{AUTHORITY}.pem").exists():
        raise ConfigError(f"{folder} holds a fleet already, and its devices trust it; choose another folder with --fleet")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        root = authority.new_authority()
        server = authority.new_server(root)
        replace_secret(disk, folder / f"{SERVER}.key", server.key)
        disk.replace(folder / f"{SERVER}.pem", server.certificate)
        disk.replace(folder / ADDRESS, f"{address}\n".encode())
        replace_secret(disk, folder / f"{AUTHORITY}.key", root.key)
        database = sqlite3.connect(folder / DATABASE)
        database.executescript(f"PRAGMA journal_mode = WAL; BEGIN; {SCHEMA} COMMIT")
        database.close()
        disk.replace(folder / f"{AUTHORITY}.pem", root.certificate)  # makes it a fleet
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: {error.strerror}; give a folder that can be written with --fleet") from None
    except sqlite3.Error as error:
        raise StorageError(f"{folder / DATABASE}: {error}; make room, and give a new folder with --fleet") from None


def check_address(address: str) -> str:
    """The address, if devices can be given it. ConfigError else."""
    if not is_address(address):
        raise ConfigError(f"{address!r} is no address that devices can dial; give host:port, such as fleet.example.org:443, with --address")
    return address


def _check_whole(folder: Path) -> None:
    """StorageError where a key or a list is there that a fleet's devices may still depend on, without the certificate."""
    left = [name for name in (f"{AUTHORITY}.key", DATABASE) if (folder / name).exists()]
    if left and not (folder / f"{AUTHORITY}.pem").exists():
        raise StorageError(
            f"{folder} holds part of a fleet ({left[0]}, but no {AUTHORITY}.pem); restore it from a backup, or give another with --fleet"
        )
