"""The folder of a fleet: whole, or told in one line and left as it is."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from coordinator.cli import main
from coordinator.fleet import Fleet
from zo.disk import Disk
from zo.errors import ConfigError, StorageError

ADDRESS = "127.0.0.1:7643"


class Full(Disk):
    """Has no room for what is called so."""

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, path: Path, content: bytes) -> None:
        if path.name.startswith(self.name):
            raise OSError(28, "No space left on device", str(path))
        super().write(path, content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    Fleet.make(folder, ADDRESS).close()
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "fleet"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["authority.pem", "authority.key", "server.pem", "server.key"])
@pytest.mark.parametrize("content", [b"", b"garbage\n", b"\xff\xfe"])
def test_a_damaged_certificate_or_key_is_named(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(StorageError, match=f"{name.partition('.')[0]}.pem and .*.key: damaged; restore both from a backup"):
        Fleet(folder)


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        ("authority.key", "server.key", "server.pem and server.key: they do not belong together"),
        ("server.key", "authority.key", "authority.pem and authority.key: they do not belong together"),
        ("authority.pem", "server.pem", "server.pem and server.key: they do not belong together"),
    ],
)
def test_a_key_beside_a_certificate_of_another_is_refused(source: str, name: str, said: str, folder: Path) -> None:
    shutil.copy(folder / source, folder / name)
    with pytest.raises(StorageError, match=said):
        Fleet(folder)


def test_the_server_of_another_fleet_is_refused(folder: Path, tmp_path: Path) -> None:
    Fleet.make(tmp_path / "other", ADDRESS).close()
    for name in ("server.pem", "server.key"):
        shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(StorageError, match="not signed by the authority of this fleet"):
        Fleet(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"nowhere\n"])
def test_an_address_that_is_none_is_told(content: bytes, folder: Path) -> None:
    (folder / "address").write_bytes(content)
    with pytest.raises(StorageError, match=r"address holds no address; write host:port there"):
        Fleet(folder)


def test_a_list_of_devices_that_is_gone_is_not_made_anew(folder: Path) -> None:
    for path in folder.glob("devices.sqlite*"):
        path.unlink()
    with pytest.raises(StorageError, match="the list of tokens and devices, is missing; restore"):
        Fleet(folder)
    assert not (folder / "devices.sqlite").exists()


@pytest.mark.parametrize("kept", ["authority.key", "devices.sqlite"])
def test_a_fleet_without_its_certificate_is_not_made_anew(kept: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in folder.iterdir():
        if path.name != kept:
            path.unlink()
    before = contents(folder)
    for command in (["init", "--address", ADDRESS], ["token", "create"], ["device", "list"]):
        assert main([*command, f"--fleet={folder}"]) == StorageError.exit_code
        said = capsys.readouterr().err
        assert f"holds part of a fleet ({kept}, but no authority.pem); restore it from a backup" in said
        assert said.count("\n") == 1
        assert contents(folder) == before


@pytest.mark.parametrize("name", ["server.key", "server.pem", "address"])
def test_what_an_interrupted_init_left_is_made_anew(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left on device"):
        Fleet.make(tmp_path / "fleet", ADDRESS, Full(name))
    with pytest.raises(ConfigError, match="holds no fleet"):
        Fleet(tmp_path / "fleet")
    assert Fleet.make(tmp_path / "fleet", ADDRESS).address == ADDRESS


def test_where_there_is_no_fleet_commands_advise_nothing_that_they_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "list", f"--fleet={tmp_path}"]) == ConfigError.exit_code
    assert "--insecure-loopback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--uses", "0"], "--uses 0 must be from 1 to"),
        (["--uses", "99999999999999999999"], "--uses 99999999999999999999 must be from 1 to"),
        (["--ttl", "0h"], "--ttl must be more than nothing, and at most 11574d"),
        (["--ttl", "999999d"], "--ttl must be more than nothing, and at most 11574d"),
    ],
)
def test_a_token_of_impossible_uses_or_time_is_refused(
    flags: list[str], said: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", "create", f"--fleet={whole}", *flags]) == ConfigError.exit_code
    assert said in capsys.readouterr().err


def test_the_longest_token_can_be_made(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "create", f"--fleet={whole}", "--uses", str(10**9), "--ttl", "11574d"]) == 0
    assert main(["token", "list", f"--fleet={whole}"]) == 0
    assert f"{10**9} uses left" in capsys.readouterr().out


def test_a_time_that_is_none_is_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(sqlite3.connect(folder / "devices.sqlite", isolation_level=None)) as database:
        database.execute("INSERT INTO devices (id, key, token, enrolled, expires) VALUES ('a', x'00', 't', 0, 1e300)")
    assert main(["device", "list", f"--fleet={folder}"]) == StorageError.exit_code
    assert "holds 1e+300, which is no time; restore it from a backup" in capsys.readouterr().err
