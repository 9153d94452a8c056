"""The memory budget, enforced: smaller runs over the soft line, then a pause; over the hard line the probe under way is given up."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from edge_agent.manners import Objection
from edge_agent.pressure import OWN, Line
from zo.errors import DoesNotFit

log = logging.getLogger(__name__)

FLOOR = 32  # rows of a run that are not divided any more: a pair of branches of a short text
SETTLE = 0.2  # seconds that a smaller run is given to take effect
GIVE_UP = 60.0  # seconds over the hard line by what is its own alone, with the smallest runs
CALM = 3.0  # seconds well below the soft line after which runs grow again
WELL_BELOW = 0.9  # of the soft line
INTERRUPTIBLE = 0.7  # seconds that a run may take: what it takes is how long stopping takes
QUICK = 0.2  # seconds below which runs may be made longer again


class Level(IntEnum):
    """How memory stands."""

    FREE = 0
    SOFT = 1
    HARD = 2


@dataclass
class Counts:
    """What the governor did. sheds: runs made smaller. trims: memory given back. pauses: for memory. abandoned: probes given up."""

    sheds: int = 0
    trims: int = 0
    pauses: int = 0
    abandoned: int = 0


class Governor:
    """Decides how many rows a run may have.

    rows: as the settings, or the plan, say; runs never have more. lines: what is looked at. trim: gives the engine's unused
    memory back. growth: bytes that a run of so many rows takes. Fewer rows mean fewer branches side by side first, and
    smaller parts of the batch once one pair of branches is left.
    """

    def __init__(
        self,
        rows: int,
        lines: Sequence[Callable[[], Line | None]],
        trim: Callable[[], object],
        growth: Callable[[int], float] = lambda rows: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = self.rows = self._prompt = rows
        self._lines, self._trim, self._growth, self._clock = lines, trim, growth, clock
        self._acted, self._calm_since, self._paused, self._others_near = float("-inf"), clock(), False, False
        self._fitted = clock()
        self.counts, self.worst = Counts(), Line("resident", 0, 1, 1)

    def look(self) -> Level:
        """Read every line; keeps the worst in `worst`."""
        read = [line for line in (each() for each in self._lines) if line is not None]
        if read:
            self.worst = max(read, key=lambda line: line.used / line.soft)
        self._others_near = any(line.name != OWN and line.used >= (WELL_BELOW if self._paused else 1.0) * line.soft for line in read)
        return max((Level(int(line.used >= line.soft) + int(line.used >= line.hard)) for line in read), default=Level.FREE)

    def objection(self) -> Objection | None:
        """Looks, and acts: makes runs smaller, or larger again, or says that it must pause until there is room.

        DoesNotFit where there is none for a while though nobody else takes any.
        """
        level, now = self.look(), self._clock()
        if level is not Level.HARD or self._others_near:
            self._fitted = now
        elif now - self._fitted > GIVE_UP:
            raise DoesNotFit(f"{self.worst.told} even with the smallest runs; allow more with --memory.budget, or take a smaller base")
        if level is Level.FREE and not (self._paused and self._others_near):
            self._paused = False
            self._grow(now)
            return None
        self._calm_since = now
        smallest, settled = self.rows <= FLOOR, now - self._acted >= SETTLE
        if settled:
            self._acted = now
            self._shed()
        # Others may leave; what is ours stays, however long it waits.
        if level is Level.HARD or (self._others_near and (self._paused or (smallest and settled))):
            self.counts.pauses += not self._paused
            self._paused = True
            return Objection(f"waiting for memory ({self.worst.told})")
        return None

    def must_abandon(self) -> bool:
        """Whether a probe under way must be given up."""
        if self.look() is not Level.HARD:
            return False
        self.counts.abandoned += 1
        log.warning("%s is over the hard line; the probe under way is given up, the parameters are restored", self.worst.told)
        return True

    def took(self, seconds: float) -> None:
        """Note how long a run took: longer ones than can be waited for, when something else is wanted, are made smaller."""
        if seconds > INTERRUPTIBLE and self.rows > FLOOR:
            self._prompt = self.rows = max(FLOOR, self.rows // 2)
            self._calm_since = self._clock()
            log.info("a run took %.1f s; runs of at most %d rows from now on, so that it can stop within a second", seconds, self.rows)
        elif seconds < QUICK and self.rows == self._prompt < self.most:
            self._prompt = min(self.most, 2 * self._prompt)

    def told(self) -> dict[str, Any]:
        """What `status` shows."""
        return {"rows": self.rows, "most_rows": self.most, "worst": self.worst.told} | vars(self.counts)

    def _grow(self, now: float) -> None:
        if self.worst.used > WELL_BELOW * self.worst.soft:
            self._calm_since = now
        if self.rows >= self._prompt or now - self._calm_since < CALM:
            return
        wanted = min(self._prompt, 2 * self.rows)
        if self.worst.used + self._growth(wanted) - self._growth(self.rows) < self.worst.soft or self.worst.name.startswith("stalls"):
            self.rows, self._calm_since = wanted, now
            log.info("runs of up to %d rows again", self.rows)

    def _shed(self) -> None:
        if self.rows > FLOOR:
            self.rows = max(FLOOR, self.rows // 2)
            self.counts.sheds += 1
            log.info("%s is over the soft line; runs of at most %d rows from now on", self.worst.told, self.rows)
        self._trim()
        self.counts.trims += 1
