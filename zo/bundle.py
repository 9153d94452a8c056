"""Bundles on disk: verified as they are opened (DESIGN section 4)."""

import hashlib
import tarfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from zo import manifest as manifest_file
from zo.disk import made_whole, naming, replacement
from zo.errors import BundleError, StorageError
from zo.initial import Initial
from zo.lattice import RangeError
from zo.manifest import Manifest
from zo.parameters import Parameters

TRAINABLE = "trainable.safetensors"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, looked at through one of its bases; the files needed have been checked against the manifest."""

    folder: Path
    manifest: Manifest

    @property
    def digest(self) -> bytes:
        """Identity of the bundle: BLAKE2b-256 of manifest.json, which names the digest of every other file."""
        return hashlib.blake2b((self.folder / manifest_file.FILE).read_bytes(), digest_size=32).digest()

    def at(self, precision: str) -> "Bundle":
        """The same bundle looked at through another base, whose files must have been checked. ConfigError where it has none."""
        return replace(self, manifest=self.manifest.at(precision))

    def initial_tensors(self) -> Initial:
        """The trainable tensors at entry 0, read as they are asked for. BundleError where the file is not what the manifest says."""
        found = Initial(self.folder / TRAINABLE)
        for group in self.manifest.groups:
            found.check(group)
        return found

    def parameters(self, threads: int = 1, among: Collection[int] | None = None) -> Parameters:
        """Parameters at entry 0. among: groups that are held, all if left out."""
        groups = [group for group in self.manifest.groups if among is None or group.id in among]
        try:
            return Parameters(self.manifest.run_key, groups, self.initial_tensors(), threads=threads)
        except RangeError as error:
            raise BundleError(f"{self.folder / TRAINABLE}: {error}; build the bundle again") from None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with its own padding and truncation switched off."""
        try:
            tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
        except Exception as error:  # noqa: BLE001  tokenizers raises bare Exception
            raise BundleError(f"{self.folder / TOKENIZER} is not a tokenizer ({error}); build the bundle again") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer


def open_bundle(path: Path, precision: str = "") -> Bundle:
    """Open a bundle folder through one base, the default one if left out; files of the other bases may be absent.

    Verifies the digest of every file needed: BundleError names the file and the fix. ConfigError where it has no such base.
    """
    manifest = read_manifest(path)
    manifest = manifest.at(precision or manifest.precision)
    verify(path, manifest, manifest.needed)
    return Bundle(path, manifest)


def open_whole(path: Path) -> Bundle:
    """Open a bundle folder that holds all its bases, every file verified."""
    manifest = read_manifest(path)
    verify(path, manifest, manifest.files)
    return Bundle(path, manifest)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a bundle folder, which has a digest for all that its bases need; none of the files has been looked at."""
    if path.is_file():
        raise BundleError(f"{path} is a file; unpack it first with 'edge-coordinator bundle unpack {path} FOLDER'")
    manifest = manifest_file.read(path)
    for name in manifest.files:
        check_name(name)
    for name in (TRAINABLE, TOKENIZER, *(name for base in manifest.bases.values() for name in base.files)):
        if name not in manifest.files:
            raise BundleError(f"{path / manifest_file.FILE} states no digest for {name}; build the bundle again")
    return manifest


def verify(path: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """BundleError unless these files of a bundle are there, with the digests that its manifest states."""
    for name in names:
        if (path / name).is_symlink():
            raise BundleError(f"{path / name} is a link, which no bundle holds; do not use this bundle")
        if not (path / name).is_file():
            raise BundleError(f"{path / name} is missing; download or build the bundle again")
        if file_digest(path / name) != manifest.files[name]:
            raise BundleError(f"{path / name} does not have the digest that the manifest states; download or build the bundle again")


def check_name(name: str) -> None:
    """BundleError unless `name` is a plain file name: no folder, no drive, nothing hidden."""
    if not name or name != PurePosixPath(name).name or name.startswith(".") or "\\" in name or not name.isprintable():
        raise BundleError(f"{name!r} is no file name for a bundle; do not use this bundle")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, folder: Path) -> Bundle:
    """Unpack a .tar of plain files into `folder`, which there is only once all is verified, and open it with all its bases.

    BundleError where the archive is none, or there is such a folder; OSError where it cannot be written.
    """
    with made_whole(folder) as made:
        _extract(archive, made)
        try:
            opened = open_whole(made)
        except BundleError as error:
            raise BundleError(str(error).replace(str(made), str(archive))) from None
    return replace(opened, folder=folder)


def _extract(archive: Path, folder: Path) -> None:
    try:
        opened = archive.open("rb")
    except FileNotFoundError:
        raise BundleError(f"{archive} does not exist; give the .tar that 'edge-coordinator bundle pack' made") from None
    except OSError as error:
        raise BundleError(f"{archive} cannot be read: {error.strerror}; check the path and its permissions") from None
    try:
        with opened, tarfile.open(fileobj=opened, mode="r:") as tar:  # uncompressed: it holds no more than it weighs
            for member in tar:
                if not member.isfile() or member.issparse():
                    raise BundleError(f"{archive} holds {member.name!r}, which is no plain file; do not use this bundle")
                check_name(member.name)
                tar.extract(member, folder, filter=_plain)
    except tarfile.TarError as error:
        raise BundleError(f"{archive} cannot be unpacked ({str(error).splitlines()[0]}); download it again") from None


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """With the permissions of any new file, whatever those of the packed one were."""
    return tarfile.data_filter(member, folder).replace(mode=None, deep=False)  # type: ignore[arg-type]


def save_tensors(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write safetensors with the permissions of any new file: by itself that library lets no other user read them."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise StorageError(f"{path} cannot be written ({error}); check the room there") from None
    path.chmod(mode)


def pack(bundle: Bundle, archive: Path) -> None:
    """Write the bundle, with all its bases, as a .tar: the manifest first, so a reader can decide before the weights."""
    made = replacement(archive)
    try:
        with naming(archive), tarfile.open(made, "w") as tar:
            for name in (manifest_file.FILE, *bundle.manifest.files):
                tar.add(bundle.folder / name, arcname=name, recursive=False)
        made.replace(archive)
    finally:
        made.unlink(missing_ok=True)
