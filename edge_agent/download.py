"""Fetching the run's bundle, piece by piece, into the state folder: one base of it. Files that are there already are used."""

import logging
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from edge_agent.precision import Chooser, held
from zo import manifest as manifest_file
from zo.bundle import Bundle, check_name, open_bundle, read_manifest
from zo.errors import BundleError, StorageError
from zo.manifest import Manifest
from zo.messages import FileRequest, JoinReply

log = logging.getLogger(__name__)

Ask = Callable[[Any], Any]

UNFINISHED = ".part"  # behind the name of a file that is being fetched


def bundle(ask: Ask, joined: JoinReply, state: Path, chooser: Chooser, given: str = "") -> Bundle:
    """The bundle of the run that was joined, at the base chosen, verified. BundleError where what arrived is not what was announced.

    ask: a call to the coordinator. given: a folder that should hold it already, with one base at least; then nothing is downloaded.
    """
    try:
        if given:
            folder = Path(given)
            manifest = _announced(folder, joined)
            return open_bundle(folder, chooser.choose(folder, manifest, held(folder, manifest) or [manifest.precision]))
        for name in joined.bundle_files:
            check_name(name)
        folder = state / "bundles" / joined.bundle_digest.hex()
        known = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return _complete(ask, joined, folder, chooser)
        except BundleError as error:
            if not known:
                raise
            log.warning("%s; it is downloaded again", error)
            shutil.rmtree(folder)
            folder.mkdir()
            return _complete(ask, joined, folder, chooser)
    except OSError as error:
        raise StorageError(
            f"{error.filename or state}: {error.strerror}; the bundle needs room in the state folder, give another with --state"
        ) from None


def _complete(ask: Ask, joined: JoinReply, folder: Path, chooser: Chooser) -> Bundle:
    """The bundle, once all that its base needs is in the folder."""
    fetch = partial(_fetch_all, ask, joined, folder)
    fetch([manifest_file.FILE])
    manifest = _announced(folder, joined)
    precision = chooser.choose(folder, manifest, list(manifest.bases), fetch)
    fetch(manifest.at(precision).needed)
    return open_bundle(folder, precision)


def _fetch_all(ask: Ask, joined: JoinReply, folder: Path, names: Iterable[str]) -> None:
    """Fetch the files that are not there yet."""
    for name in names:
        if (folder / name).exists():
            continue
        if name not in joined.bundle_files:
            raise BundleError(f"the coordinator does not hand out {name}; it should serve the bundle anew")
        unfinished = folder / f"{name}{UNFINISHED}"
        _fetch(ask, FileRequest(joined.run, joined.bundle_files.index(name), 0), unfinished)
        unfinished.rename(folder / name)


def _fetch(ask: Ask, first: FileRequest, path: Path) -> None:
    """Append to the file until it has the size announced; goes on where an earlier try ended."""
    with path.open("ab") as file:
        while True:
            chunk = ask(FileRequest(first.run, first.file, file.tell()))
            file.write(chunk.content)
            if file.tell() >= chunk.size or not chunk.content:
                return


def _announced(folder: Path, joined: JoinReply) -> Manifest:
    manifest = read_manifest(folder)
    if Bundle(folder, manifest).digest != joined.bundle_digest:
        raise BundleError(f"{folder} is not the bundle that the coordinator announced; remove it, or leave out --bundle")
    return manifest
