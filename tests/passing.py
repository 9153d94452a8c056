"""Parameters that count their passes over the values of each group."""

from collections import Counter

import numpy as np

from zo.held import HeldGroup
from zo.parameters import Parameters


class Passing(Parameters):
    """passes: by group id."""

    def __init__(self, *given: object, **settings: object) -> None:
        passes = self.passes = Counter[int]()

        class Counted(HeldGroup):
            def add(self, seeds: np.ndarray, steps: np.ndarray) -> None:
                passes[self.group.id] += 1
                super().add(seeds, steps)

        self.HELD = Counted
        super().__init__(*given, **settings)
