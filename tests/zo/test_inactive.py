"""Inactive blocks: what is written from a stream is what quantising whole tensors gives, and the engine computes with it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles
from hypothesis import given, settings
from hypothesis import strategies as st

from zo import quantised
from zo.group import Tensor
from zo.inactive import CODES, VALUES, codes_name, layout, packed_bytes, scale_name, write

TENSORS = (Tensor("x.weight", (100, 6)), Tensor("x.bias", (6,)), Tensor("y.weight", (32, 5)), Tensor("norm.weight", (40,)))
SIZE = sum(tensor.size for tensor in TENSORS)


def cut(values: np.ndarray, lengths: list[int]) -> Iterator[np.ndarray]:
    """In pieces of these lengths, over and over, all in the same room."""
    room, place, turn = np.empty(max(lengths), np.float32), 0, 0
    while place < len(values):
        piece = room[: min(lengths[turn % len(lengths)], len(values) - place)]
        piece[:] = values[place : place + len(piece)]
        yield piece
        place, turn = place + len(piece), turn + 1


@settings(max_examples=40, deadline=None)
@given(bits=st.sampled_from([4, 8]), lengths=st.lists(st.integers(1, 400), min_size=1, max_size=5))
def test_any_stream_gives_what_the_whole_tensors_give(bits: int, lengths: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, values = tmp_path_factory.mktemp("inactive"), np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)
    write(folder, TENSORS, bits, cut(values, lengths))
    content = {name: (folder / name).read_bytes() for name in (CODES, VALUES)}
    assert sum(map(len, content.values())) == packed_bytes(TENSORS, bits)
    found = {
        name: np.frombuffer(content[place.file][place.offset : place.offset + place.size], place.kind).reshape(place.shape)
        for name, place in layout(TENSORS, bits).items()
    }
    start = 0
    for tensor in TENSORS:
        whole, start = values[start : start + tensor.size].reshape(tensor.shape), start + tensor.size
        if len(tensor.shape) == 1:
            np.testing.assert_array_equal(found[tensor.name], whole)
        else:
            codes, scales = quantised.blocks(whole, bits)
            np.testing.assert_array_equal(found[codes_name(tensor.name, bits)], codes)
            np.testing.assert_array_equal(found[scale_name(tensor.name)], scales)


def test_no_room_is_met_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write(tmp_path / "missing", TENSORS, 4, iter(()))


def test_a_block_is_an_eighth_or_a_quarter_with_its_scales(bundles: Bundles) -> None:
    block = bundles("bert", "full", "w4,w8,fp32").manifest.groups[0]
    sizes = [packed_bytes(block.tensors, bits) / (4 * block.size) for bits in (4, 8)]
    assert 0.15 < sizes[0] < 0.25 < sizes[1] < 0.35
