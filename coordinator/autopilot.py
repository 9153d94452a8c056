"""The autopilot of a run: what its rates are, when it goes back, and when it stops (docs/autopilot.md).

All that it knows are the summaries of the entries, so a restart finds it where it was.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from zo.pace import Pace, mean_and_error
from zo.replica import MOST_ENTRIES

SOONEST = 2  # rounds between looks
SURE = 2.0  # standard errors
WORSE = 0.02  # share of the loss: less is not worth going back for
RUIN = 0.5  # share of the loss: so much more is no accident, however few devices say so
TRIES = 3  # ways back in a row, after which a person should look
SLOWER = 0.5  # times the rates, after a way back
WINDOW = 3  # looks over which the gain of a run is judged, once they are as seldom as they come to be


@dataclass(frozen=True)
class Advice:
    """What to do after an entry, and why in words. entry: to go back to."""

    act: Literal["go on", "go back", "pause", "stop"]
    why: str
    entry: int = 0


@dataclass(frozen=True)
class Look:
    """What devices measured at an entry: their losses (nats), what they had spent by then, how many of them could be compared with
    the best look before it, how much lower they were, and the error of that."""

    entry: int
    losses: dict[str, float]
    minutes: float
    compared: int = 0
    gain: float = 0.0
    error: float = 0.0

    @property
    def mean(self) -> float:
        """Over the devices, without the highest and lowest (`zo.pace`)."""
        return mean_and_error(np.array(list(self.losses.values())))[0]


class Autopilot:
    """What the fleet's own held-out losses say of a run.

    paced: kinds of group whose rates it sets. seldomest: most rounds between looks; 0 for none. least_gain: nats a minute of a device.
    summaries: of the entries so far, oldest first.
    """

    def __init__(self, kinds: Sequence[str], paced: Sequence[str], seldomest: int, least_gain: float) -> None:
        self.pace = Pace(kinds, paced)
        self.told = "nothing has been measured yet"
        self._seldomest, self._least_gain = seldomest, least_gain
        self._in_force = deque[dict[str, float]](maxlen=MOST_ENTRIES)
        self._entry = self._due = self._looked = self._risen = self._returns = 0
        self._minutes = 0.0
        self._best: Look | None = None
        self._looks = deque[Look](maxlen=WINDOW + 1)  # since the last way back, of those that could be compared

    @property
    def looks(self) -> bool:
        """Whether the next round's devices should measure where they are."""
        return self._seldomest > 0 and self._entry >= self._due

    @property
    def best_entry(self) -> int | None:
        """The one with the lowest losses so far, as far as they were measured."""
        return self._best.entry if self._best else None

    @property
    def stride(self) -> int:
        """Entries along which they should: those since the last look."""
        return min(self._entry - self._looked, len(self._in_force)) if self.looks else 0

    def learn(self, summary: dict[str, Any]) -> Advice:
        """Take in an entry. Its looks were taken before it."""
        advice = self._look(summary["looks"]) if summary.get("looks") else Advice("go on", self.told)
        self._entry += 1
        self._minutes += summary.get("device_seconds", 0.0) / 60
        self._in_force.append(summary.get("factors", self.pace.factors))
        if "rolled_back_to" in summary:
            self._in_force.clear()
            self._looks.clear()
            self._due = self._looked = self._entry
        return advice

    def _look(self, measured: dict[str, list[float]]) -> Advice:
        """Compare every device with itself, and go along at a better pace."""
        stride = self.stride
        look = self._compared({device: losses[0] for device, losses in measured.items()})
        self._looked, self._due = self._entry, self._entry + min(max(self._entry, SOONEST), self._seldomest)
        self.told = f"held-out loss {look.mean:.4f} at entry {look.entry}"
        if self._best is None or look.compared:
            self._looks.append(look)
        if self._best is None or look.gain > 0:
            self._best, self._risen, self._returns = look, 0, 0
        elif -look.gain > min(max(SURE * look.error, WORSE * self._best.mean), RUIN * self._best.mean):
            self._risen, self._due = self._risen + 1, self._entry + SOONEST
            self.told += f", {-look.gain:.4f} +- {look.error:.4f} higher than at entry {self._best.entry}"
            if self._risen >= 2:
                return self._back(self._best.entry)
        elif look.compared:
            self._risen = 0
        self._best = replace(self._best, losses=look.losses | self._best.losses)
        whole = [each for each in measured.values() if len(each) == 1 + 2 * len(self.pace.factors)]
        if stride and whole:
            recent = list(self._in_force)[-stride:]
            self.pace.learn(np.array(whole), {kind: float(np.mean([each[kind] for each in recent])) for kind in self.pace.factors})
        self.told += "; " + self.pace.told()
        return self._judged()

    def _compared(self, losses: dict[str, float]) -> Look:
        """A look, every device compared with what it measured at the best one; or at its first since, if it was not there."""
        best = self._best.losses if self._best else {}
        paired = np.array([best[device] - losses[device] for device in losses if device in best])
        return Look(self._entry, losses, self._minutes, len(paired), *(mean_and_error(paired) if len(paired) else ()))

    def _back(self, entry: int) -> Advice:
        self._risen, self._returns = 0, self._returns + 1
        self.pace.slow(SLOWER)
        if self._returns < TRIES:
            return Advice("go back", f"{self.told}, twice in a row; back to there, at {SLOWER:g} times the rates", entry)
        self._returns = 0
        return Advice("pause", f"{self.told}, for the {TRIES}rd time in a row, though the rates were lowered each time", entry)

    def _judged(self) -> Advice:
        """Whether going on is worth the devices' time."""
        assert self._best is not None
        if len(self._looks) <= WINDOW:
            return Advice("go on", self.told)
        since = self._looks[0]
        minutes = self._minutes - since.minutes
        paired = np.array([since.losses[device] - loss for device, loss in self._best.losses.items() if device in since.losses])
        if self._entry - since.entry < WINDOW * self._seldomest or minutes <= 0 or not len(paired):
            return Advice("go on", self.told)
        gain, error = mean_and_error(paired)
        if gain + SURE * error < self._least_gain * minutes:
            gained = f"the last {minutes:.1f} minutes of devices gained {gain:.4f} +- {error:.4f} nats; as many more would gain less"
            return Advice("stop", f"{self.told}; {gained}", self._best.entry)
        return Advice("go on", self.told)
