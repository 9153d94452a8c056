"""Group commit: what comes in within a few milliseconds is written together, and answered after one sync."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

SHORTEST, LONGEST = 0.005, 0.1  # seconds that the first of a group waits for others

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class GroupCommit(Generic[Item, Answer]):
    """Items that wait for `write`, which gives an answer for each of them, in order, once all are safe.

    A group gathers for as long as the last one took to write, within bounds: however slow the disk, the loop has half its
    time for others. What `write` raises, every item of its group is answered with. An item whose sender has gone is
    written all the same.
    """

    def __init__(self, write: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]]) -> None:
        self._write, self._took = write, 0.0
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._writing: set[asyncio.Task[None]] = set()  # or nobody would hold them

    async def add(self, item: Item) -> Answer:
        """The answer to one item."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answered))
        if len(self._waiting) == 1:
            task = asyncio.create_task(self._gather_and_write())
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        return await answered

    async def _gather_and_write(self) -> None:
        await asyncio.sleep(min(max(self._took, SHORTEST), LONGEST))
        waiting, self._waiting = self._waiting, []
        began = time.perf_counter()
        try:
            answers = await self._write([item for item, _ in waiting])
        except Exception as error:  # noqa: BLE001  raised where each of them waits
            for _, answered in waiting:
                if not answered.done():
                    answered.set_exception(error)
            return
        finally:
            self._took = time.perf_counter() - began
        for (_, answered), answer in zip(waiting, answers, strict=True):
            if not answered.done():  # its call was cancelled
                answered.set_result(answer)
