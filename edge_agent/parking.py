"""Groups whose probes are mostly noise on this device: it parks them, says so, and looks at them again later (docs/calibration.md)."""

import logging
from collections.abc import Callable

from edge_agent.status import Status
from zo.batches import Batch
from zo.calibration import correlation_here
from zo.engine import Engine
from zo.planning import kinds

log = logging.getLogger(__name__)

DIRECTIONS, SURELY = 6, 64  # of a check; and of a second one, where the first leaves doubt
DOUBTFUL, POOR = 0.8, 0.5  # correlation of probes with noise-free ones; below the second they are mostly noise
AGAIN = 64  # reports after which what is parked is looked at again


class Parking:
    """What is parked, kind by kind. draw: a batch of the device's own. go_on: as `Guest.go_on`."""

    def __init__(self, engine: Engine, draw: Callable[[], Batch], status: Status, go_on: Callable[[], None]) -> None:
        self._engine, self._draw, self._status, self._go_on = engine, draw, status, go_on
        present = kinds(engine.manifest)
        self._kinds = present[-1:] if engine.manifest.optional else present  # blocks that may be inactive are computed in float
        self._loss: float | None = None  # at which they were checked
        self._reports = 0  # since
        self._parked: list[str] = []
        self.check()

    @property
    def groups(self) -> tuple[int, ...]:
        """Ids of what is parked."""
        return tuple(group.id for group in self._engine.manifest.groups if group.kind in self._parked)

    def reported(self, loss: float | None) -> None:
        """A report was made. loss: held-out (nats), where it was measured: once it has halved, noise may be another share of probes."""
        self._reports += 1
        if loss is not None:
            self._loss = self._loss or loss
        if (loss is not None and self._loss is not None and loss < self._loss / 2) or (self._parked and self._reports >= AGAIN):
            self._loss = loss or self._loss
            self.check()

    def check(self) -> None:
        """Probe every kind, and part what is mostly noise from what is not."""
        before, self._parked, self._reports = self._parked, [], 0
        correlations = {kind: self._correlation(kind) for kind in self._kinds}
        self._parked = [kind for kind, correlation in correlations.items() if correlation < POOR]
        self._status.update(correlation=round(correlations[self._kinds[0]], 3), parked=self._parked)
        base = self._engine.manifest.precision
        advice = "" if base == "fp32" else ". Take another base with --precision, or let the operator build the bundle with fp32"
        for kind in self._parked:
            log.warning(
                "probes of the %s are mostly noise on this processor (correlation %.2f, base %s); they are left out, and tried again"
                " later%s",
                kind,
                correlations[kind],
                base,
                advice,
            )
        for kind in before:
            if kind not in self._parked:
                log.info("probes of the %s are good again (correlation %.2f)", kind, correlations[kind])

    def _correlation(self, kind: str) -> float:
        """Of usual probes; where that leaves doubt, of more and of the largest that a run may make."""
        found = correlation_here(self._engine, kind, self._draw(), DIRECTIONS, self._go_on)
        if found >= DOUBTFUL:
            return found
        most = self._engine.manifest.log2_eps(kind, apart=True)
        return correlation_here(self._engine, kind, self._draw(), SURELY, self._go_on, most)
