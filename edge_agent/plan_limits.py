"""What a device does not do, whoever asks: a work plan is looked at before any of it is carried out."""

import itertools
import math

from zo import ranks
from zo.errors import RunRefused
from zo.lattice import LIMIT
from zo.manifest import Manifest
from zo.plan import WorkPlan

MOST_EXAMPLES = 4096  # of a batch, as zo.recipe.Probe allows


def check(plan: WorkPlan, manifest: Manifest, rank: int = 0) -> None:
    """RunRefused where the plan is none that this bundle allows, or asks for more than any run may, or for more than this rank (0: any)."""
    try:
        _check(plan, manifest, rank)
    except ValueError as error:
        raise RunRefused(f"the coordinator asks for what cannot be done: {error}; run the same release on both sides") from None


def _check(plan: WorkPlan, manifest: Manifest, rank: int) -> None:
    shape = plan.shape  # ValueError where its counts, cuts or groups cannot be
    if not 1 <= plan.examples <= MOST_EXAMPLES:
        raise ValueError(f"a batch of {plan.examples} examples")
    bounds = (plan.root.stage, *shape.cuts, len(manifest.stages))
    if not all(low < high for low, high in itertools.pairwise(bounds)):
        raise ValueError(f"parts that begin at stages {list(bounds[:-1])} of {bounds[-1]}")
    tried = [group for node, _ in plan.root.levels() for size in node.probe_sizes for group in size.groups]
    if plan.groups and set(plan.groups) != set(tried):
        raise ValueError(f"groups {list(plan.groups[:8])}, and directions of groups {tried[:8]}")
    if plan.root.rank not in (0, *manifest.ranks) or (rank and not 0 < plan.root.rank <= rank):
        raise ValueError(
            f"adapters of rank {plan.root.rank}, where the bundle has {list(manifest.ranks)} and this device bears {rank or 'all'}"
        )
    within = ranks.prefix(manifest, plan.root.rank)
    for (node, total), (low, high) in zip(plan.root.levels(), itertools.pairwise(bounds), strict=True):
        here = {group for stage in manifest.stages[low:high] for group in stage.groups if group in within}
        asked = [group for size in node.probe_sizes for group in size.groups]
        if not asked or len(set(asked)) != len(asked) or not here.issuperset(asked):
            raise ValueError(f"groups {asked[:8]} in stages {low} to {high - 1}, which hold {sorted(here)[:8]}")
        if not all(size.log2_e < math.log2(LIMIT) for size in node.probe_sizes):
            raise ValueError("a probe beyond the lattice")
        if node.first_seed + total > 2**64:
            raise ValueError(f"seeds from {node.first_seed}, which do not fit 64 bits")
