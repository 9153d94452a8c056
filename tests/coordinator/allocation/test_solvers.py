"""Both solvers against trying everything, and against each other."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.allocation import exact, greedy
from coordinator.allocation.problem import TOLERANCE, Capacity, Problem, gains, losses, proxy

SOLVERS = (greedy.solve, exact.solve)


def everything(problem: Problem) -> list[tuple[float, int]]:
    """(proxy, blocks held) of every answer that there is."""
    blocks = range(len(problem.sizes))
    choices = []
    for each in problem.capacities:
        mine = [block for block in blocks if block >= each.lowest]
        choices.append([set(one) for count in range(1, min(each.most, len(mine)) + 1) for one in itertools.combinations(mine, count)])
    found = []
    for answer in itertools.product(*choices):
        held = np.array([[block in mine for block in blocks] for mine in answer])
        found.append((proxy(problem.sizes, held), int(held.sum())))
    return [row for row in found if row[0] < np.inf]


@st.composite
def problems(draw: st.DrawFn, most_devices: int = 3, most_blocks: int = 4) -> Problem:
    blocks = draw(st.integers(1, most_blocks))
    sizes = draw(st.lists(st.integers(1, 9), min_size=blocks, max_size=blocks))
    one = st.builds(Capacity, st.integers(1, blocks), st.integers(0, blocks - 1))
    return Problem(tuple(sizes), tuple(draw(st.lists(one, min_size=1, max_size=most_devices))), draw(st.sampled_from((0.0, 0.1, 0.6))))


def check_limits(problem: Problem, held: np.ndarray) -> None:
    assert not (held & ~problem.allowed()).any()
    assert (held.sum(axis=1) <= problem.rooms()).all()
    assert (held.sum(axis=1) >= 1).all()


@settings(deadline=None, max_examples=150)
@given(problems())
def test_no_answer_is_better_and_of_the_best_none_is_lighter(problem: Problem) -> None:
    answers = everything(problem)
    if not answers:
        assert not greedy.solve(problem).any(axis=0).all()
        with pytest.raises(ValueError, match="not every block can be covered"):
            exact.solve(problem)
        return
    best = min(value for value, _ in answers)
    within = (1 + problem.slack + 1e-7) * best
    least = min(size for value, size in answers if value <= within)
    for solve in SOLVERS:
        held = solve(problem)
        assert held is not None
        check_limits(problem, held)
        assert proxy(problem.sizes, held) <= within
        if solve is exact.solve:
            assert held.sum() == least
    strict = greedy.solve(Problem(problem.sizes, problem.capacities))
    assert proxy(problem.sizes, strict) == pytest.approx(best)


@settings(deadline=None, max_examples=40)
@given(problems(12, 10))
def test_chains_of_moves_come_as_far_as_the_search(problem: Problem) -> None:
    problem = Problem(problem.sizes, problem.capacities)
    held = greedy.solve(problem)
    check_limits(problem, held)
    if held.any(axis=0).all():
        searched = exact.solve(problem)
        assert searched is not None
        assert proxy(problem.sizes, held) == pytest.approx(proxy(problem.sizes, searched), rel=1e-5)


def test_a_block_that_only_one_device_may_hold_is_left_to_it() -> None:
    problem = Problem((5, 5, 5), (Capacity(1), Capacity(1, 1), Capacity(1, 1)))
    for solve in SOLVERS:
        held = solve(problem)
        assert held is not None
        assert held[0].tolist() == [True, False, False]
        assert held.sum(axis=0).tolist() == [1, 1, 1]


def test_a_chain_of_two_moves_is_found() -> None:
    # who may hold all took block 0, and the others cannot reach it: room at block 2 is made by way of block 1
    problem = Problem((4, 4, 4), (Capacity(1), Capacity(1, 1), Capacity(1, 2)))
    held = np.array([[False, True, False], [False, False, True], [False, False, True]])
    greedy.improve(problem, held)
    assert held.tolist() == [[True, False, False], [False, True, False], [False, False, True]]


def test_memory_is_given_back_within_the_slack_alone() -> None:
    strict, loose = (Problem((7,) * 6, (Capacity(6),) * 4, slack) for slack in (0.0, 0.5))
    for solve in SOLVERS:
        assert solve(strict).all()
        held = solve(loose)
        assert proxy(loose.sizes, held) <= 1.5 * (1 + TOLERANCE) * proxy(strict.sizes, solve(strict))
        assert held.sum() == 17  # 1/2 + 5/3 is within 1.5 times 6/4, and 2/2 + 4/3 is not


def test_the_same_problem_has_the_same_answer() -> None:
    generator = np.random.default_rng(0)
    problem = Problem((3,) * 12, tuple(Capacity(int(most)) for most in generator.integers(1, 12, 20)), 0.05)
    for solve in SOLVERS:
        assert (solve(problem) == solve(problem)).all()


def test_a_search_that_is_given_up_says_so() -> None:
    capacities = tuple(Capacity(int(most)) for most in np.random.default_rng(1).integers(1, 12, 20))
    assert exact.solve(Problem(tuple(range(3, 15)), capacities, 0.05), seconds=0.0) is None


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_gains_and_losses_are_differences_of_the_proxy(sizes: list[int], data: st.DataObject) -> None:
    contributors = np.array(data.draw(st.lists(st.integers(2, 6), min_size=len(sizes), max_size=len(sizes))))
    for block in range(len(sizes)):
        more = contributors + (np.arange(len(sizes)) == block)
        before, after = (float((np.array(sizes) / each).sum()) for each in (contributors, more))
        assert gains(sizes, contributors)[block] == pytest.approx(before - after)
        assert losses(sizes, more)[block] == pytest.approx(before - after)


@pytest.mark.parametrize("wrong", [{"most": 0}, {"most": 1, "lowest": -1}])
def test_a_device_that_can_take_nothing_is_no_device(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a device of at most"):
        Capacity(**wrong)


def test_what_is_no_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="may begin at block 1"):
        Problem((1, 1), (Capacity(1, 2),))
    for sizes, capacities, slack in (((), (Capacity(1),), 0.0), ((1,), (), 0.0), ((1,), (Capacity(1),), -1.0), ((0,), (Capacity(1),), 0.0)):
        with pytest.raises(ValueError, match="are needed"):
            Problem(sizes, capacities, slack)
