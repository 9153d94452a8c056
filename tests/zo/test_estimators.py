"""Scalars onto the grid, off it, and into integer steps: sign, scale, clipping and unbiased rounding."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY

from zo.estimators import Grid, half_differences, joint_halves, mezo_steps, round_stochastically

U32 = st.integers(0, 2**32 - 1)
GRID = Grid(log2_levels=4, clip=2.0)


# --- the grid ---


@PROPERTY
@given(st.lists(st.floats(-10, 10), max_size=20), st.integers(0, 20), st.floats(1, 100))
def test_a_scalar_comes_back_within_half_a_level_of_itself_or_of_the_clip(values: list[float], log2_levels: int, clip: float) -> None:
    grid = Grid(log2_levels, clip)
    integers = grid.integers(np.array(values))
    assert integers.dtype == np.int64
    assert (np.abs(integers) <= grid.limit).all()
    edge = grid.limit / 2**log2_levels
    assert clip - 2.0**-log2_levels < edge <= clip
    assert (np.abs(grid.values(integers) - np.clip(values, -edge, edge)) <= 2.0 ** -(log2_levels + 1)).all()


@PROPERTY
@given(st.integers(0, 40), st.data())
def test_integers_on_the_grid_survive_the_round_trip(log2_levels: int, data: st.DataObject) -> None:
    grid = Grid(log2_levels, 2.0 ** (30 - log2_levels))
    integers = np.array(data.draw(st.lists(st.integers(-grid.limit, grid.limit), min_size=1)))
    assert np.array_equal(grid.integers(grid.values(integers)), integers)


def test_values_are_rounded_to_the_nearest_level_and_clipped() -> None:
    values = np.array([[0.0, 1 / 16, -1 / 16], [0.09, 0.1, -0.1], [2.0, 2.1, -1e300]])
    assert GRID.integers(values).tolist() == [[0, 1, -1], [1, 2, -2], [32, 32, -32]]
    assert GRID.values(np.array([32, -1])).tolist() == [2.0, -0.0625]


def test_a_clip_between_two_levels_goes_down_to_the_lower() -> None:
    assert Grid(2, 0.7).limit == 2
    assert Grid(2, 0.7).integers(np.array([5.0])).tolist() == [2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scalars_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        GRID.integers(np.array([0.0, bad]))


@pytest.mark.parametrize(("log2_levels", "clip"), [(-1, 1.0), (41, 1e-9), (0, math.inf), (0, 0.5), (30, 2.0)])
def test_grids_that_do_not_fit_32_bit_integers_are_refused(log2_levels: int, clip: float) -> None:
    with pytest.raises(ValueError, match="32-bit"):
        Grid(log2_levels, clip)


@pytest.mark.parametrize("clip", [math.nan, 0.0, -1.0])
def test_a_clip_that_leaves_nothing_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match=f"clip = {clip:g} must be positive"):
        Grid(14, clip)


def test_the_largest_and_the_smallest_grid_are_accepted() -> None:
    assert Grid(0, 1.0).limit == 1
    assert Grid(0, 2.0**31 - 1).limit == 2**31 - 1


# --- from losses to steps ---


def test_half_differences_pair_plus_with_minus() -> None:
    assert half_differences(np.array([3.0, 1.0, 0.5, 2.5], np.float32)).tolist() == [1.0, -1.0]
    assert half_differences(np.array([3.0, 1.0], np.float32)).dtype == np.float64
    assert half_differences(np.empty(0)).size == 0


def test_losses_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="reshape"):
        half_differences(np.array([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(("log2_eps", "log2_unit"), [(-2, -20), (-10, -12), (0, 0), (3, 1)])
def test_over_all_directions_the_mean_update_is_minus_rate_times_the_gradient(log2_eps: int, log2_unit: int) -> None:
    """L = g.theta + theta.A.theta / 2 has L(theta + eps z) - L(theta - eps z) = 2 eps z.(g + A theta), whatever eps."""
    linear, curvature = np.array([3.0, -1.0, 0.5, 2.0]), np.diag([1.0, 2.0, 0.0, 4.0]) + 0.5
    theta, rate, eps = np.array([1.0, -2.0, 0.25, 0.0]), 0.125, 2.0**log2_eps

    def loss(at: np.ndarray) -> float:
        return linear @ at + at @ curvature @ at / 2

    z = np.array(list(product((1.0, -1.0), repeat=4)))
    half = half_differences(np.array([loss(theta + sign * eps * row) for row in z for sign in (1, -1)]))
    steps = mezo_steps(half, np.full(16, 1 / 16), rate, log2_eps, log2_unit)
    assert steps.shape == (16,)
    update = steps @ z * 2.0**log2_unit
    assert update.tolist() == (-rate * (linear + curvature @ theta)).tolist()


def test_one_step_by_hand() -> None:
    """Loss 3 at +eps, 1 at -eps, eps = 4 units of 1/16: derivative 4, so rate 1/2 moves by -2, which is -32 units."""
    assert mezo_steps(half_differences(np.array([3.0, 1.0])), np.array([1.0]), 0.5, -2, -4).tolist() == [-32.0]


def test_weights_scale_each_direction_on_its_own() -> None:
    half = np.array([1.0, -2.0, 3.0])
    plain = mezo_steps(half, np.ones(3), 0.5, -3, -9)
    assert mezo_steps(half, np.array([0.0, 0.25, 2.0]), 0.5, -3, -9).tolist() == (plain * [0.0, 0.25, 2.0]).tolist()


# --- two parts (FedSPZO) ---


class Parts:
    """L(x, y), quadratic in both parts of the parameters together, and estimates of both gradients at a point.

    Directions are rows of signs: one u of part 1 and K v's of part 2. EPS: probe size of either part. Half differences of a
    quadratic are exact: (L(p + d) - L(p - d)) / 2 = d . gradient, since even powers of d cancel.
    """

    SIZE, EPS = (2, 3), (0.5, 0.25)

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        total = sum(self.SIZE)
        root, self.linear, self.at = generator.normal(size=(total, total)), generator.normal(size=total), generator.normal(size=total)
        self.curvature = root @ root.T
        gradient = self.linear + self.curvature @ self.at
        self.gradients = gradient[: self.SIZE[0]], gradient[self.SIZE[0] :]

    def loss(self, du: np.ndarray, dv: np.ndarray) -> float:
        at = self.at + np.concatenate([du, dv])
        return float(self.linear @ at + at @ self.curvature @ at / 2)

    def apart(self, u: np.ndarray, vs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Part 1 with part 2 unperturbed; part 2 as the mean over where part 1 was left, at + and at -."""
        (eps_u, eps_v), still = self.EPS, np.zeros(self.SIZE[1])
        low = [self.loss(sign * eps_u * u, still) for sign in (1, -1)]
        high = [np.mean([self.loss(left * eps_u * u, sign * eps_v * v) for left in (1, -1)]) for v in vs for sign in (1, -1)]
        return self.estimates(u, vs, half_differences(np.array(low)), half_differences(np.array(high)))

    def jointly(self, u: np.ndarray, vs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both parts at once, + with + and - with -."""
        eps_u, eps_v = self.EPS
        losses = [self.loss(sign * eps_u * u, sign * eps_v * v) for v in vs for sign in (1, -1)]
        return self.estimates(u, vs, *joint_halves(half_differences(np.array(losses)), len(vs)))

    def estimates(self, u: np.ndarray, vs: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of both gradients: slope along each direction, times the direction, and the mean of that."""
        return (low / self.EPS[0]) @ u[None], (high / self.EPS[1]) @ vs / len(vs)

    def moments(self, form: str, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Mean and variance of both estimates, by coordinate, over all directions that there are."""
        signs = [np.array(list(product((1.0, -1.0), repeat=size))) for size in self.SIZE]
        found = [getattr(self, form)(u, np.array(vs)) for u in signs[0] for vs in product(signs[1], repeat=count)]
        return [(np.mean(each, axis=0).ravel(), np.var(each, axis=0).ravel()) for each in zip(*found, strict=True)]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_tried_one_after_the_other_are_unbiased_and_vary_as_plain_mezo_of_each_alone(seed: int, count: int) -> None:
    """For signs z and a slope s = z . g, the estimate is s z, with coordinate i: sum_j g_j z_j z_i.

    E[z_j z_i] = (i = j), so its mean is g_i; E[(s z_i)^2] = E[s^2] = |g|^2, so its variance is |g|^2 - g_i^2, and a K-th of
    that for the mean of K independent ones. What part 1 does to part 2's slope, +-eps u . H v, has the other sign in the other
    cache, so it drops out of their mean: part 2 varies as if it were alone.
    """
    parts = Parts(seed)
    for (mean, variance), gradient, of in zip(parts.moments("apart", count), parts.gradients, (1, count), strict=True):
        np.testing.assert_allclose(mean, gradient, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(variance, (gradient @ gradient - gradient**2) / of, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_tried_jointly_are_unbiased_and_vary_by_the_other_part_and_by_what_is_left_out(seed: int, count: int) -> None:
    """With e, f the probe sizes, a = u . g of part 1 and w_k = v_k . h of part 2, half difference k is e a + f w_k.

    Part 1 estimates (a + (f / e) mean(w)) u: the second term has mean 0, and w_k is independent of u, so it adds
    (f / e)^2 |h|^2 / K to the variance |g|^2 - g_i^2 of the first.

    Part 2, K > 1: probe k less the mean of the others is f (w_k - mean of the other w): part 1's share e a is gone, whatever it
    is. The estimate is A - B, A = mean(w_k v_k), B = sum over k != j of w_j v_k / (K (K - 1)). A has mean h_i and variance
    (|h|^2 - h_i^2) / K. B has mean 0; of the products of two of its K (K - 1) terms, only those with the same (k, j), with
    E = |h|^2, and those with k and j exchanged, with E = h_i^2, have a mean: its variance is (|h|^2 + h_i^2) / (K (K - 1)). In
    E[A B] every product holds a sign that occurs once, so it is 0, and the variances add.

    K = 1 leaves nothing out: part 2 estimates (w + (e / f) a) v, as part 1 does.
    """
    parts, (e, f) = Parts(seed), Parts.EPS
    (mean_1, variance_1), (mean_2, variance_2) = parts.moments("jointly", count)
    g, h = parts.gradients
    np.testing.assert_allclose(mean_1, g, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mean_2, h, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(variance_1, g @ g - g**2 + (f / e) ** 2 * (h @ h) / count, rtol=1e-9, atol=1e-9)
    extra = (h @ h + h**2) / (count - 1) if count > 1 else (e / f) ** 2 * (g @ g) * np.ones(3)
    np.testing.assert_allclose(variance_2, (h @ h - h**2 + extra) / count, rtol=1e-9, atol=1e-9)


HALVES = st.floats(-10, 10).map(lambda value: round(value, 4))


@PROPERTY
@given(st.integers(1, 5), st.integers(2, 6), st.data())
def test_leaving_one_out_takes_all_of_part_1_from_part_2(p1: int, count: int, data: st.DataObject) -> None:
    own = np.array(data.draw(st.lists(HALVES, min_size=p1 * count, max_size=p1 * count)))
    shared = np.array(data.draw(st.lists(HALVES, min_size=p1, max_size=p1)))
    (low, high), (low_alone, high_alone) = joint_halves(own + np.repeat(shared, count), count), joint_halves(own, count)
    assert (low.shape, high.shape) == ((p1,), (p1 * count,))
    np.testing.assert_allclose(high, high_alone, atol=1e-9)
    np.testing.assert_allclose(low, low_alone + shared, atol=1e-9)
    np.testing.assert_allclose(low, own.reshape(p1, count).mean(axis=1) + shared, atol=1e-9)
    np.testing.assert_allclose(high.reshape(p1, count).sum(axis=1), 0, atol=1e-9)


def test_joint_probes_by_hand() -> None:
    low, high = joint_halves(np.array([1.0, 2.0, 6.0, 0.0, 3.0, 3.0]), 3)
    assert low.tolist() == [3.0, 2.0]
    assert high.tolist() == [1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5, -3.0, 1.5, 1.5]


@given(st.lists(HALVES, min_size=1, max_size=9))
def test_joint_probes_of_one_direction_each_are_both_parts_own_to_the_last_bit(values: list[float]) -> None:
    low, high = joint_halves(np.array(values), 1)
    assert low.tolist() == high.tolist() == values


# --- rounding ---


@pytest.mark.parametrize("run_key", [12345, 2**32 - 1])
@pytest.mark.parametrize("value", [0.0, 0.01, 0.5, 0.999, -0.25, -7.75, 100_000.125])
def test_rounding_is_unbiased_over_first_seeds_within_five_sigma(value: float, run_key: int) -> None:
    streams, count = 400, 50
    rounded = np.array([round_stochastically(np.full(count, value), run_key, 3, seed, 1) for seed in range(streams)])
    fraction = value - math.floor(value)
    assert set(rounded.ravel().tolist()) <= {math.floor(value), math.ceil(value)}
    for total, of in ((rounded.sum(), streams * count), (rounded[:, 0].sum(), streams)):
        assert abs(total - of * value) <= 5 * math.sqrt(of * fraction * (1 - fraction))


@pytest.mark.parametrize("value", [0.01, 0.5, -7.75])
def test_rounding_is_unbiased_over_the_rounds_that_share_a_seed_within_five_sigma(value: float) -> None:
    """With a pool the same seeds come back every few rounds; each time they are rounded afresh."""
    rounds, count = 400, 50
    rounded = np.array([round_stochastically(np.full(count, value), 12345, 3, 8, number) for number in range(1, rounds + 1)])
    fraction = value - math.floor(value)
    for total, of in ((rounded.sum(), rounds * count), (rounded[:, 0].sum(), rounds)):
        assert abs(total - of * value) <= 5 * math.sqrt(of * fraction * (1 - fraction))


U64 = st.integers(0, 2**64 - 1)


@PROPERTY
@given(st.lists(st.floats(-(2.0**40), 2.0**40), max_size=20), U32, U32, U64, U64)
def test_rounding_is_never_off_by_more_than_one_and_repeats_itself(
    steps: list[float], run_key: int, group: int, first_seed: int, number: int
) -> None:
    rounded = round_stochastically(np.array(steps), run_key, group, first_seed, number)
    assert rounded.dtype == np.int64
    assert (np.abs(rounded - np.array(steps)) <= 1).all()
    assert np.array_equal(rounded, round_stochastically(np.array(steps), run_key, group, first_seed, number))


@pytest.mark.parametrize("largest", [1, 2**20, 2**40, 2**52])
def test_whole_steps_stay_as_they_are(largest: int) -> None:
    whole = np.random.default_rng(0).integers(-largest, largest, 100_000, endpoint=True)
    assert np.array_equal(round_stochastically(whole.astype(np.float64), 1, 2, 3, 4), whole)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2.0**53 + 2, -(2.0**53) - 2])
def test_steps_that_are_no_numbers_or_too_large_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="rate is too high"):
        round_stochastically(np.array([1.0, bad]), 1, 2, 3, 4)
    assert round_stochastically(np.array([2.0**53, -(2.0**53)]), 1, 2, 3, 4).tolist() == [2**53, -(2**53)]


@pytest.mark.parametrize(
    "keys",
    [
        [(1, 2, 3, 4), (0, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 3, 2, 4), (1, 2, 3, 5), (1, 2, 4, 3), (1, 2, 3, 0)],
        [(2**32 - 1, 0, 5, 1), (2**32 - 1, 1, 5, 1), (2**32 - 1, 2, 5, 1), (2**31, 0, 5, 1), (2**31, 1, 5, 1)],
        [(2**31, 0, 2**53, 1), (2**31, 0, 2**53 + 1, 1)],
        [(0, 0, 2**63, 1), (0, 0, 2**63 + 1, 1), (0, 1, 2**63, 1)],
        [(7, 2**32 - 1, 5, 1), (7, 2**32 - 2, 5, 1), (7, 0, 5, 1), (8, 0, 5, 1)],
        [(1, 2, 3, 2**32), (1, 2, 3, 0), (1, 2, 3, 2**53), (1, 2, 3, 2**53 + 1), (1, 2, 3, 2**64 - 1), (1, 2, 3, 2**64 - 2)],
    ],
    ids=["small", "large run key", "large first seed", "huge first seed", "large group", "large round"],
)
def test_run_key_group_first_seed_and_round_each_give_other_draws(keys: list[tuple[int, int, int, int]]) -> None:
    assert len({round_stochastically(np.full(200, 0.5), *key).tobytes() for key in keys}) == len(keys)


def test_two_rounds_never_share_a_stretch_of_draws() -> None:
    """The round is not where the stream counts: a long row of one round does not run into that of the next."""
    rows = [round_stochastically(np.full(4096, 0.5), 1, 2, 3, number) for number in (4, 5)]
    first, second = (np.packbits(row.astype(np.uint8)).tobytes() for row in rows)
    for shift in range(8):
        part = np.packbits(rows[1][shift : shift + 256].astype(np.uint8)).tobytes()
        assert part not in first
    assert first != second


def test_the_draws_are_the_same_in_every_version() -> None:
    """A coordinator that was killed before a commit, and updated, makes the same commit."""
    drawn = [1, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1]
    assert round_stochastically(np.full(24, 0.5), 0xC0FFEE01, 3, 8, 5).tolist() == drawn


def test_rounding_keeps_the_shape() -> None:
    assert round_stochastically(np.full((3, 4), 0.5), 0, 0, 0, 0).shape == (3, 4)
    assert round_stochastically(np.empty(0), 0, 0, 0, 0).size == 0
