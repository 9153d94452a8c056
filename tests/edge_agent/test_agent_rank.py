"""The rank that a device bears: as its owner says, or as its memory does; and no plan makes it do more."""

from dataclasses import replace

import pytest
from conftest import Bundles

from edge_agent import memory, plan_limits
from edge_agent.config import AgentConfig
from edge_agent.guest_config import Memory
from edge_agent.rank import WORTH, bearable
from zo.errors import ConfigError, RunRefused
from zo.estimators import Grid
from zo.manifest import Manifest
from zo.memory.engine import Device
from zo.plan import Shape, WorkPlan
from zo.planning import tree

RANKS = (1, 2, 4)
SIZES = {"body": -7, "head": -5}
DEVICE = Device(1_000_000, 1.0)


@pytest.fixture
def manifest(bundles: Bundles) -> Manifest:
    return bundles("bert", ranks=RANKS).manifest


def budgeted(size: float, **changed: object) -> AgentConfig:
    return AgentConfig("", memory=Memory(budget=f"{size:.0f}"), **changed)  # type: ignore[arg-type]


def test_auto_is_the_largest_with_which_runs_stay_nearly_as_large(manifest: Manifest) -> None:
    found = []
    for size in range(1_300_000, 6_000_000, 25_000):
        config = budgeted(size)
        rows = {rank: memory.most_rows(manifest, config, DEVICE, rank=rank) for rank in RANKS}
        rank = bearable(manifest, config, DEVICE)
        assert rank == max(each for each in RANKS if each == 1 or (rows[1] and rows[each] >= WORTH * rows[1]))
        found.append(rank)
    assert found[0] == 1
    assert found[-1] == 4


def test_a_device_drops_to_a_smaller_rank_and_grows_again_with_its_budget(manifest: Manifest) -> None:
    wide = [bearable(manifest, budgeted(size), DEVICE) for size in (6e6, 1.3e6, 6e6)]
    assert wide == [4, 1, 4]


def test_the_owner_may_say_it(manifest: Manifest) -> None:
    assert bearable(manifest, AgentConfig("", rank=2), DEVICE) == 2
    with pytest.raises(ConfigError, match="has no adapters of rank 3; it has 1, 2, 4"):
        bearable(manifest, AgentConfig("", rank=3), DEVICE)
    with pytest.raises(ValueError, match="rank = 0 must be at least 1, or 'auto'"):
        AgentConfig("", rank=0)


def test_a_bundle_of_one_rank_has_nothing_to_choose(bundles: Bundles) -> None:
    manifest = bundles("bert").manifest
    assert bearable(manifest, AgentConfig(""), DEVICE) == 0
    with pytest.raises(ConfigError, match="has adapters of a single rank, so there is none to choose; leave out --rank"):
        bearable(manifest, AgentConfig("", rank=2), DEVICE)


def test_a_bundle_that_does_not_state_its_dimensions_is_trained_whole(manifest: Manifest) -> None:
    assert bearable(replace(manifest, model=None), AgentConfig(""), DEVICE) == 0


def test_memory_falls_with_the_rank(manifest: Manifest) -> None:
    needs = [memory.predicted(manifest, 64, AgentConfig(""), DEVICE, rank=rank).total for rank in RANKS]
    assert needs[0] < needs[1] < needs[2] == memory.predicted(manifest, 64, AgentConfig(""), DEVICE).total


def plan(manifest: Manifest, rank: int, groups: tuple[int, ...] = ()) -> WorkPlan:
    return WorkPlan(1, 0, tree(manifest, SIZES, Shape((2,), groups=groups, rank=rank)), 4, False, False, Grid(14, 2.0), 1, groups=groups)


def test_plans_within_the_rank_are_taken(manifest: Manifest) -> None:
    for rank in RANKS:
        plan_limits.check(plan(manifest, rank), manifest, 4)
        plan_limits.check(plan(manifest, rank), manifest)
    plan_limits.check(plan(manifest, 0), manifest)
    plan_limits.check(plan(manifest, 2, (0, 1, 3)), manifest, 2)


@pytest.mark.parametrize("rank", [0, 4])
def test_plans_beyond_the_rank_are_refused(rank: int, manifest: Manifest) -> None:
    with pytest.raises(RunRefused, match=rf"adapters of rank {rank}, where the bundle has \[1, 2, 4\] and this device bears 2"):
        plan_limits.check(plan(manifest, rank), manifest, 2)


def test_plans_of_ranks_that_the_bundle_has_not_or_of_slices_beyond_theirs_are_refused(manifest: Manifest) -> None:
    good = plan(manifest, 4)
    with pytest.raises(RunRefused, match="adapters of rank 3"):
        plan_limits.check(replace(good, root=replace(good.root, rank=3)), manifest)
    with pytest.raises(RunRefused, match=r"groups .* which hold"):
        plan_limits.check(replace(good, root=replace(good.root, rank=2)), manifest)
