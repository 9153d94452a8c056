"""Bundles that mean harm are refused in one line, whatever release of ONNX Runtime would do with them."""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from coordinator.build.build import calibration_batches
from zo import manifest as manifest_file
from zo.bundle import Bundle, file_digest, open_bundle, unpack
from zo.engine import Engine, external
from zo.errors import BundleError, UserError
from zo.planning import one_level, sizes
from zo.recipe import Probe

Change = Callable[[Path], None]


@pytest.fixture
def altered(bert_bundle: Bundle, tmp_path: Path) -> Callable[[Change], Path]:
    """altered(change): a copy of a bundle, changed, whose manifest states the digests of what is there now."""

    def make(change: Change) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(bert_bundle.folder, folder)
        change(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"] = {name: file_digest(folder / name) for name in manifest["files"] if (folder / name).is_file()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:  # noqa: PT012
        opened = open_bundle(folder)
        Engine(opened, opened.parameters())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stage(folder: Path) -> Path:
    return folder / manifest_file.read(folder).stages[0].file


def edited(edit: Callable[[onnx.ModelProto], object]) -> Change:
    """A change of the first stage's graph."""

    def change(folder: Path) -> None:
        model = onnx.load(stage(folder), load_external_data=False)
        edit(model)
        stage(folder).write_bytes(model.SerializeToString())

    return change


def reading(location: str) -> Callable[[onnx.ModelProto], object]:
    """An edit by which the graph's first external tensor lies elsewhere."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.external_data)
        next(entry for entry in tensor.external_data if entry.key == "location").value = location

    return edit


OUTSIDE = ["../secret", "/etc/passwd", "/dev/zero", "/proc/self/environ", "sub/../../secret", "./base.safetensors", "", "manifest.json"]


@pytest.mark.parametrize("location", OUTSIDE)
def test_weights_outside_the_bundles_own_file_are_not_read(location: str, altered: Any) -> None:
    folder = altered(edited(reading(location)))
    assert f".onnx reads {location!r}, which is not the bundle's" in refused(folder)


def hidden(where: str) -> Callable[[onnx.ModelProto], object]:
    """An edit that puts a tensor that reads /etc/passwd where a careless reader would not look."""
    tensor = TensorProto(name="spy", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    graph = helper.make_graph([], "inner", [], [], [tensor])

    def edit(model: onnx.ModelProto) -> None:
        if where == "constant":
            model.graph.node.append(helper.make_node("Constant", [], ["spy"], value=tensor))
        elif where == "tensors":
            node = model.graph.node.add(op_type="If")
            node.attribute.add(name="x", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
        elif where == "branch":
            model.graph.node.append(helper.make_node("If", ["c"], ["spy"], then_branch=graph, else_branch=graph))
        elif where == "graphs":
            node = model.graph.node.add(op_type="If")
            node.attribute.add(name="x", type=onnx.AttributeProto.GRAPHS).graphs.append(graph)
        elif where == "sparse":
            model.graph.sparse_initializer.add().values.CopyFrom(tensor)
        elif where == "sparse attribute":
            node = model.graph.node.add(op_type="Constant")
            sparse = onnx.AttributeProto.SPARSE_TENSOR
            node.attribute.add(name="sparse_value", type=sparse).sparse_tensor.indices.CopyFrom(tensor)
        elif where == "function":
            model.functions.add(name="f").node.append(helper.make_node("Constant", [], ["spy"], value=tensor))
        elif where == "training":
            model.training_info.add().initialization.initializer.append(tensor)
        elif where == "deep":
            inner = graph
            for _ in range(20):
                node = helper.make_node("If", ["c"], ["spy"], then_branch=inner, else_branch=graph)
                inner = helper.make_graph([node], "inner", [], [])
            model.graph.node.append(helper.make_node("If", ["c"], ["spy"], then_branch=inner, else_branch=inner))

    return edit


PLACES = ["constant", "tensors", "branch", "graphs", "sparse", "sparse attribute", "function", "training", "deep"]


@pytest.mark.parametrize("where", PLACES)
def test_wherever_in_a_graph_a_path_stands_it_is_found(where: str, altered: Any) -> None:
    assert "reads '/etc/passwd'" in refused(altered(edited(hidden(where))))


def leads_to_a_tensor(message: Any, seen: tuple[str, ...] = ()) -> bool:
    if message.name in seen:
        return False
    inner = [field.message_type for field in message.fields if field.message_type]
    return message.name == "TensorProto" or any(leads_to_a_tensor(each, (*seen, message.name)) for each in inner)


def test_the_walk_knows_every_way_to_a_tensor_that_the_format_has() -> None:
    """Against the descriptors of the onnx package: a way that is new would fail here."""
    short = {"ModelProto": "Model", "TrainingInfoProto": "Training", "FunctionProto": "Function", "GraphProto": "Graph"}
    short |= {"NodeProto": "Node", "AttributeProto": "Attribute", "SparseTensorProto": "Sparse", "TensorProto": "Tensor"}
    ways: dict[str, dict[int, str]] = {}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        found = {
            field.number: field.message_type for field in message.fields if field.message_type and leads_to_a_tensor(field.message_type)
        }
        if short[message.name] not in ways:
            ways[short[message.name]] = {number: short[each.name] for number, each in found.items()}
            waiting += found.values()
    (where,) = (field.number for field in TensorProto.DESCRIPTOR.fields if field.name == "external_data")
    assert ways | {"Tensor": {where: "Entry"}} == external.WAYS


def test_a_graph_that_runs_in_a_circle_is_refused(altered: Any) -> None:
    def circle(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Add", ["round_b", "round_b"], ["round_a"]))
        model.graph.node.append(helper.make_node("Add", ["round_a", "round_a"], ["round_b"]))

    assert ".onnx cannot be loaded" in refused(altered(edited(circle)))


def test_a_tensor_larger_than_its_file_is_refused_and_no_memory_taken(altered: Any) -> None:
    def huge(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.external_data)
        tensor.dims[0] = 2**40
        for entry in tensor.external_data:
            if entry.key == "length":
                entry.value = str(2**44)

    assert "cannot be loaded" in refused(altered(edited(huge)))


@pytest.mark.parametrize("shape", [[2**40, 2**20], [-1], [0], [2**62]])
def test_a_trainable_tensor_of_an_absurd_shape_is_refused(shape: list[int], bert_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bert_bundle.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["groups"][0]["tensors"][0]["shape"] = shape
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert re.search(r"holds no tensor|cannot have shape", refused(folder))


def test_a_graph_that_puts_out_or_takes_other_than_its_manifest_states_is_refused(altered: Any) -> None:
    folder = altered(lambda _: None)
    path = folder / "manifest.json"
    plain = path.read_text()
    path.write_text(plain.replace('"hidden_0"', '"hidden_x"'))
    assert "fp32.stage_0.onnx does not put out 'hidden_x', as its manifest states" in refused(folder)
    manifest = json.loads(plain)
    tensors = manifest["groups"][-1]["tensors"]
    tensors.pop()
    path.write_text(json.dumps(manifest))
    assert "fp32.stage_2.onnx does not take what its manifest states: 'head." in refused(folder)
    first, last = manifest["groups"][0]["tensors"], manifest["groups"][-1]["tensors"]
    last.append(first.pop())
    path.write_text(json.dumps(manifest))
    assert "fp32.stage_0.onnx does not take what its manifest states: " in refused(folder)


def places(plain: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Of every value in plain data, at any depth."""
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ():
        yield (*place, key)
        yield from places(value, (*place, key))


VALUES = [None, -1, 0, 1, 10**30, 2.5, float("nan"), float("inf"), "", "x", "../x", [], {}, True, [1], 10**6]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_manifest_with_any_other_value_is_refused_or_serves(
    data: st.DataObject, bert_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(shutil.copytree(bert_bundle.folder, tmp_path_factory.mktemp("altered") / "bundle"))
    plain = json.loads((folder / "manifest.json").read_text())
    *outer, last = data.draw(st.sampled_from([place for place in places(plain) if place[0] != "files"]))
    inner = plain
    for key in outer:
        inner = inner[key]
    inner[last] = data.draw(st.sampled_from(VALUES) | st.integers() | st.text(max_size=8))
    (folder / "manifest.json").write_text(json.dumps(plain))
    try:
        opened = open_bundle(folder)
        engine = Engine(opened, opened.parameters())
        batch = calibration_batches(opened, [])[0]
        engine.forward(batch)
        engine.probe(one_level(opened.manifest, sizes(Probe(), opened.manifest), 0, 1), batch)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"{}", (2**60).to_bytes(8, "little") + b"{", (2**31).to_bytes(8, "little")])
