"""What the entries so far have taught a run: how its losses slope and how its devices fare, so at which rates it goes on."""

from collections.abc import Sequence
from typing import Any

from coordinator.autopilot import Advice, Autopilot
from coordinator.config import RunConfig
from coordinator.planner import Planner
from zo.manifest import Manifest
from zo.rates import Rates, decay


class Course:
    """The planner and the autopilot of a run, both at the same entry. A restart over the same summaries finds them where they were.

    summaries: of the entries so far, oldest first. rates: what the factors multiply. advice: after the last entry; whoever has heeded
    it says so by `go_on`. Raises as `Rates.of` and `Planner` do.
    """

    def __init__(self, config: RunConfig, manifest: Manifest, summaries: Sequence[dict[str, Any]] = ()) -> None:
        self._config, self._manifest = config, manifest
        self.rates = Rates.of(config.probe, config.rate, manifest)
        self.begin(summaries)

    def begin(self, summaries: Sequence[dict[str, Any]]) -> None:
        """Know what is to be known after entries with these summaries, and nothing else."""
        config, kinds = self._config, tuple(self.rates.by_kind)
        self.planner = Planner(config, self._manifest, summaries)
        self.autopilot = Autopilot(kinds, config.rate.paced(kinds), config.held_out_every, config.least_gain)
        self.go_on()
        for told in summaries:
            self.advice = self.autopilot.learn(told)

    def go_on(self) -> None:
        """There is nothing to be done after the last entry any more."""
        self.advice = Advice("go on", self.autopilot.told)

    def learn(self, summary: dict[str, Any]) -> None:
        """Take in an entry."""
        self.planner.learn(summary.get("slopes", {}))
        self.advice = self.autopilot.learn(summary)

    def looks(self, round_number: int) -> bool:
        """Whether the devices of the next round, of this number, are to measure held-out losses."""
        return self.autopilot.looks or (self._config.held_out_every > 0 and round_number == self._config.rounds)

    def factors(self, round_number: int) -> dict[str, float]:
        """What the rates are multiplied with in a round, by kind."""
        share = decay(self._config.rate, round_number, self._config.rounds)
        return {kind: share * factor for kind, factor in self.autopilot.pace.factors.items()}

    def told(self, round_number: int) -> dict[str, Any]:
        """What a round's summary keeps of it."""
        best = self.autopilot.best_entry
        return {
            "factors": self.factors(round_number),
            "autopilot": self.autopilot.told,
            **({} if best is None else {"best_entry": best}),
        }
