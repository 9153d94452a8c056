"""An answer for fleets of any size: the rarest blocks first, then chains of moves until none gains.

A device's limit is a count, so the best proxy is a flow of least convex cost from devices to blocks: an answer in which no chain of
moves gains is one of the best. Only the memory within the slack is a heuristic.
"""

import itertools

import numpy as np

from coordinator.allocation.problem import TOLERANCE, Problem, gains, losses, proxy


def solve(problem: Problem) -> np.ndarray:
    """Who holds what: bool [devices, blocks]. Blocks stay without a contributor where there is no way to cover them all."""
    held = rarest_first(problem)
    improve(problem, held)
    if problem.slack and held.any(axis=0).all():
        lighten(problem, held)
    return held


def rarest_first(problem: Problem) -> np.ndarray:
    """Devices with least choice first, each takes the blocks that gain most: bool [devices, blocks]."""
    rooms, allowed = problem.rooms(), problem.allowed()
    held, contributors = np.zeros_like(allowed), np.zeros(len(problem.sizes), np.int64)
    for device in np.lexsort((rooms, allowed.sum(axis=1))):
        gain = np.where(allowed[device], gains(problem.sizes, contributors), -1.0)
        taken = np.argsort(-gain, kind="stable")[: rooms[device]]
        held[device, taken] = True
        contributors[taken] += 1
    return held


def improve(problem: Problem, held: np.ndarray) -> None:
    """Move contributors along chains, the best first, until none lowers the proxy. held: bool [devices, blocks], changed in place.

    A chain leads from a block that loses one to a block that gains one: a device lets go of the first for the second, another of the
    second for the third, and so on.
    """
    allowed = problem.allowed()
    while True:
        contributors = held.sum(axis=0)
        gain, loss = gains(problem.sizes, contributors), losses(problem.sizes, contributors)
        loss = np.where(contributors > 0, loss, np.inf)
        worth = gain[None, :] - loss[:, None]  # [from, to]
        steps = held.T.astype(np.float32) @ (allowed & ~held).astype(np.float32) > 0
        worth = np.where(_reached(steps), worth, -np.inf)
        first, last = divmod(int(worth.argmax()), len(problem.sizes))
        if worth[first, last] <= TOLERANCE * gain[last]:
            return
        _move(held, allowed, _chain(steps, first, last))


def lighten(problem: Problem, held: np.ndarray) -> None:
    """Let go of what costs the proxy least, while that stays within the slack.

    held: bool [devices, blocks], changed in place.
    """
    most = (1 + problem.slack + TOLERANCE) * proxy(problem.sizes, held)
    before = -1
    while before != (before := int(held.sum())):
        while (place := _cheapest(problem, held, most)) is not None:
            held[place] = False
        improve(problem, held)


def _cheapest(problem: Problem, held: np.ndarray, most: float) -> tuple[int, int] | None:
    """Device and block of the contributor whose loss raises the proxy least, and not above `most`: of who holds most blocks."""
    contributors, count = held.sum(axis=0), held.sum(axis=1)
    loss, left = losses(problem.sizes, contributors), most - float((np.asarray(problem.sizes) / contributors).sum())
    for block in np.argsort(loss, kind="stable"):
        if loss[block] > left:
            return None
        device = int(np.where(held[:, block], count, 0).argmax())
        if contributors[block] > 1 and count[device] > 1:
            return device, int(block)
    return None


def _reached(steps: np.ndarray) -> np.ndarray:
    """Whether a chain leads from one block to another: bool [from, to], from the single steps."""
    reached = steps.copy()
    while True:
        further = reached | (reached.astype(np.float32) @ steps.astype(np.float32) > 0)
        if (further == reached).all():
            return reached
        reached = further


def _chain(steps: np.ndarray, first: int, last: int) -> list[int]:
    """The blocks of a shortest chain."""
    before, front = {first: first}, [first]
    while last not in before:
        found = {int(there): here for here in reversed(front) for there in np.flatnonzero(steps[here]) if int(there) not in before}
        before |= found
        front = sorted(found)
    chain = [last]
    while chain[-1] != first:
        chain.append(before[chain[-1]])
    return chain[::-1]


def _move(held: np.ndarray, allowed: np.ndarray, chain: list[int]) -> None:
    """Carry a chain out. A shortest one never asks twice for the same place."""
    for here, there in itertools.pairwise(chain):
        device = int(np.flatnonzero(held[:, here] & allowed[:, there] & ~held[:, there])[0])
        held[device, here], held[device, there] = False, True
