"""A group is written once, answers each of its own, and leaves nobody waiting."""

import asyncio
from collections.abc import Sequence

import pytest

from coordinator.group_commit import LONGEST, SHORTEST, GroupCommit


class Written:
    """Answers items with their tenfold; notes the groups. error: raised instead. seconds: that it takes."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.groups: list[list[int]] = []
        self.error: Exception | None = None
        self.seconds = seconds

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.groups.append(list(items))
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return [10 * item for item in items]


def test_what_comes_together_is_written_once_and_in_order() -> None:
    async def go() -> list[list[int]]:
        written = Written()
        group = GroupCommit(written)
        assert await asyncio.gather(*(group.add(item) for item in range(5))) == [0, 10, 20, 30, 40]
        assert await group.add(7) == 70
        return written.groups

    assert asyncio.run(go()) == [[0, 1, 2, 3, 4], [7]]


def test_what_comes_in_a_later_turn_but_in_time_joins_the_group() -> None:
    async def late(group: GroupCommit[int, int]) -> int:
        await asyncio.sleep(0)
        return await group.add(2)

    async def go() -> list[list[int]]:
        written = Written()
        group = GroupCommit(written)
        assert await asyncio.gather(group.add(1), late(group)) == [10, 20]
        return written.groups

    assert asyncio.run(go()) == [[1, 2]]


def test_an_error_is_raised_where_each_waits_and_the_next_group_is_written() -> None:
    async def go() -> None:
        written = Written()
        group = GroupCommit(written)
        written.error = OSError("no room")
        found = await asyncio.gather(*(group.add(item) for item in range(3)), return_exceptions=True)
        assert [str(each) for each in found] == ["no room"] * 3
        written.error = None
        assert await group.add(4) == 40

    asyncio.run(go())


@pytest.mark.parametrize("error", [None, OSError("no room")])
def test_whoever_stops_waiting_disturbs_nobody_and_is_written_all_the_same(error: Exception | None) -> None:
    async def go() -> list[list[int]]:
        written = Written()
        group, written.error = GroupCommit(written), error
        calls = [asyncio.create_task(group.add(item)) for item in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(found[1], asyncio.CancelledError)
        assert [found[0], found[2]] == ([0, 20] if error is None else [error, error])
        return written.groups

    assert asyncio.run(go()) == [[0, 1, 2]]


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.0, SHORTEST, 0.05), (0.06, 0.06, 0.1), (0.3, LONGEST, 0.2)])
def test_a_group_gathers_as_long_as_the_last_one_took_within_bounds(seconds: float, least: float, most: float) -> None:
    async def go() -> float:
        written = Written(seconds)
        group = GroupCommit(written)
        await group.add(1)
        written.seconds, began = 0.0, asyncio.get_running_loop().time()
        await group.add(2)
        return asyncio.get_running_loop().time() - began

    assert least - 0.002 <= asyncio.run(go()) < most
