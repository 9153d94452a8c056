"""Work plans: what one device does in one round, as a tree of stages (DESIGN section 3)."""

from dataclasses import dataclass

import numpy as np

from zo.estimators import Grid
from zo.terms import Term


@dataclass(frozen=True)
class ProbeSize:
    """E for some groups: their values move by +-2**log2_e units in a probe."""

    groups: tuple[int, ...]
    log2_e: int


@dataclass(frozen=True)
class Node:
    """Directions tried from one stage on.

    stage: index of the first stage of the part that this node perturbs; it ends where the children begin.
    first_seed, count: one direction a seed. probe_sizes: E per group. children: parts nearer the output, evaluated on
    every stage output of this one; empty in plain MeZO, where one node spans the chain.
    """

    stage: int
    first_seed: int
    count: int
    probe_sizes: tuple[ProbeSize, ...]
    children: tuple["Node", ...] = ()

    def terms(self, direction: int, sign: int) -> tuple[Term, ...]:
        """The perturbation of one direction: `sign` +1 or -1 times E along its seed; 2 undoes and crosses."""
        seed = self.first_seed + direction
        return tuple(Term(size.groups, seed, np.array([sign << size.log2_e], np.int64)) for size in self.probe_sizes)


@dataclass(frozen=True)
class WorkPlan:
    """What one device does in one round.

    entry: the ledger position its parameters must have. examples: batch size. measure_held_out: also report the loss
    on the device's own fixed held-out examples. want_digest: also report the digest of the parameters. grid: of the report.
    id: repeated in the report, so that the answer to a plan of other settings is not taken for one to this.
    """

    round: int
    entry: int
    root: Node
    examples: int
    measure_held_out: bool
    want_digest: bool
    grid: Grid
    id: int
