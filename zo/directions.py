"""Directions: seeded streams of +1/-1, one per (run key, seed, group) (DESIGN section 2).

Bit i (little-endian) of the raw words of `Philox(key=[run_key << 32 | group, seed])` is the sign of value i:
1 is +1, 0 is -1. The words are the same on every processor and numpy version; tests/zo/golden_directions.json
holds digests by which any port can prove itself.
"""

import numpy as np
from numpy.random import Philox

WORD = 64  # values per raw word
BLOCK = 256  # values per Philox counter step: a stream can be entered at any multiple of it

# Below this many values a vectorised Philox over many seeds beats starting one numpy generator per seed (29 us).
SHORT = 16_384

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_SIGN_ROWS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32) * 2 - 1


def stream(run_key: int, group: int, seed: int, start: int = 0) -> Philox:
    """The generator of one direction, placed at value `start` (a multiple of BLOCK)."""
    if start % BLOCK:
        raise ValueError(f"a direction can be entered at multiples of {BLOCK} values, not at {start}")
    return Philox(key=_key(run_key, group, seed), counter=start // BLOCK)


def sign_bytes(generator: Philox, count: int) -> np.ndarray:
    """The next `count` signs (a multiple of BLOCK, or the last of a stream), 8 to the byte: uint8 [ceil(count / 8)]."""
    words = generator.random_raw(-(-count // WORD)).astype("<u8", copy=False)
    return words.view(np.uint8)[: -(-count // 8)]


def signed_rows(scale: float) -> np.ndarray:
    """Table [256, 8]: for every byte of signs, its eight values of +scale or -scale (float32)."""
    return _SIGN_ROWS * np.float32(scale)


def signs(run_key: int, group: int, seeds: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Directions of many seeds, values start..stop (start a multiple of BLOCK): float32 [len(seeds), stop - start]."""
    if start % BLOCK:
        raise ValueError(f"a direction can be entered at multiples of {BLOCK} values, not at {start}")
    count = stop - start
    words = -(-count // WORD)
    if count <= SHORT and len(seeds) > 1:
        raw = _philox_words(run_key, group, np.asarray(seeds, np.uint64), start // BLOCK, words)
    else:
        raw = np.stack([stream(run_key, group, int(seed), start).random_raw(words) for seed in seeds])
    octets = raw.astype("<u8", copy=False).view(np.uint8)
    return np.take(_SIGN_ROWS, octets, axis=0).reshape(len(seeds), -1)[:, :count]


def _key(run_key: int, group: int, seed: int) -> np.ndarray:
    if not (0 <= run_key < 2**32 and 0 <= group < 2**32 and 0 <= seed < 2**64):
        raise ValueError(f"run key {run_key} and group {group} must fit 32 bits, seed {seed} 64 bits, all unsigned")
    return np.array([run_key << 32 | group, seed], np.uint64)


def _philox_words(run_key: int, group: int, seeds: np.ndarray, block: int, words: int) -> np.ndarray:
    """The same words as `stream(...).random_raw(words)` for every seed: uint64 [len(seeds), words].

    Philox4x64-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); like numpy's, the
    counter is advanced before the first block.
    """
    blocks = -(-words // 4)
    counters = np.arange(block + 1, block + 1 + blocks, dtype=np.uint64)
    shape = (len(seeds), blocks)
    c0, c1 = np.broadcast_to(counters, shape), np.zeros(shape, np.uint64)
    c2, c3 = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
    k0, k1 = int(_key(run_key, group, 0)[0]), seeds[:, None]
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _WEYL[0]) % 2**64
        k1 = k1 + np.uint64(_WEYL[1])
    return np.stack([c0, c1, c2, c3], axis=2).reshape(len(seeds), -1)[:, :words]


def _multiply(constant: np.uint64, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """High and low 64 bits of the 128-bit products."""
    a_high, a_low = constant >> _HALF, constant & _LOW
    b_high, b_low = values >> _HALF, values & _LOW
    low_low, high_low = a_low * b_low, a_high * b_low
    middle = a_low * b_high + (low_low >> _HALF) + (high_low & _LOW)
    return a_high * b_high + (high_low >> _HALF) + (middle >> _HALF), constant * values
