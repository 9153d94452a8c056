"""Fetching the run's bundle, piece by piece, into the state folder; a bundle that is there already is used."""

import logging
import shutil
from pathlib import Path

from edge_agent.link import Link
from zo.bundle import Bundle, check_name, open_bundle
from zo.errors import BundleError, StorageError
from zo.messages import FileRequest, JoinReply

log = logging.getLogger(__name__)


def bundle(link: Link, joined: JoinReply, state: Path, given: str = "") -> Bundle:
    """The bundle of the run that was joined, verified. BundleError where what arrived is not what was announced.

    given: a folder that should hold it already; then nothing is downloaded.
    """
    if given:
        return _checked(Path(given), joined)
    folder = state / "bundles" / joined.bundle_digest.hex()
    if folder.is_dir():
        try:
            return _checked(folder, joined)
        except BundleError as error:
            log.warning("%s; it is downloaded again", error)
            shutil.rmtree(folder)
    unfinished = folder.with_suffix(".part")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(joined.bundle_files):
            check_name(name)
            _fetch(link, FileRequest(joined.run, number, 0), unfinished / name)
        unfinished.rename(folder)
    except OSError as error:
        raise StorageError(
            f"{unfinished}: {error.strerror}; the bundle needs room in the state folder, give another with --state"
        ) from None
    return _checked(folder, joined)


def _fetch(link: Link, first: FileRequest, path: Path) -> None:
    """Append to the file until it has the size announced; goes on where an earlier try ended."""
    with path.open("ab") as file:
        while True:
            chunk = link.ask(FileRequest(first.run, first.file, file.tell()))
            file.write(chunk.content)
            if file.tell() >= chunk.size or not chunk.content:
                return


def _checked(folder: Path, joined: JoinReply) -> Bundle:
    opened = open_bundle(folder)
    if opened.digest != joined.bundle_digest:
        raise BundleError(f"{folder} is not the bundle that the coordinator announced; remove it, or leave out --bundle")
    return opened
