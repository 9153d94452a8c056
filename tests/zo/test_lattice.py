"""Values sit on exact multiples of the unit, within LIMIT, and zero has one form."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY

from zo import lattice
from zo.lattice import LIMIT, LOG2_UNIT_RANGE, START, RangeError

UNITS = st.integers(-100, 60)
FRACTIONS = st.lists(st.floats(-START, START), min_size=1, max_size=30)


@PROPERTY
@given(FRACTIONS, UNITS)
def test_snapping_goes_to_the_nearest_multiple_and_is_float32(fractions: list[float], log2_unit: int) -> None:
    snapped = lattice.snap(np.ldexp(np.array(fractions), log2_unit), log2_unit)
    assert snapped.dtype == np.float32
    for value, fraction in zip(snapped.tolist(), fractions, strict=True):
        units = math.ldexp(value, -log2_unit)
        assert units == round(units)
        assert abs(units - fraction) <= 0.5


@PROPERTY
@given(FRACTIONS, UNITS)
def test_what_is_snapped_passes_the_check_and_stays_when_snapped_again(fractions: list[float], log2_unit: int) -> None:
    snapped = lattice.snap(np.ldexp(np.array(fractions), log2_unit), log2_unit)
    lattice.check("t", snapped, log2_unit)
    assert lattice.snap(snapped, log2_unit).tobytes() == snapped.tobytes()


@PROPERTY
@given(st.floats(-0.5, 0.0), UNITS)
def test_snapping_never_yields_minus_zero(fraction: float, log2_unit: int) -> None:
    snapped = lattice.snap(np.array([fraction, -0.0]) * 2.0**log2_unit, log2_unit)
    assert snapped.tolist() == [0.0, 0.0]
    assert not np.signbit(snapped).any()


def test_snapping_keeps_the_shape_and_ties_go_to_even() -> None:
    snapped = lattice.snap(np.array([[0.5, 1.5], [2.5, -0.5], [-1.5, -2.5]]), 0)
    assert snapped.tolist() == [[0, 2], [2, 0], [-2, -2]]


@pytest.mark.parametrize("log2_unit", [-100, -20, 0, 60])
def test_limit_is_the_last_value_with_a_place(log2_unit: int) -> None:
    unit = 2.0**log2_unit
    assert lattice.snap(np.array([LIMIT * unit, -LIMIT * unit]), log2_unit).tolist() == [LIMIT * unit, -LIMIT * unit]
    for sign in (1, -1):
        with pytest.raises(RangeError, match=str(LIMIT)):
            lattice.snap(np.array([0.0, sign * (LIMIT + 1) * unit]), log2_unit)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(RangeError):
        lattice.snap(np.array([1.0, bad]), 0)
    with pytest.raises(RangeError, match="finite"):
        lattice.fit_log2_unit(np.array([1.0, bad]))
    with pytest.raises(RangeError, match="'t'"):
        lattice.check("t", np.array([1.0, bad], np.float32), 0)


@pytest.mark.parametrize("bad", [0.5, 1.25, -LIMIT - 2.0, LIMIT + 2.0])
def test_check_names_the_tensor_that_is_off_the_lattice(bad: float) -> None:
    with pytest.raises(RangeError, match=rf"'block\.1'.*{LIMIT}"):
        lattice.check("block.1", np.array([1.0, bad], np.float32), 0)


def test_check_refuses_minus_zero_by_name() -> None:
    with pytest.raises(RangeError, match=r"'block\.1' holds -0\.0"):
        lattice.check("block.1", np.array([1.0, -0.0], np.float32), 0)


@PROPERTY
@given(st.lists(st.floats(-(2.0**70), 2.0**70).filter(lambda v: v == 0 or abs(v) > 2.0**-70), min_size=1, max_size=10))
def test_the_fitted_unit_is_the_smallest_that_leaves_headroom(values: list[float]) -> None:
    log2_unit = lattice.fit_log2_unit(np.array(values))
    largest = max(map(abs, values))
    assert largest <= math.ldexp(START, log2_unit)
    assert largest > math.ldexp(START, log2_unit - 1) or largest == 0
    assert np.abs(lattice.snap(np.array(values), log2_unit)).max() <= math.ldexp(START, log2_unit)


def test_all_zeros_and_nothing_at_all_fit_the_default_unit() -> None:
    assert lattice.fit_log2_unit(np.zeros(3)) == -20
    assert lattice.fit_log2_unit(np.empty(0)) == -20


def test_tiny_values_get_the_smallest_unit_there_is() -> None:
    assert lattice.fit_log2_unit(np.array([1e-40])) == LOG2_UNIT_RANGE[0]


def test_values_too_large_for_any_unit_are_refused() -> None:
    assert lattice.fit_log2_unit(np.array([2.0**80])) == LOG2_UNIT_RANGE[1]
    with pytest.raises(RangeError):
        lattice.fit_log2_unit(np.array([2.0**81]))
