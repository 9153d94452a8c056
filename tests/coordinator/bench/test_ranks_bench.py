"""The peers of nested ranks are what they are said to be."""

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import Bundles
from tiny_walks import batch_of

from coordinator.bench import tiny_models
from coordinator.bench.flexlora import Flex
from coordinator.bench.rank_costs import measure as costs
from coordinator.bench.rank_search import TUNING_SEEDS, Job, Loss, Losses, Search, search
from coordinator.bench.rank_sides import DEVICES, RANKS, SIDES, ZeroPadded
from coordinator.bench.ranks import ALONE, FLEX, OWNERS, PEERS, compared, differences
from coordinator.config import Ranks, Round, RunConfig
from coordinator.rounds import Rounds
from coordinator.simulation import Simulation
from zo.bundle import Bundle
from zo.engine import Engine
from zo.recipe import Probe, Rate

TINY = BEARS = (1, 2, 4)


def moved(bundle: Bundle, bears: tuple[int, ...], rates: tuple[float, ...] | None) -> list[np.ndarray]:
    """By how much one round of devices of these ranks moves the groups; zero-padded where rates by slice are given."""

    class Padded(ZeroPadded):
        slice_rates = rates or ()

    class PaddedRounds(Rounds):
        AGGREGATOR = Padded

    class Padding(Simulation):
        ROUNDS = PaddedRounds if rates else Rounds

    config = RunConfig(
        str(bundle.folder),
        rounds=1,
        held_out_every=0,
        round=Round(len(bears), len(bears)),
        algorithm="mezo",
        probe=Probe(directions=1, examples=4),
        rate=Rate(body=0.3, head=0.0),
        ranks=Ranks((0.0, 0.0, 1.0)),
    )
    fleet = Padding(
        bundle, config, [tiny_models.examples(bundle.manifest.task, 20, device) for device in range(len(bears))], 0, ranks=bears
    )
    fleet.step()
    start = bundle.parameters()
    return [fleet.rounds.ledger.parameters.flat(group.id) - start.flat(group.id) for group in bundle.manifest.groups]


@pytest.mark.parametrize(("bears", "shorter"), [((4, 4, 4), 1.0), ((1,), 1 / 4), ((2, 2), 2 / 4)])
def test_zero_padding_takes_plain_steps_and_has_rates_by_slice(bundles: Bundles, bears: tuple[int, ...], shorter: float) -> None:
    bundle = bundles("bert", ranks=TINY)
    ours, flat, scaled = (moved(bundle, bears, rates) for rates in (None, (1.0, 1.0, 1.0), (1.0, 0.5, 2.0)))
    for group, one, plain, other in zip(bundle.manifest.groups, ours, flat, scaled, strict=True):
        held = group.kind == "body" and TINY[group.id % 3] <= bears[0]
        np.testing.assert_allclose(plain, shorter * one, atol=4 * group.unit)
        np.testing.assert_allclose(other, (1.0, 0.5, 2.0)[group.id % 3] * shorter * one, atol=4 * group.unit)
        assert one.any() == held


def test_flexlora_begins_at_the_model_and_holds_the_best_approximation_of_each_rank(bundles: Bundles) -> None:
    bundle, nested = bundles("bert", "lora", ranks=TINY), bundles("bert", ranks=TINY).manifest
    shares = [tiny_models.examples(bundle.manifest.task, 20, device) for device in range(3)]
    fleet, batches = Flex(bundle, nested, BEARS, shares, 0, 4, balanced=True), [batch_of(bundle)]
    start = Engine(bundle, bundle.parameters()).loss(batches[0])
    assert [fleet.metrics(batches, rank)["loss"] for rank in TINY] == pytest.approx([start] * 3, abs=1e-6)
    for _ in range(3):
        fleet.step(0.3)
    assert len({round(fleet.metrics(batches, rank)["loss"], 6) for rank in TINY}) == 3
    for name, total in fleet._sum.items():
        a, b = fleet._factors()[name]
        np.testing.assert_allclose(a @ b, fleet._basis[name] @ total, atol=1e-6)
        errors = [np.linalg.norm(a[:, :rank] @ b[:rank] - fleet._basis[name] @ total) for rank in (*TINY,)]
        sizes = np.linalg.svd(total, compute_uv=False)
        np.testing.assert_allclose(errors, [np.linalg.norm(sizes[rank:]) for rank in TINY], atol=1e-6)