def test_a_safetensors_file_that_is_none_is_refused(content: bytes, altered: Any) -> None:
    assert "trainable.safetensors" in refused(altered(lambda folder: (folder / "trainable.safetensors").write_bytes(content) and None))


def test_a_safetensors_header_that_promises_more_than_the_file_holds_is_refused(altered: Any) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    content = len(header).to_bytes(8, "little") + header
    assert "trainable.safetensors" in refused(altered(lambda folder: (folder / "trainable.safetensors").write_bytes(content) and None))


@pytest.mark.parametrize("kind", ["fp32*", "*.onnx", "tokenizer.json", "trainable.safetensors"])
def test_a_link_in_a_bundle_is_refused(kind: str, bert_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bert_bundle.folder, folder)
    target = next(folder.glob(kind))
    target.rename(tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    assert "is a link, which no bundle holds" in refused(folder)


def test_a_manifest_too_large_to_be_one_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**33)
    assert "larger than" in refused(tmp_path)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_graph_without_other_files_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("graph") / "stage.onnx"
    path.write_bytes(content)
    try:
        external.check(path, "base.safetensors")
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_messages_nested_without_end_are_refused(tmp_path: Path) -> None:
    data = b""
    for _ in range(300):  # graph > node > attribute > graph ...
        for number in (6, 5, 1):
            data = bytes([number << 3 | 2]) + length(len(data)) + data
    path = tmp_path / "stage.onnx"
    path.write_bytes(bytes([7 << 3 | 2]) + length(len(data)) + data)
    with pytest.raises(BundleError, match="is no ONNX graph"):
        external.check(path, "base.safetensors")


