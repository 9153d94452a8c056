"""Fetching the run's bundle, piece by piece, into the state folder: one base of it. Files that are there already are used."""

import logging
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from edge_agent.config import AgentConfig
from edge_agent.precision import Chooser, held
from zo import manifest as manifest_file
from zo.bundle import Bundle, check_name, open_bundle, read_manifest
from zo.errors import BundleError, StorageError
from zo.manifest import Manifest
from zo.messages import FileRequest, JoinReply

log = logging.getLogger(__name__)

Ask = Callable[[Any], Any]

UNFINISHED = ".part"  # behind the name of a file that is being fetched


def bundle(ask: Ask, joined: JoinReply, state: Path, chooser: Chooser, config: AgentConfig) -> Bundle:
    """The bundle of the run that was joined, at the base chosen, verified. BundleError where what arrived is not what was announced.

    ask: a call to the coordinator. Where the settings name a folder that should hold it already, with one base at least,
    nothing is downloaded.
    """
    given = config.bundle
    if len(joined.bundle_digest) != 32:
        raise BundleError("the coordinator announces no digest of its bundle; run the same release on both sides")
    try:
        if given:
            folder = Path(given)
            manifest = _announced(folder, joined, "give the folder of that one, or leave out --bundle to have it downloaded")
            return open_bundle(folder, chooser.choose(folder, manifest, held(folder, manifest) or [manifest.precision]))
        for name in joined.bundle_files:
            check_name(name)
        folder = state / "bundles" / joined.bundle_digest.hex()
        known, room = folder.is_dir(), Room(folder, config.bundle_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return _complete(ask, joined, folder, chooser, room)
        except BundleError as error:
            if not known:
                raise
            log.warning("%s; it is downloaded again", error)
            shutil.rmtree(folder)
            folder.mkdir()
            return _complete(ask, joined, folder, chooser, room)
    except OSError as error:
        raise StorageError(
            f"{error.filename or state}: {error.strerror}; the bundle needs room in the state folder, give another with --state"
        ) from None


class Room:
    """Bytes that bundles may take. folder: of the one that is fetched; those of other runs, beside it, make way, oldest first.

    StorageError where a file would be too many, or the disk has no room for it.
    """

    def __init__(self, folder: Path, most: float) -> None:
        self.folder, self.most, self._noted = folder, most, (folder, 0)

    def take(self, path: Path, size: int) -> None:
        """Note that a file of the folder will have this size."""
        if self._noted == (path, size):
            return
        self._noted = path, size
        own = sum((_sizes(self.folder) | {path: size}).values())
        if own > self.most:
            raise StorageError(f"the bundle takes more than {self.most / 1e6:.0f} MB; allow more with --bundle-bytes if that is right")
        self._make_way(own)
        missing = size - (path.stat().st_size if path.exists() else 0)
        if missing > (free := shutil.disk_usage(path.parent).free):
            raise StorageError(f"{path.parent} has {free / 1e6:.0f} MB left, and {path.name} needs {missing / 1e6:.0f} MB; make room")

    def _make_way(self, own: int) -> None:
        """Remove bundles of other runs until all that are left take no more than one may."""
        others = [each for each in self.folder.parent.iterdir() if each.is_dir() and each != self.folder]
        sizes = {each: sum(_sizes(each).values()) for each in sorted(others, key=lambda each: each.stat().st_mtime)}
        for each, size in sizes.items():
            if own + sum(sizes.values()) <= self.most:
                return
            log.info("the bundle %s of an earlier run makes way: %.0f MB", each.name[:12], size / 1e6)
            shutil.rmtree(each)
            sizes[each] = 0


def _sizes(folder: Path) -> dict[Path, int]:
    """Bytes by file."""
    return {path: path.stat().st_size for path in folder.iterdir()}


def _complete(ask: Ask, joined: JoinReply, folder: Path, chooser: Chooser, room: Room) -> Bundle:
    """The bundle, once all that its base needs is in the folder."""
    fetch = partial(_fetch_all, ask, joined, folder, room)
    fetch([manifest_file.FILE])
    manifest = _announced(folder, joined, "its operator should serve the bundle anew")
    precision = chooser.choose(folder, manifest, list(manifest.bases), fetch)
    fetch(manifest.at(precision).needed)
    return open_bundle(folder, precision)


def _fetch_all(ask: Ask, joined: JoinReply, folder: Path, room: Room, names: Iterable[str]) -> None:
    """Fetch the files that are not there yet."""
    for name in names:
        if (folder / name).exists():
            continue
        if name not in joined.bundle_files:
            raise BundleError(f"the coordinator does not hand out {name}; it should serve the bundle anew")
        unfinished = folder / f"{name}{UNFINISHED}"
        _fetch(ask, FileRequest(joined.run, joined.bundle_files.index(name), 0), unfinished, room)
        unfinished.rename(folder / name)


def _fetch(ask: Ask, first: FileRequest, path: Path, room: Room) -> None:
    """Append to the file until it has the size announced; goes on where an earlier try ended."""
    with path.open("ab") as file:
        while True:
            chunk = ask(FileRequest(first.run, first.file, file.tell()))
            room.take(path, max(chunk.size, file.tell() + len(chunk.content)))
            file.write(chunk.content)
            if file.tell() >= chunk.size or not chunk.content:
                return


def _announced(folder: Path, joined: JoinReply, advice: str) -> Manifest:
    manifest = read_manifest(folder)
    found, wanted = Bundle(folder, manifest).digest, joined.bundle_digest
    if found != wanted:
        raise BundleError(
            f"{folder} holds bundle {manifest.name!r} ({found.hex()[:12]}), which is not the bundle that the coordinator announced for run"
            f" {joined.run_name!r} ({wanted.hex()[:12]}); {advice}"
        )
    return manifest
