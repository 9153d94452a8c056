"""A file put in place is the old one or the new one, whatever fails and whenever the power goes; damage is seen."""

import errno
import os
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY

from zo.disk import CHECKSUM, Disk, made_whole, sealed, unsealed
from zo.errors import BundleError

OLD, NEW = b"the old content", b"the new content, which is longer"
CALLS = ("write", "sync", "rename", "sync_folder")


class FailingDisk(Disk):
    """Raises at one call, before or after it has done its work; a write may also be torn."""

    def __init__(self, at: str, done: str) -> None:
        self._at, self._done = at, done

    def _fail(self, call: str, when: str) -> None:
        if (call, when) == (self._at, self._done):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, path: Path, content: bytes) -> None:
        self._fail("write", "before")
        if (self._at, self._done) == ("write", "half"):
            super().write(path, content[: len(content) // 2])
            self._fail("write", "half")
        super().write(path, content)
        self._fail("write", "after")

    def sync(self, path: Path) -> None:
        self._fail("sync", "before")
        super().sync(path)
        self._fail("sync", "after")

    def rename(self, old: Path, new: Path) -> None:
        self._fail("rename", "before")
        super().rename(old, new)
        self._fail("rename", "after")

    def sync_folder(self, folder: Path) -> None:
        self._fail("sync_folder", "before")
        super().sync_folder(folder)
        self._fail("sync_folder", "after")


@pytest.mark.parametrize(("at", "done"), [*product(CALLS, ("before", "after")), ("write", "half")])
@pytest.mark.parametrize("old", [OLD, None], ids=["in place of a file", "first"])
def test_whichever_call_fails_the_old_content_is_there_or_the_new(tmp_path: Path, at: str, done: str, old: bytes | None) -> None:
    path = tmp_path / "state"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(OSError, match="No space left"):
        FailingDisk(at, done).replace(path, NEW)
    renamed = CALLS.index(at) > 2 or (at, done) == ("rename", "after")
    assert (path.read_bytes() if path.exists() else None) == (NEW if renamed else old)
    Disk().replace(path, OLD + NEW)  # what was left behind does not stand in the way
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    assert path.read_bytes() == OLD + NEW


class PowerCut(Exception):
    """The machine went dark."""


class VolatileDisk(Disk):
    """A disk with a cache: content that was not synced, and names whose folder was not, may be lost, each on its own."""

    def __init__(self, calls: int, content: dict[Path, bytes]) -> None:
        self._calls = calls
        self.cached = {path: (number, True) for number, path in enumerate(content)}  # name -> (file, content synced)
        self.content = dict(enumerate(content.values()))
        self.names = [dict(self.cached)]  # all states of the folder that a power cut may leave

    def _call(self) -> None:
        if not self._calls:
            raise PowerCut
        self._calls -= 1

    def write(self, path: Path, content: bytes) -> None:
        self.cached[path] = (len(self.content), False)
        self.content[len(self.content)] = content
        self.names.append(dict(self.cached))
        self._call()

    def sync(self, path: Path) -> None:
        self._call()
        number, _ = self.cached[path]
        for names in (self.cached, *self.names):
            for name, (found, _) in names.items():
                if found == number:
                    names[name] = (number, True)

    def rename(self, old: Path, new: Path) -> None:
        self.cached[new] = self.cached.pop(old)
        self.names.append(dict(self.cached))
        self._call()

    def sync_folder(self, folder: Path) -> None:
        self._call()
        self.names = [dict(self.cached)]

    def after_the_cut(self, path: Path) -> set[bytes | None]:
        """All that the file may hold: None where it is not there, and b"torn" where its content may be anything."""
        found = {names.get(path) for names in self.names}
        return {file if file is None else (self.content[file[0]] if file[1] else b"torn") for file in found}


@pytest.mark.parametrize("calls", range(len(CALLS) + 1))
def test_whenever_the_power_goes_the_old_content_is_there_or_the_new(tmp_path: Path, calls: int) -> None:
    path = tmp_path / "state"
    disk = VolatileDisk(calls, {path: OLD})
    if calls == len(CALLS):
        disk.replace(path, NEW)
        assert disk.after_the_cut(path) == {NEW}  # it was promised
        return
    with pytest.raises(PowerCut):
        disk.replace(path, NEW)
    assert disk.after_the_cut(path) <= {OLD, NEW}


def test_a_file_is_written_synced_renamed_and_its_own_folder_synced(tmp_path: Path) -> None:
    calls: list[tuple[str, Path]] = []

    class Watched(Disk):
        def write(self, path: Path, content: bytes) -> None:
            calls.append(("write", path))
            super().write(path, content)

        def sync(self, path: Path) -> None:
            calls.append(("sync", path))
            super().sync(path)

        def rename(self, old: Path, new: Path) -> None:
            calls.append(("rename", old))
            super().rename(old, new)

        def sync_folder(self, folder: Path) -> None:
            calls.append(("sync_folder", folder))
            super().sync_folder(folder)

    path = tmp_path / "state"
    Watched().replace(path, NEW)
    assert [name for name, _ in calls] == list(CALLS)
    temporary = calls[0][1]
    assert [where for _, where in calls] == [temporary, temporary, temporary, tmp_path]
    assert temporary.parent == path.parent  # a rename across file systems is not atomic
    assert temporary != path
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("start", [0, 1, len(OLD) - 1, len(OLD)])
@pytest.mark.parametrize("content", [b"", b"x", NEW], ids=["nothing", "less", "more"])
def test_what_is_appended_takes_the_place_of_all_behind_its_start(tmp_path: Path, start: int, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(OLD)
    Disk().append(path, start, content)
    assert path.read_bytes() == OLD[:start] + content


def test_nothing_is_appended_to_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Disk().append(tmp_path / "journal", 0, NEW)
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Disk().sync(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        Disk().sync_folder(tmp_path / "missing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        Disk().sync_folder(tmp_path / "file")


def test_syncing_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        Disk().replace(tmp_path / "state", NEW)
    assert len(os.listdir("/proc/self/fd")) == before


# --- sealed files ---


@PROPERTY
@given(st.binary(max_size=200))
def test_a_sealed_file_opens_to_its_content(content: bytes) -> None:
    assert len(sealed(content)) == len(content) + CHECKSUM
    assert unsealed(sealed(content)) == content


@PROPERTY
@given(st.binary(max_size=40), st.integers(1, 255))
def test_every_single_changed_byte_is_seen(content: bytes, change: int) -> None:
    data = sealed(content)
    for place in range(len(data)):
        with pytest.raises(ValueError, match="torn or altered"):
            unsealed(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])


@PROPERTY
@given(st.binary(max_size=100), st.binary(min_size=1, max_size=40))
def test_every_truncation_and_every_addition_is_seen(content: bytes, more: bytes) -> None:
    data = sealed(content)
    for bad in [*(data[:stop] for stop in range(len(data))), data + more, *(data[start:] for start in range(1, len(data)))]:
        with pytest.raises(ValueError, match="torn or altered"):
            unsealed(bad)


@pytest.mark.parametrize("data", [b"", bytes(31), bytes(32), bytes(4096)])
def test_what_a_power_cut_often_leaves_is_no_sealed_file(data: bytes) -> None:
    with pytest.raises(ValueError, match="torn or altered"):
        unsealed(data)


def test_a_folder_is_there_once_it_is_whole_and_else_nothing_of_it_is(tmp_path: Path) -> None:
    def fail(error: BaseException) -> None:
        with made_whole(out) as made:
            (made / "half").write_text("half")
            raise error

    out = tmp_path / "deep" / "out"
    for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()):
        with pytest.raises(type(error)) as found:
            fail(error)
        assert list(out.parent.iterdir()) == []
        assert isinstance(error, KeyboardInterrupt) or found.value.filename == str(out)  # which the system does not say of a full disk
    with made_whole(out) as made:
        assert not out.exists()
        (made / "file").write_text("whole")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["deep", "deep/out", "deep/out/file"]
    assert out.stat().st_mode == out.parent.stat().st_mode
    with pytest.raises(BundleError, match="exists already"), made_whole(out):
        pass
    assert (out / "file").read_text() == "whole"
