"""The arithmetic of `Parameters.add` and `Parameters.branches` in numpy: exact integer sums of directions.

The reference: sums are formed in floating point wide enough to be exact (`exact_type`), so any order, chunk or BLAS gives the
same bits. `zo.kernel_compiled` gives them faster.
"""

import numpy as np

from zo import directions
from zo.lattice import LIMIT, RangeError
from zo.terms import STEP_LIMIT

CHUNK = 1 << 17  # values per pass: 512 KiB of float32 stays in the second-level cache (docs/performance.md)
FEW = 16  # up to here one table per seed is kept; beyond, a matrix product over SLAB seeds is faster
SLAB = 256


def exact_type(total: int) -> type:
    """The float in which integer sums are exact while the sum of |steps| is `total`; RangeError beyond 2**53."""
    if total > STEP_LIMIT:
        raise RangeError(f"steps of one addition sum to {total}, beyond 2**53; add them in several additions")
    return np.float32 if total <= LIMIT else np.float64


def largest_sum(steps: np.ndarray) -> int:
    """Largest sum of |steps| of a row of [P, n]; rounded beyond 2**53."""
    if steps.size <= FEW:  # a probe's: numpy would take longer to begin
        return max((sum(map(abs, row)) for row in steps.tolist()), default=0)
    return int(np.abs(steps).sum(axis=1, dtype=np.float64).max(initial=0))


def combine(run_key: int, group: int, seeds: np.ndarray, steps: np.ndarray, start: int, stop: int) -> np.ndarray:
    """sum_u steps[p, u] * z(seeds[u], group)[start:stop], exact: float32 or float64 [P, stop - start], in units."""
    kind = exact_type(largest_sum(steps))
    total: np.ndarray = np.zeros((len(steps), stop - start), kind)
    for first in range(0, len(seeds), SLAB):
        z = directions.signs(run_key, group, seeds[first : first + SLAB], start, stop)
        total += steps[:, first : first + SLAB].astype(kind) @ z.astype(kind, copy=False)
    return total


def add_in_place(
    run_key: int, group: int, seeds: np.ndarray, steps: np.ndarray, values: np.ndarray, start: int, unit: float, chunk: int
) -> None:
    """values += unit * sum_u steps[u] * z(seeds[u], group)[start:start + len(values)], chunk by chunk, exactly.

    The caller has made sure that every result is within LIMIT units.
    """
    kind = exact_type(int(np.abs(steps).sum(dtype=np.float64)))
    if kind is np.float32 and len(seeds) <= FEW:
        _add_by_tables(run_key, group, seeds, steps, values, start, unit, chunk)
        return
    for a in range(0, len(values), directions.SHORT):
        part = values[a : a + directions.SHORT]
        total = combine(run_key, group, seeds, steps[None], start + a, start + a + len(part))[0]
        part[:] = part + total * kind(unit)


def _add_by_tables(
    run_key: int, group: int, seeds: np.ndarray, steps: np.ndarray, values: np.ndarray, start: int, unit: float, chunk: int
) -> None:
    streams = [directions.stream(run_key, group, int(seed), start) for seed in seeds]
    tables = [directions.signed_rows(float(step) * unit) for step in steps]
    rows = np.empty((2, -(-min(chunk, len(values)) // 8), 8), np.float32)
    for a in range(0, len(values), chunk):
        part = values[a : a + chunk]
        for place, (generator, table) in enumerate(zip(streams, tables, strict=True)):
            octets = directions.sign_bytes(generator, len(part))
            row = rows[min(place, 1), : len(octets)]
            np.take(table, octets, axis=0, out=row, mode="clip")
            if place:
                rows[0, : len(octets)] += row
        part += rows[0].reshape(-1)[: len(part)]
