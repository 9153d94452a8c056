"""Directions are the signs of numpy's raw Philox words, by every route and from every entry point."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Philox
from reference import PROPERTY, direction

from zo import directions
from zo.directions import BLOCK, SHORT

GOLDEN = json.loads((Path(__file__).parent / "golden_directions.json").read_text())
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


def independent(run_key: int, group: int, seed: int, size: int) -> np.ndarray:
    words = Philox(key=np.array([run_key << 32 | group, seed], np.uint64)).random_raw(-(-size // 64))
    return np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:size].astype(np.int8) * 2 - 1


def one_seed(run_key: int, group: int, seed: int, size: int) -> np.ndarray:
    return directions.signs(run_key, group, np.array([seed], np.uint64), 0, size)[0]


def many_seeds(run_key: int, group: int, seed: int, size: int) -> np.ndarray:
    return directions.signs(run_key, group, np.array([5, seed, 2**64 - 1], np.uint64), 0, size)[1]


def vectorised_from_later_blocks(run_key: int, group: int, seed: int, size: int) -> np.ndarray:
    seeds = np.array([seed, 2**63], np.uint64)
    pieces = [directions.signs(run_key, group, seeds, a, min(a + 3 * BLOCK, size))[0] for a in range(0, size, 3 * BLOCK)]
    return np.concatenate(pieces)


def one_seed_from_later_blocks(run_key: int, group: int, seed: int, size: int) -> np.ndarray:
    seeds = np.array([seed], np.uint64)
    return np.concatenate([directions.signs(run_key, group, seeds, a, min(a + BLOCK, size))[0] for a in range(0, size, BLOCK)])


def sign_bytes_in_pieces(run_key: int, group: int, seed: int, size: int) -> np.ndarray:
    generator = directions.stream(run_key, group, seed)
    octets = [directions.sign_bytes(generator, min(2 * BLOCK, size - a)) for a in range(0, size, 2 * BLOCK)]
    return directions.signed_rows(1.0)[np.concatenate(octets)].reshape(-1)[:size]


@pytest.mark.parametrize(
    "route", [independent, one_seed, many_seeds, vectorised_from_later_blocks, one_seed_from_later_blocks, sign_bytes_in_pieces]
)
def test_golden_digests_are_met_by_every_route(route: Callable[[int, int, int, int], np.ndarray]) -> None:
    for row in GOLDEN:
        z = route(row["run_key"], row["group"], row["seed"], row["size"]).astype(np.int8)
        assert hashlib.sha256(z.tobytes()).hexdigest() == row["sha256"], row


def test_golden_rows_cover_the_corners() -> None:
    seen = {(row["seed"], row["size"]) for row in GOLDEN}
    assert seen >= {(seed, size) for seed in (0, 1, 2**32, 2**64 - 1) for size in (1, 63, 64, 65, 1000, 100_003)}
    assert {row["run_key"] for row in GOLDEN} >= {0, 2**32 - 1}
    assert {row["group"] for row in GOLDEN} >= {0, 2**32 - 1}


@PROPERTY
@given(U32, U32, st.lists(U64, min_size=1, max_size=5), st.integers(0, 2**33), st.integers(1, 700))
def test_any_stretch_of_any_direction_is_that_of_numpys_words(run_key: int, group: int, seeds: list[int], block: int, size: int) -> None:
    z = directions.signs(run_key, group, np.array(seeds, np.uint64), block * BLOCK, block * BLOCK + size)
    assert z.shape == (len(seeds), size)
    assert z.dtype == np.float32
    for row, seed in zip(z, seeds, strict=True):
        words = Philox(key=np.array([run_key << 32 | group, seed], np.uint64), counter=block).random_raw(11)
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:size]
        assert np.array_equal(row, np.where(bits, 1, -1))


@PROPERTY
@given(U32, U32, U64, st.integers(1, 400), st.integers(1, 400))
def test_a_shorter_direction_is_the_start_of_a_longer_one(run_key: int, group: int, seed: int, size: int, more: int) -> None:
    short, long = (one_seed(run_key, group, seed, n).tolist() for n in (size, size + more))
    assert short == long[:size] == direction(run_key, group, seed, size)


@pytest.mark.parametrize("size", [SHORT - 1, SHORT, SHORT + 1])
def test_both_generators_agree_where_one_takes_over_from_the_other(size: int) -> None:
    assert np.array_equal(many_seeds(1, 2, 3, size), one_seed(1, 2, 3, size))


def test_run_key_group_and_seed_each_change_the_direction() -> None:
    found = {one_seed(*key, 256).tobytes() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2**32), (2**31, 0, 0)]}
    assert len(found) == 6


def test_signed_rows_hold_the_scaled_signs_of_every_byte() -> None:
    rows = directions.signed_rows(-0.25)
    assert rows.dtype == np.float32
    assert rows.tolist() == [[-0.25 if octet >> bit & 1 else 0.25 for bit in range(8)] for octet in range(256)]


@pytest.mark.parametrize("start", [1, 64, 255, BLOCK + 1])
def test_a_direction_is_entered_only_at_whole_blocks(start: int) -> None:
    with pytest.raises(ValueError, match=str(start)):
        directions.stream(0, 0, 0, start)


@pytest.mark.parametrize("seeds", [1, 2])
def test_signs_of_any_count_of_seeds_are_entered_only_at_whole_blocks(seeds: int) -> None:
    with pytest.raises(ValueError, match="100"):
        directions.signs(0, 0, np.arange(seeds, dtype=np.uint64), 100, 110)


@pytest.mark.parametrize("key", [(-1, 0, 0), (2**32, 0, 0), (0, -1, 0), (0, 2**32, 0), (0, 0, -1), (0, 0, 2**64)])
def test_keys_that_do_not_fit_are_refused(key: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        directions.stream(*key)


@pytest.mark.parametrize("key", [(-1, 0), (2**32, 0), (0, -1), (0, 2**32)])
def test_keys_that_do_not_fit_are_refused_for_many_seeds(key: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        directions.signs(*key, np.arange(2, dtype=np.uint64), 0, 10)
