"""Work plans: what one device does in one round, as a tree of stages (DESIGN section 3)."""

import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from zo.estimators import Grid
from zo.terms import Term

MOST_DIRECTIONS = 4096  # of one level, a device and round


@dataclass(frozen=True)
class ProbeSize:
    """E for some groups: their values move by +-2**log2_e units in a probe."""

    groups: tuple[int, ...]
    log2_e: int


@dataclass(frozen=True)
class Node:
    """Directions tried from one stage on.

    stage: index of the first stage of the part that this node perturbs; it ends where the child's begins. first_seed,
    count: one direction a seed. probe_sizes: E per group. child: the part nearer the output; each direction of this node
    is followed by `count` of the child's, with seeds of their own, on the stage outputs that it left at +E and at -E. Without
    a child the part goes to the end; plain MeZO is one node. joint: the child's directions are tried together with this
    node's, + with + and - with -, instead of this node's with the child unperturbed. clean, of the lowest node: the directions
    of all nodes are tried alone and at +E only, on what the parts below put out unperturbed; at -E the loss is taken to be as far
    on the other side of the unperturbed one. rank, of the lowest node: adapters are cut to it for all of the tree; 0 leaves them whole.
    """

    stage: int
    first_seed: int
    count: int
    probe_sizes: tuple[ProbeSize, ...]
    child: "Node | None" = None
    joint: bool = False
    clean: bool = False
    rank: int = 0

    def terms(self, direction: int, sign: int) -> tuple[Term, ...]:
        """The perturbation of one direction: `sign` +1 or -1 times E along its seed; 2 undoes and crosses."""
        seed = self.first_seed + direction
        return tuple(Term(size.groups, seed, np.array([sign << size.log2_e], np.int64)) for size in self.probe_sizes)

    def levels(self) -> Iterator[tuple["Node", int]]:
        """This node and those nearer the output, each with the count of its directions in the whole tree."""
        node, total = self, 1
        while node is not None:
            total *= node.count
            yield node, total
            node = node.child  # type: ignore[assignment]

    @property
    def shape(self) -> "Shape":
        """What the tree was made from, all groups being tried."""
        nodes = [node for node, _ in self.levels()]
        return Shape(tuple(node.count for node in nodes), tuple(node.stage for node in nodes[1:]), self.joint, self.clean, rank=self.rank)

    @property
    def scalars(self) -> int:
        """Integers in a report: one a direction of every level, lowest level first; of the last level alone in the joint form."""
        return self.shape.scalars


@dataclass(frozen=True)
class Shape:
    """How many directions, of what, and where they branch: what a tree is made from.

    counts: of every part, lowest first; those of a part are tried on each output of the part below. cuts: the stages at which
    the parts but the lowest begin. joint, clean, rank: see Node. groups: ids of those that are tried, growing; all of them where it
    is empty. ValueError names what cannot be.
    """

    counts: tuple[int, ...]
    cuts: tuple[int, ...] = ()
    joint: bool = False
    clean: bool = False
    groups: tuple[int, ...] = ()
    rank: int = 0

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.cuts) + 1:
            raise ValueError(f"counts = {list(self.counts)} must have one number more than cuts = {list(self.cuts)}")
        if min(self.counts) < 1 or math.prod(self.counts) > MOST_DIRECTIONS:
            raise ValueError(f"counts = {list(self.counts)} must be at least 1 each, and at most {MOST_DIRECTIONS} multiplied")
        if list(self.cuts) != sorted(set(self.cuts)):
            raise ValueError(f"cuts = {list(self.cuts)} must grow")
        if self.joint and len(self.cuts) != 1:
            raise ValueError(f"joint probes need one cut, not cuts = {list(self.cuts)}")
        if self.clean and self.joint:
            raise ValueError("probes are clean or joint, not both")
        if list(self.groups) != sorted(set(self.groups)):
            raise ValueError(f"groups = {list(self.groups)} must grow")

    @property
    def scalars(self) -> int:
        """Those of a tree of this shape."""
        totals = list(itertools.accumulate(self.counts, operator.mul))
        return totals[-1] if self.joint else sum(totals)


@dataclass(frozen=True)
class WorkPlan:
    """What one device does in one round.

    entry: the ledger position its parameters must have. examples: batch size. measure_held_out: also report the loss on the device's
    own fixed held-out examples, and along what the last `stride` entries did (zo.stride). want_digest: also report the digest of the
    parameters that are tried. grid: of the report. id: repeated in the report, so that the answer to a plan of other settings is not
    taken for one to this. groups: those that are tried, where they are not all of them.
    """

    round: int
    entry: int
    root: Node
    examples: int
    measure_held_out: bool
    want_digest: bool
    grid: Grid
    id: int
    stride: int = 0
    groups: tuple[int, ...] = ()

    @property
    def shape(self) -> Shape:
        """What its tree was made from."""
        return replace(self.root.shape, groups=self.groups)
