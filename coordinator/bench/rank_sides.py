"""The sides that `scripts/bench ranks` compares: which devices train what, and how their updates become one."""

from dataclasses import dataclass

from coordinator.aggregator import Aggregator, Answers
from coordinator.rounds import Rounds
from coordinator.simulation import Simulation
from zo import ranks as slices
from zo.terms import Term

RANKS = (2, 4, 8, 16)
DEVICES = (2, 2, 4, 4, 8, 8, 16, 16)
FLAT, BY_OWNERS = (1.0, 1.0, 1.0, 1.0), (1.0, 8 / 6, 8 / 4, 8 / 2)  # rates by slice of zero-padding: as they come, or as far as slice 0


class ZeroPadded(Aggregator):
    """Averages over all devices, those without a slice counting as 0 (HetLoRA, arXiv 2401.06432), with a rate of its own for each slice.

    As an update grows with the count of the directions that tried a group, that is what our rounds do with rates alike.
    """

    slice_rates = FLAT

    def terms(self, answers: Answers) -> tuple[Term, ...]:
        by_id = {group.id: slices.slice_of(group) or 0 for group in self._manifest.groups}
        return tuple(
            Term((group,), term.first_seed, (term.steps * self.slice_rates[by_id[group]]).round().astype(term.steps.dtype))
            for term in super().terms(answers)
            for group in term.groups
        )


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
    """A way to train. bundle: by its ranks. devices: the rank of each. truncated: whether shorter prefixes are trained as well."""

    bundle: tuple[int, ...]
    devices: tuple[int, ...]
    truncated: bool = False
    kinds: tuple[type[Simulation], ...] = (Simulation,)


SIDES = {
    "nested": Side(RANKS, DEVICES, truncated=True),
    "zero_padded": Side(RANKS, DEVICES, kinds=(Padding, PaddingByOwners)),
    "smallest_rank": Side((2,), (2,) * 8),
    "largest_rank": Side(RANKS, (16,) * 8),
    "rank_4_alone": Side((4,), (4,) * 8),
    "rank_8_alone": Side((8,), (8,) * 8),
}
