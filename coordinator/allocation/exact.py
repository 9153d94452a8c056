"""The best answer, by mixed-integer programming (HiGHS, through scipy).

1 / c is convex, so 1 / c_l is written with an increment y_lk in [0, 1] for every contributor after the first, c_l = 1 + sum of y_lk, each
worth 1/(k-1) - 1/k less than the one before: a solver that minimises fills them in order without being told.
"""

import numpy as np

from coordinator.allocation.problem import TOLERANCE, Problem

NODES = 2000  # of the search: the same on every machine
SECONDS = 2.0  # after which it is given up, wherever it is


def solve(problem: Problem, nodes: int = NODES, seconds: float = SECONDS) -> np.ndarray | None:
    """Who holds what: bool [devices, blocks]; None where the search was given up. ValueError where not every block can be covered.

    ImportError without scipy.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    devices, blocks = len(problem.capacities), len(problem.sizes)
    sizes, rooms, allowed = np.array(problem.sizes, np.float64), problem.rooms(), problem.allowed()
    after = [(block, k) for block in range(blocks) for k in range(2, int(allowed[:, block].sum()) + 1)]
    pairs, count = devices * blocks, devices * blocks + len(after)
    worth = np.zeros(count)
    worth[pairs:] = [-sizes[block] * (1 / (k - 1) - 1 / k) for block, k in after]
    counted = np.zeros((blocks, count))  # contributors less increments: 1 of every block
    held_by = np.zeros((devices, count))
    for device in range(devices):
        held_by[device, device * blocks : (device + 1) * blocks] = 1
        counted[np.arange(blocks), device * blocks + np.arange(blocks)] = 1
    counted[[block for block, _ in after], np.arange(pairs, count)] = -1
    limits = [LinearConstraint(counted, 1, 1), LinearConstraint(held_by, 1, rooms)]
    how = {
        "integrality": np.r_[np.ones(pairs), np.zeros(len(after))],
        "bounds": Bounds(0, np.r_[allowed.ravel(), np.ones(len(after))]),
        "options": {"node_limit": nodes, "time_limit": seconds, "mip_rel_gap": 1e-6},
    }
    found = milp(worth, constraints=limits, **how)
    if found.status == 2:
        raise ValueError("not every block can be covered")
    if found.status == 0 and problem.slack:
        most = (1 + problem.slack + TOLERANCE) * (sizes.sum() + found.fun) - sizes.sum()
        light = np.r_[np.ones(pairs), np.zeros(len(after))]
        found = milp(light, constraints=[*limits, LinearConstraint(worth[None], -np.inf, most)], **how)
    return found.x[:pairs].reshape(devices, blocks) > 0.5 if found.status == 0 else None
