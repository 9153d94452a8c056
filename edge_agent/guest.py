"""The agent as a guest: asked between runs of the model, it stops, rests, makes runs smaller, or gives a probe up."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from edge_agent.governor import Governor
from edge_agent.manners import Objection, Policy
from edge_agent.stopping import Stopped
from zo.engine import Engine, EnoughProbed

log = logging.getLogger(__name__)

WAIT = 0.2  # seconds between looks while it rests
SHORTEST_REST = 0.01  # seconds, for a share of the processor
STRETCH = 10.0  # seconds over which the share of the processor is kept


class Guest:
    """Everything that may hold the agent back. Its decisions are log lines, and `held_back` and `memory` among the facts told.

    stop: what ends all waiting. policies: of the owner; `govern` adds memory. tell: notes facts for `status`.
    alive: called between runs of the model, and now and then in a pause. share: of the time
    of `threads` processors that it works; it rests for the other part.
    """

    LOOK = 0.1  # seconds between looks at the policies
    TURN = 5.0  # seconds between signs of life in a longer pause

    def __init__(
        self,
        stop: threading.Event,
        policies: Sequence[Policy] = (),
        tell: Callable[..., object] = lambda **facts: None,
        alive: Callable[[], object] = lambda: None,
        *,
        share: float = 1.0,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stop, self._policies, self._tell_status, self._alive = stop, policies, tell, alive
        self._share, self._threads, self._clock = share, threads, clock
        self._looked, self._began, self._ran_from = float("-inf"), (clock(), time.process_time()), 0.0
        self._told: Objection | None = None
        self._engine: Engine | None = None
        self._memory: dict[str, Any] = {}
        self.governor: Governor | None = None
        self.abandoned = False  # whether the last probe was given up

    def govern(self, engine: Engine, governor: Governor) -> None:
        """Let the governor decide how many rows the engine's runs have."""
        self._engine, self.governor = engine, governor

    def release(self) -> None:
        """Let go of the engine: another takes its place."""
        self._engine = self.governor = None

    def check_stop(self) -> None:
        """Stopped where the agent was told to stop."""
        if self._stop.is_set():
            raise Stopped
        self._alive()

    def wait(self, seconds: float) -> None:
        """Wait, with signs of life. Raises Stopped."""
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            self._stop.wait(min(left, self.TURN))
            self.check_stop()

    def go_on(self) -> None:
        """Return when work may go on. Raises Stopped."""
        self.check_stop()
        self._rest()
        if self._clock() - self._looked >= self.LOOK:
            self._look()

    def begin_probe(self) -> None:
        """Work may begin on a probe; runs are timed from here."""
        self.abandoned, self._looked = False, float("-inf")
        self.go_on()
        self._ran_from = 0.0

    def go_on_probing(self) -> None:
        """`go_on` between runs of a probe. Raises EnoughProbed where it must be given up for want of memory."""
        now = self._clock()
        if self.governor and self._ran_from:
            self.governor.took(now - self._ran_from)
            if now - self._looked >= self.LOOK and self.governor.must_abandon():
                self.abandoned, self._looked = True, float("-inf")
                raise EnoughProbed
        self.go_on()
        self._ran_from = self._clock()

    def _look(self) -> None:
        """Ask every policy; while one objects, wait."""
        began = self._clock()
        while (objection := self._objection()) and objection.rest:
            if self._engine and not (self._told and self._told.rest):
                self._engine.trim()  # it may be for hours
            self._tell(objection)
            self._stop.wait(WAIT)
            self.check_stop()
        self._tell(objection)
        self._looked = self._clock()
        if self._looked - began > WAIT:
            log.info("going on after %.1f s", self._looked - began)

    def _objection(self) -> Objection | None:
        """The first that asks for rest, else the first."""
        found = [each for each in (policy.objection() for policy in self._policies) if each]
        if self.governor and self._engine:
            memory = self.governor.objection()
            self._engine.max_rows = self.governor.rows
            if (told := self.governor.told()) != self._memory:
                self._tell_status(memory=told)
                self._memory = told
            found += [memory] if memory else []
        return next((each for each in found if each.rest), found[0] if found else None)

    def _tell(self, objection: Objection | None) -> None:
        """Once, where it is another than before; figures in the reason may change meanwhile."""
        before, self._told = self._told, objection
        if objection and (before is None or before.rest != objection.rest or _gist(before) != _gist(objection)):
            log.info("%s: %s", "pausing" if objection.rest else "going on with less", objection.reason)
            state = {"state": "paused"} if objection.rest else {"state": "working"} if before and before.rest else {}
            self._tell_status(**state, held_back=objection.reason)
        elif before and objection is None:
            self._tell_status(**({"state": "working"} if before.rest else {}), held_back="")

    def _rest(self) -> None:
        """Leave the processor to others for their share of the time."""
        if self._share >= 1:
            return
        passed, worked = self._clock() - self._began[0], (time.process_time() - self._began[1]) / self._threads
        rest = worked / self._share - passed
        if rest > SHORTEST_REST:
            self.wait(rest)
        if rest > SHORTEST_REST or passed > STRETCH:
            self._began = self._clock(), time.process_time()


def _gist(objection: Objection) -> str:
    return objection.reason.split(":")[0].split("(")[0]
