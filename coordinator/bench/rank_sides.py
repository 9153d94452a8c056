"""The sides that `scripts/bench ranks` compares: which devices train what, and how their updates become one."""

from dataclasses import dataclass

import numpy as np

from coordinator.aggregator import Aggregator, Answers
from coordinator.rounds import Rounds
from coordinator.simulation import Simulation
from zo import ranks as slices
from zo.plan import Node
from zo.planning import stretch
from zo.terms import Term

RANKS = (2, 4, 8, 16)
DEVICES = (2, 2, 4, 4, 8, 8, 16, 16)
FLAT, BY_OWNERS = (1.0, 1.0, 1.0, 1.0), (1.0, 8 / 6, 8 / 4, 8 / 2)  # rates by slice of zero-padding: as they come, or as far as slice 0


class ZeroPadded(Aggregator):
    """Averages over all devices, those without a slice counting as 0 (HetLoRA, arXiv 2401.06432), with a rate of its own for each slice.

    A step is as long for a slope, whatever its device's rank. (Ours weigh a slope by one over its noise, which goes with the rank.)
    But for that, an update that grows with the count of the directions that tried a group is this average, with rates alike.
    """

    slice_rates = FLAT

    def terms(self, answers: Answers) -> tuple[Term, ...]:
        by_id = {group.id: slices.slice_of(group) or 0 for group in self._manifest.groups}
        plain = {seed: self._plain(node) for node in answers.nodes for seed in range(node.first_seed, node.first_seed + node.count)}
        made: list[Term] = []
        for term in super().terms(answers):
            steps = term.steps * [plain[seed] for seed in range(term.first_seed, term.first_seed + len(term.steps))]
            scaled = {group: np.rint(steps * self.slice_rates[by_id[group]]).astype(np.int64) for group in term.groups}
            made += (Term((group,), term.first_seed, each) for group, each in scaled.items())
        return tuple(made)

    def _plain(self, node: Node) -> float:
        """What turns our step for a slope into a plain one: undoes both the weight and that steps are measured by the slope to expect."""
        tried = {group for size in node.probe_sizes for group in size.groups}
        return 1 / stretch(self._manifest, tried)["body"] ** 2


class Padding(Simulation):
    """A fleet whose updates are zero-padded."""

    class ROUNDS(Rounds):
        """See above."""

        AGGREGATOR = ZeroPadded


class PaddingByOwners(Simulation):
    """The same, with slices that few hold moving as far as others."""

    class ROUNDS(Rounds):
        """See above."""

        class AGGREGATOR(ZeroPadded):
            """See above."""

            slice_rates = BY_OWNERS


@dataclass(frozen=True)
class Side:
    """A way to train. bundle: by its ranks. devices: the rank at which each trains, of DEVICES the last that many.

    truncated: whether shorter prefixes are trained as well.
    """

    bundle: tuple[int, ...]
    devices: tuple[int, ...]
    truncated: bool = False
    kinds: tuple[type[Simulation], ...] = (Simulation,)


SIDES = {
    "nested": Side(RANKS, DEVICES, truncated=True),
    "blind": Side(RANKS, DEVICES),
    "zero_padded": Side(RANKS, DEVICES, kinds=(Padding, PaddingByOwners)),
    "smallest_rank": Side((2,), (2,) * 8),
    "largest_rank": Side(RANKS, (16,) * 8),
    "rank_4_alone": Side((4,), (4,) * 8),
    "rank_8_alone": Side((8,), (8,) * 8),
    "rank_4_by_owners": Side((4,), (4,) * 6),
    "rank_8_by_owners": Side((8,), (8,) * 4),
    "rank_16_by_owners": Side(RANKS, (16,) * 2),
}