def test_the_best_rate_is_the_one_by_the_mean_of_the_tuning_seeds_and_lies_between_others() -> None:
    def fly(jobs: Sequence[Job]) -> list[Losses]:
        luck = {TUNING_SEEDS[0]: -3.0}  # of one seed, at one rate
        right = {"fast": 3.2, "slow": -1}
        losses = [abs(np.log2(job.rate) - right[job.side]) + (job.rate == 2) * luck.get(job.seed, 1.5) for job in jobs]
        return [{2: Loss(0.0, 0.0), 4: Loss(loss, -loss)} for loss in losses]

    fast, slow = Search("fast"), Search("slow", 1)
    search(fly, [fast, slow])
    assert (fast.best, sorted(fast.tried)) == (8.0, [1.0, 2.0, 4.0, 8.0, 16.0])
    assert (slow.best, sorted(slow.tried)) == (0.5, [0.25, 0.5, 1.0, 2.0])


def test_differences_are_paired_by_seed() -> None:
    assert compared([1.0, 2.0, 3.0], [0.5, 2.0, 2.5]) == {"mean": 0.3333, "se": 0.1667, "upper": 0.6667}

    def by_seed(losses: dict[int, float], balanced: float = 0.0) -> list[Losses]:
        return [{rank: Loss(loss + seed, balanced) for rank, loss in losses.items()} for seed in range(3)]

    nested = by_seed({rank: 0.5 - rank / 100 for rank in RANKS}, 0.25)
    found = {"nested": nested, FLEX: nested, "zero_padded": by_seed(dict.fromkeys(RANKS, 0.7))}
    found["blind"] = by_seed(dict.fromkeys(RANKS, 0.6))
    found |= {name: by_seed({rank: 0.4}) for rank, name in ALONE.items() if name != "largest_rank"}
    found |= {name: by_seed({rank: 0.8}) for rank, name in OWNERS.items() if rank > 2}
    found["largest_rank"] = by_seed({rank: 0.5 - rank / 50 for rank in RANKS})
    made = differences(found)
    against = {f"nested_minus_{name}" for name in PEERS}
    assert made.keys() == {*against, "prefix_losses", "losses", "class_balanced"}
    assert made["class_balanced"].keys() == {*against, "prefix_losses", "losses"}
    assert made["class_balanced"]["prefix_losses"]["4"]["minus_by_owners"]["mean"] == 0.25
    assert made["class_balanced"]["nested_minus_zero_padded"]["mean"] == 0.25
    assert made["nested_minus_zero_padded"] == {"mean": -0.36, "se": 0.0, "upper": -0.36}
    assert made["nested_minus_smallest_rank"]["mean"] == -0.06
    assert made["nested_minus_largest_rank"]["mean"] == 0.16
    assert made["prefix_losses"]["4"]["minus_alone"]["mean"] == 0.06
    assert made["prefix_losses"]["4"]["minus_by_owners"]["mean"] == -0.34
    assert made["prefix_losses"]["2"]["minus_cut_from_blind"]["mean"] == -0.12


def test_bytes_fall_with_the_rank(bundles: Bundles) -> None:
    found = costs(bundles("bert", ranks=TINY), 2)
    assert found["1"]["adapter_bytes"] < found["2"]["adapter_bytes"] < found["4"]["adapter_bytes"]
    assert found["4"]["time_ratio"] == 1.0
    assert all(row["peak_mb"] > 10 for row in found.values())


def test_sides_of_the_fleet_train_what_their_devices_bear() -> None:
    for side in ("nested", "blind", "zero_padded", *OWNERS.values()):
        trains = SIDES[side].devices
        assert all(rank <= bears for rank, bears in zip(trains, DEVICES[-len(trains) :], strict=True))
    assert [len(SIDES[side].devices) for side in OWNERS.values()] == [sum(bears >= rank for bears in DEVICES) for rank in OWNERS]
