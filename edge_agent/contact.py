"""Contact with the coordinator: dialled, asked again while it does not answer, under a certificate that is renewed in time."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from edge_agent import identity
from edge_agent.config import AgentConfig
from edge_agent.flash import DailyBudget
from edge_agent.guest import Guest
from edge_agent.link import Link, Rejoin, Unreachable
from edge_agent.sent import Sent
from edge_agent.state import State
from edge_agent.status import Status
from zo.errors import ConnectionFailed, UserError

log = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds between tries; each pause is drawn at random up to a doubling bound
PLAINTEXT = "127.0.0.1:7600"
RENEWALS = 600.0  # seconds between tries to renew a certificate


class Contact:
    """guest: asked before every call, and its way to wait. traffic: counts what goes over the network. kind: of the link.

    ConfigError where this device has not joined a fleet, unless plaintext is asked for. `stop` ends a call under way with Stopped.
    """

    def __init__(
        self,
        config: AgentConfig,
        stop: threading.Event,
        state: State,
        status: Status,
        guest: Guest,
        traffic: DailyBudget,
        kind: type[Link] = Link,
    ) -> None:
        self._config, self._stop, self._state, self._status = config, stop, state, status
        self._guest, self._traffic, self._kind = guest, traffic, kind
        self._identity = None if config.insecure_loopback else identity.load(state.folder)
        self.address = config.coordinator or (self._identity.coordinator if self._identity else PLAINTEXT)
        self._sent = Sent(state.folder, config.audit_bytes, state.budget)
        self._link = self._dialled()
        self._renew_after = 0.0

    def ask(self, request: Any) -> Any:
        """The reply to a request, tried again while the coordinator is not there. Raises as `Link.ask`, or ConnectionFailed at last."""
        return self.patiently(lambda: self.call(request))

    def call(self, request: Any) -> Any:
        """The reply to a request, tried once: raises Unreachable too."""
        self._guest.go_on()
        return self._link.ask(request)

    def patiently(self, call: Callable[[], T]) -> T:
        """The call's result, trying again while the coordinator is not there."""
        bound, began = FIRST_PAUSE, time.monotonic()
        while True:
            try:
                return call()
            except Unreachable as error:
                over = self._config.patience and time.monotonic() - began > self._config.patience
                why = self._link.why(error) if over or bound == FIRST_PAUSE else ""
                if bound == FIRST_PAUSE:
                    log.warning("coordinator %s does not answer (%s); trying again", self.address, why)
                self._status.update(state="unreachable", reason=f"coordinator {self.address} does not answer")
                if over:
                    raise ConnectionFailed(
                        f"coordinator {self.address} did not answer for {self._config.patience:.0f} s ({why});"
                        " check the address with --coordinator, and that it is running"
                    ) from None
            self._guest.wait(random.uniform(bound / 2, bound))
            bound = min(2 * bound, LONGEST_PAUSE)

    def renew(self) -> None:
        """A new certificate in time; where that fails, the present one serves on, and it is tried again later."""
        if not self._identity or time.monotonic() < self._renew_after:
            return
        from edge_agent import join  # with all that makes keys

        self._renew_after = time.monotonic() + RENEWALS
        try:
            self._identity = join.renewed(self._identity, self._link.ask, self._state.folder)
        except (Unreachable, Rejoin, UserError) as error:
            log.warning("the certificate is not renewed yet: %s", error)
            return
        self._link.close()
        self._link = self._dialled()

    def spend(self, size: int) -> None:
        """Count bytes of the network."""
        self._traffic.spend(size)
        self._status.facts["traffic"] = self._traffic.record()

    def close(self) -> None:
        """Hang up."""
        self._link.close()

    def _dialled(self) -> Link:
        config = self._config
        link = self._kind(self.address, self._stop, config.insecure_loopback, self._identity, self._sent.add, config.patience)
        link.spend = self.spend
        return link
