"""The arithmetic of `zo.kernel_numpy` in C (_kernel.c), with the same bits. ImportError where it was not built."""

import ctypes

import numpy as np

import zo._kernel
from zo.directions import BLOCK
from zo.kernel_numpy import exact_type, largest_sum

_library = ctypes.CDLL(zo._kernel.__file__)  # calls through ctypes let other threads run
_word, _count, _pointer = ctypes.c_uint64, ctypes.c_int64, ctypes.c_void_p
_library.zo_add_in_place.argtypes = [_word, _pointer, _pointer, _count, _count, _pointer, _count, _count, ctypes.c_float]
_library.zo_combine.argtypes = [_word, _pointer, _pointer, _count, _count, _count, _pointer, _count, _count]
_library.zo_add_in_place.restype = _library.zo_combine.restype = None


def combine(run_key: int, group: int, seeds: np.ndarray, steps: np.ndarray, start: int, stop: int) -> np.ndarray:
    """sum_u steps[p, u] * z(seeds[u], group)[start:stop], exact: float32 or float64 [P, stop - start], in units."""
    total = largest_sum(steps)
    out: np.ndarray = np.empty((len(steps), stop - start), exact_type(total))
    seeds, steps = np.ascontiguousarray(seeds, np.uint64), np.ascontiguousarray(steps, np.int64)
    key = _key(run_key, group, start)
    _library.zo_combine(key, seeds.ctypes.data, steps.ctypes.data, len(seeds), len(steps), total, out.ctypes.data, stop - start, start)
    return out


def add_in_place(
    run_key: int, group: int, seeds: np.ndarray, steps: np.ndarray, values: np.ndarray, start: int, unit: float, chunk: int
) -> None:
    """values += unit * sum_u steps[u] * z(seeds[u], group)[start:start + len(values)], in one pass, exactly.

    values: float32, contiguous. The caller has made sure that every result is within LIMIT units.
    """
    total = int(np.abs(steps).sum(dtype=np.float64))
    exact_type(total)
    if values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ValueError("values must be contiguous float32")
    seeds, steps = np.ascontiguousarray(seeds, np.uint64), np.ascontiguousarray(steps, np.int64)
    key = _key(run_key, group, start)
    _library.zo_add_in_place(key, seeds.ctypes.data, steps.ctypes.data, len(seeds), total, values.ctypes.data, len(values), start, unit)


def _key(run_key: int, group: int, start: int) -> int:
    if not (0 <= run_key < 2**32 and 0 <= group < 2**32):
        raise ValueError(f"run key {run_key} and group {group} must fit 32 bits, unsigned")
    if start % BLOCK:
        raise ValueError(f"a direction can be entered at multiples of {BLOCK} values, not at {start}")
    return run_key << 32 | group
