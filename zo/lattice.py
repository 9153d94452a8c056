"""The lattice: float32 values that are integer multiples of one power of two, the unit (DESIGN section 2).

A value is n * unit with |n| <= LIMIT = 2**24, where every integer is exact in float32; a bundle starts within
START = 2**20 units, so training has 16 times headroom.
"""

import math

import numpy as np

LIMIT = 2**24
START = 2**20
LOG2_UNIT_RANGE = (-100, 60)  # keeps every value and every partial sum clear of subnormals and infinity


class RangeError(ValueError):
    """A value would leave the exact range of its unit."""


def fit_log2_unit(values: np.ndarray) -> int:
    """Exponent of the smallest unit that holds `values` within START units; all zeros give -20."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if not math.isfinite(largest):
        raise RangeError("values hold NaN or infinity; a lattice needs finite numbers")
    if largest == 0.0:
        return -20
    mantissa, exponent = math.frexp(largest)
    log2_unit = (exponent - 1 if mantissa == 0.5 else exponent) - 20
    if log2_unit > LOG2_UNIT_RANGE[1]:
        raise RangeError(f"a value of {largest} is too large for any unit; the largest is 2**{LOG2_UNIT_RANGE[1]}")
    return max(LOG2_UNIT_RANGE[0], log2_unit)


def snap(values: np.ndarray, log2_unit: int) -> np.ndarray:
    """The nearest lattice values (float32, C order, same shape), never -0.0; RangeError beyond LIMIT units."""
    units = np.rint(np.ldexp(np.asarray(values, np.float64), -log2_unit)) + 0.0
    if not np.all(np.abs(units) <= LIMIT):
        raise RangeError(f"a value of {np.max(np.abs(values))} is beyond {LIMIT} units of 2**{log2_unit}")
    return np.asarray(np.ldexp(units, log2_unit), np.float32, order="C")


def check(name: str, values: np.ndarray, log2_unit: int) -> None:
    """RangeError naming the tensor unless every value is an exact multiple of the unit, in range and not -0.0."""
    units = np.ldexp(values.astype(np.float64), -log2_unit)
    if not np.all(np.abs(units) <= LIMIT) or np.any(units != np.rint(units)):
        raise RangeError(f"tensor {name!r}: values are not multiples of 2**{log2_unit} within {LIMIT} units")
    if np.any((values == 0) & np.signbit(values)):
        raise RangeError(f"tensor {name!r} holds -0.0, which would break digests; snap it again")