def length(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


# --- archives ---


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b"" if kind != tarfile.REGTYPE else b"x"


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("/outside"),
        member("a/b"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.LNKTYPE, "../outside"),
        member("pipe", tarfile.FIFOTYPE),
        member("disk", tarfile.BLKTYPE),
        member("folder", tarfile.DIRTYPE),
    ],
    ids=lambda bad: f"{bad[0].name}-{bad[0].type.decode()}",
)
def test_an_archive_writes_plain_files_into_its_folder_and_nothing_else(bad: tuple[tarfile.TarInfo, bytes], tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", bad)
    with pytest.raises(BundleError, match=r"is no file name|is no plain file"):
        unpack(path, tmp_path / "out/folder")
    assert {each.relative_to(tmp_path).as_posix() for each in tmp_path.rglob("*")} == {"a.tar", "out"}


def test_an_archive_that_swells_is_refused(tmp_path: Path) -> None:
    """A sparse member claims 8 GB in 2 kB; a compressed archive is not taken at all."""
    import gzip

    plain = archive(tmp_path / "a.tar", (tarfile.TarInfo("zeros"), bytes(1 << 20)))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(BundleError, match="cannot be unpacked"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "one")
    header = tarfile.TarInfo("zeros")
    header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**33), "GNU.sparse.name": "zeros"}
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        content = b"1\n8589934592\n0\n".ljust(512, b"\0")
        header.size = len(content)
        tar.addfile(header, io.BytesIO(content))
    with pytest.raises(BundleError, match=r"is no plain file|cannot be unpacked"):
        unpack(tmp_path / "b.tar", tmp_path / "two")
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file()) < 4e6
    assert not any(path.stat().st_size > 4e6 for path in tmp_path.rglob("*"))
