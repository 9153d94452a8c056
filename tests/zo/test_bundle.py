"""A bundle opens only when every file is what the manifest says; a .tar of it brings nothing but plain files."""

import dataclasses
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles
from safetensors.numpy import load_file, save_file

from zo import manifest as manifest_file
from zo.bundle import TOKENIZER, TRAINABLE, Bundle, check_name, file_digest, open_bundle, open_whole, pack, save_tensors, unpack
from zo.errors import BundleError, ConfigError, StorageError
from zo.manifest import FILE

UNFIT_NAMES = ["../up", "a/b", "/etc/passwd", "..", ".", "", ".hidden", "a\\b", "a\nb", "a\x00b", "a/", "./a"]


@pytest.fixture
def copy(bert_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that the test may damage."""
    return Path(shutil.copytree(bert_bundle.folder, tmp_path / "copy"))


def refusal(path: Path, opening: Callable[[Path], object] = open_bundle) -> str:
    with pytest.raises(BundleError) as caught:
        opening(path)
    return str(caught.value)


def change_manifest(folder: Path, files: dict[str, str]) -> None:
    dataclasses.replace(open_bundle(folder).manifest, files=files).write(folder)


def replaced(folder: Path, name: str, content: bytes) -> Bundle:
    """The bundle with another file under a digest that fits it."""
    files = open_bundle(folder).manifest.files
    (folder / name).write_bytes(content)
    dataclasses.replace(manifest_file.read(folder), files=files | {name: file_digest(folder / name)}).write(folder)
    return open_bundle(folder)


def with_tensors(folder: Path, tensors: dict[str, np.ndarray]) -> Bundle:
    save_file(tensors, folder / "new")
    content = (folder / "new").read_bytes()
    (folder / "new").unlink()
    return replaced(folder, TRAINABLE, content)


def archive(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
    return found


# --- opening ---


def test_a_built_bundle_opens_and_states_every_file_beside_the_manifest(copy: Path) -> None:
    bundle = open_bundle(copy)
    assert {path.name for path in copy.iterdir()} == {*bundle.manifest.files, FILE}


def test_the_identity_is_that_of_the_content(copy: Path, bert_bundle: Bundle) -> None:
    assert open_bundle(copy).digest == bert_bundle.digest
    dataclasses.replace(bert_bundle.manifest, name="other").write(copy)
    assert open_bundle(copy).digest != bert_bundle.digest


@pytest.mark.parametrize("name", ["fp32.safetensors", TRAINABLE, TOKENIZER, "fp32.stage_0.onnx"])
def test_one_changed_bit_is_found(name: str, copy: Path) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert f"{copy / name} does not have the digest that the manifest states; download or build the bundle again" in refusal(copy)


@pytest.mark.parametrize("name", ["fp32.safetensors", TRAINABLE, TOKENIZER, "fp32.stage_2.onnx"])
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    (copy / name).unlink()
    assert f"{copy / name} is missing" in refusal(copy)


@pytest.mark.parametrize("name", ["fp32.safetensors", TRAINABLE, TOKENIZER, "fp32.stage_1.onnx"])
def test_a_file_without_a_stated_digest_is_refused(name: str, copy: Path) -> None:
    files = open_bundle(copy).manifest.files
    change_manifest(copy, {key: value for key, value in files.items() if key != name})
    assert f"states no digest for {name}" in refusal(copy)


def test_a_file_is_to_be_unpacked_first(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    assert "unpack it first" in refusal(tmp_path / "a.tar")


@pytest.mark.parametrize("name", UNFIT_NAMES)
def test_names_that_leave_the_folder_or_hide_are_refused(name: str, copy: Path) -> None:
    with pytest.raises(BundleError, match="no file name for a bundle"):
        check_name(name)
    change_manifest(copy, {name: "00" * 32} | open_bundle(copy).manifest.files)
    assert "no file name for a bundle" in refusal(copy)


@pytest.mark.parametrize("name", ["fp32.safetensors", "stage_10.onnx", "größe.txt", "a b"])
def test_plain_names_pass(name: str) -> None:
    check_name(name)


# --- what is inside ---


def test_parameters_begin_with_the_initial_tensors(bert_bundle: Bundle) -> None:
    parameters, tensors = bert_bundle.parameters(), bert_bundle.initial_tensors()
    assert parameters.tensors().keys() == tensors.keys()
    assert all(np.array_equal(parameters.tensor(name), values) for name, values in tensors.items())


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 64])
def test_trainable_tensors_that_cannot_be_read_are_refused(content: bytes, copy: Path) -> None:
    assert f"{copy / TRAINABLE} cannot be read" in refusal(copy, lambda folder: replaced(folder, TRAINABLE, content).parameters())


def test_negative_zero_in_a_trainable_tensor_is_refused(copy: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / TRAINABLE)
    name = next(name for name in tensors if name.endswith("lora_B"))
    tensors[name][0, 0] = -0.0
    said = refusal(copy, lambda folder: with_tensors(folder, tensors).parameters())
    assert name in said
    assert "-0.0" in said
    assert str(copy / TRAINABLE) in said


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**-23, 17.0])
def test_a_value_off_the_lattice_is_refused(value: float, copy: Path) -> None:
    tensors = load_file(copy / TRAINABLE)
    tensors["head.prototypes"][0, 0] = value
    assert "'head.prototypes'" in refusal(copy, lambda folder: with_tensors(folder, tensors).parameters())


def test_a_trainable_tensor_that_is_missing_or_of_another_shape_is_named(copy: Path) -> None:
    tensors = load_file(copy / TRAINABLE)
    bias = tensors.pop("head.bias")
    said = f"{TRAINABLE} holds no tensor 'head.bias' of shape (3,)"
    assert said in refusal(copy, lambda folder: with_tensors(folder, tensors).parameters())
    assert said in refusal(copy, lambda folder: with_tensors(folder, tensors | {"head.bias": bias[None]}).parameters())


@pytest.mark.parametrize("content", [b"", b"{}", b"no tokenizer", b'{"model": 3}'])
def test_a_tokenizer_that_is_none_is_refused(content: bytes, copy: Path) -> None:
    assert f"{copy / TOKENIZER} is not a tokenizer" in refusal(copy, lambda folder: replaced(folder, TOKENIZER, content).tokenizer())


def test_padding_and_truncation_of_the_tokenizer_itself_are_switched_off(copy: Path) -> None:
    tokenizer = open_bundle(copy).tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    bundle = replaced(copy, TOKENIZER, tokenizer.to_str().encode())
    assert len(bundle.tokenizer().encode("ba bee bi bo bu").ids) == 7


# --- as a .tar ---


def test_packing_and_unpacking_gives_the_same_bundle(bert_bundle: Bundle, tmp_path: Path) -> None:
    pack(bert_bundle, tmp_path / "a.tar")
    unpacked = unpack(tmp_path / "a.tar", tmp_path / "deep" / "out")
    assert unpacked.digest == bert_bundle.digest
    assert unpacked.manifest == bert_bundle.manifest
    assert {path.name for path in unpacked.folder.iterdir()} == {path.name for path in bert_bundle.folder.iterdir()}


def test_the_manifest_comes_first(bert_bundle: Bundle, tmp_path: Path) -> None:
    pack(bert_bundle, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.next().name == FILE


@pytest.mark.parametrize(
    "bad",
    [
        member("../escaped"),
        member("/tmp/escaped-from-a-bundle"),
        member("folder/file"),
        member(".bashrc"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("hard", tarfile.LNKTYPE, "/etc/passwd"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
        member("folder", tarfile.DIRTYPE),
    ],
    ids=lambda bad: bad.name,
)
def test_an_archive_with_anything_but_plain_files_is_refused_and_writes_nothing(bad: tarfile.TarInfo, tmp_path: Path) -> None:
    said = refusal(archive(tmp_path / "a.tar", bad), lambda path: unpack(path, tmp_path / "out"))
    assert "do not use this bundle" in said
    assert repr(bad.name) in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("content", [b"", b"no archive" * 100])
def test_an_archive_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert "cannot be unpacked" in refusal(tmp_path / "a.tar", lambda path: unpack(path, tmp_path / "out"))


def test_an_archive_cut_short_is_refused(bert_bundle: Bundle, tmp_path: Path) -> None:
    pack(bert_bundle, tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: len(content) // 2])
    refusal(tmp_path / "a.tar", lambda path: unpack(path, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    pack(bert_bundle, tmp_path / "b.tar")
    assert unpack(tmp_path / "b.tar", tmp_path / "out").digest == bert_bundle.digest


def test_an_archive_of_no_bundle_is_refused_by_its_name_and_leaves_nothing(copy: Path, tmp_path: Path) -> None:
    said = refusal(archive(tmp_path / "a.tar", member("file")), lambda path: unpack(path, tmp_path / "out"))
    assert said.startswith(f"{tmp_path / 'a.tar'} is not a bundle: it has no manifest.json")
    bundle = open_bundle(copy)
    (copy / TOKENIZER).write_bytes(b"x")
    pack(bundle, tmp_path / "b.tar")
    said = refusal(tmp_path / "b.tar", lambda path: unpack(path, tmp_path / "out"))
    assert said.startswith(f"{tmp_path / 'b.tar' / TOKENIZER} does not have the digest")
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "b.tar", "copy"}


def test_files_have_the_permissions_of_any_new_file(bert_bundle: Bundle, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    usual = (tmp_path / "new").stat().st_mode
    assert {path.stat().st_mode for path in bert_bundle.folder.iterdir()} == {usual}
    for path in copy.iterdir():
        path.chmod(0o600)
    pack(open_bundle(copy), tmp_path / "a.tar")
    assert {path.stat().st_mode for path in unpack(tmp_path / "a.tar", tmp_path / "out").folder.iterdir()} == {usual}


def test_tensors_that_cannot_be_written_are_told_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"folder cannot be written \(.*\); check the room there"):
        save_tensors({"a": np.zeros(9, np.float32)}, tmp_path / "folder")


def test_an_archive_that_is_absent_is_refused(tmp_path: Path) -> None:
    assert "absent.tar does not exist; give the .tar" in refusal(tmp_path / "absent.tar", lambda path: unpack(path, tmp_path / "out"))


# --- several bases ---


@pytest.fixture
def several(bundles: Bundles, tmp_path: Path) -> Path:
    """A bundle with three bases that the test may damage."""
    return Path(shutil.copytree(bundles("bert", precision="int8,fp32,w4").folder, tmp_path / "several"))


def test_a_bundle_opens_at_its_default_base_or_the_one_named(several: Path) -> None:
    opened = [open_bundle(several), open_bundle(several, "fp32"), open_bundle(several).at("w4"), open_whole(several)]
    assert [bundle.manifest.precision for bundle in opened] == ["int8", "fp32", "w4", "int8"]
    assert len({bundle.digest for bundle in opened}) == 1
    assert len({bundle.parameters().digest() for bundle in opened}) == 1
    with pytest.raises(ConfigError, match="it has int8, fp32, w4"):
        open_bundle(several, "w8")


@pytest.mark.parametrize("name", ["fp32.safetensors", "fp32.stage_1.onnx"])
def test_files_of_other_bases_may_be_absent_or_damaged_but_in_the_whole(name: str, several: Path) -> None:
    (several / name).write_bytes(b"x")
    open_bundle(several)
    open_bundle(several, "w4")
    for opening in (open_whole, lambda folder: open_bundle(folder, "fp32"), lambda folder: pack(open_whole(folder), several / "a.tar")):
        assert f"{name} does not have the digest" in refusal(several, opening)
    (several / name).unlink()
    open_bundle(several)
    assert f"{name} is missing" in refusal(several, open_whole)


def test_a_base_without_a_stated_digest_is_refused_whichever_is_opened(several: Path) -> None:
    files = open_bundle(several).manifest.files
    change_manifest(several, {key: value for key, value in files.items() if key != "w4.stage_0.onnx"})
    assert "states no digest for w4.stage_0.onnx" in refusal(several)


def test_packing_and_unpacking_keeps_all_bases(several: Path, tmp_path: Path) -> None:
    pack(open_whole(several), tmp_path / "a.tar")
    unpacked = unpack(tmp_path / "a.tar", tmp_path / "out")
    assert unpacked == dataclasses.replace(open_whole(several), folder=tmp_path / "out")


def test_an_archive_that_cannot_be_written_to_its_end_is_not_there(copy: Path, tmp_path: Path) -> None:
    bundle = open_bundle(copy)
    (copy / TOKENIZER).unlink()
    with pytest.raises(FileNotFoundError):
        pack(bundle, tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()
