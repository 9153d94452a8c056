"""Which prefix a step trains; and runs of devices of unequal rank."""

import dataclasses
import itertools

import numpy as np
import pytest
from conftest import Bundles
from test_simulation import simulation, validation

from coordinator import truncation
from coordinator.config import Ranks, RunConfig, Seeds
from coordinator.plans import ReportRefused
from coordinator.simulation import Simulation
from edge_agent import plan_limits
from zo import aggregation, ranks
from zo.bundle import Bundle
from zo.errors import ConfigError
from zo.estimators import Grid
from zo.messages import Report
from zo.plan import Shape
from zo.planning import tree
from zo.rates import Rates
from zo.recipe import Probe, Rate

RANKS = (1, 2, 4)


@pytest.fixture
def nested(bundles: Bundles) -> Bundle:
    return bundles("bert", ranks=RANKS)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("device", range(3))
def test_every_other_step_trains_all_that_the_device_holds_and_none_more(rank: int, device: int, nested: Bundle) -> None:
    found = [truncation.drawn(nested.manifest, (), number, device, rank) for number in range(1, 101)]
    assert all(rank in pair for pair in itertools.pairwise(found))
    assert set(found) == {each for each in RANKS if each <= rank}
    assert found == [truncation.drawn(nested.manifest, (), number, device, rank) for number in range(1, 101)]


def test_probabilities_say_how_often_a_shorter_prefix_is_drawn(nested: Bundle) -> None:
    found = [truncation.drawn(nested.manifest, (3.0, 1.0, 0.0), number, 0, 4) for number in range(1, 1000, 2)]
    share = found.count(1) / len(found)
    assert set(found) == {1, 2}
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / len(found))
    assert {truncation.drawn(nested.manifest, (0, 0, 1), number, 0, rank) for number in range(20) for rank in (1,)} == {1}
    assert {truncation.drawn(nested.manifest, (0, 0, 1), number, 0, 4) for number in range(20)} == {4}
    assert {truncation.drawn(nested.manifest, (0, 0, 1), number, 0, 2) for number in range(20)} == {2}


def test_rank_0_is_the_largest_and_a_bundle_without_ranks_has_none(nested: Bundle, bert_bundle: Bundle) -> None:
    assert truncation.drawn(nested.manifest, (), 2, 0, 0) == 4
    assert truncation.drawn(bert_bundle.manifest, (), 1, 0, 0) == 0
    with pytest.raises(ConfigError, match="has no adapters of rank 2; build it with --ranks"):
        truncation.drawn(bert_bundle.manifest, (), 1, 0, 2)


def test_probabilities_are_one_for_each_rank(nested: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"ranks.probabilities = \[1.0\] must be one for each of the bundle's ranks \[1, 2, 4\]"):
        simulation(nested, ranks=Ranks((1.0,)))
    with pytest.raises(ValueError, match="must not be negative"):
        Ranks((-1.0, 2.0))


# --- runs ---


def fleet(bundle: Bundle, bears: tuple[int, ...], **changed: object) -> Simulation:
    made = simulation(bundle, **{"algorithm": "mezo", "rate": Rate(head=0.0), "held_out_every": 0} | changed)
    made._ranks = bears
    return made


def test_each_slice_moves_by_the_reports_of_devices_that_hold_it(nested: Bundle) -> None:
    run = fleet(nested, (1, 2, 4), rounds=8, probe=Probe(directions=1, examples=4))
    list(run.run(validation(nested), ()))
    entries = run.rounds.store.entries(run.rounds.run.id)
    moved = {group for entry in entries for term in entry.terms for group in term.groups}
    assert moved == set(range(9))
    shares = [
        [sum(np.count_nonzero(term.steps) for term in entry.terms if group in term.groups) for group in range(3)] for entry in entries
    ]
    assert all(each[0] >= each[1] >= each[2] for each in shares)
    assert {tuple(each) for each in shares} <= {(3, 2, 1), (3, 1, 1), (3, 2, 0), (3, 1, 0)}
    told = [summary["ranks"] for summary in run.rounds.store.summaries(run.rounds.run.id)]
    assert all(sum(each.values()) == 3 for each in told)


def test_slices_that_no_device_holds_stay_as_they_are(nested: Bundle) -> None:
    run = fleet(nested, (1, 1, 2), rounds=4)
    list(run.run(validation(nested), ()))
    for group in nested.manifest.groups:
        values = run.rounds.ledger.parameters.flat(group.id)
        assert np.any(values != nested.parameters().flat(group.id)) == (
            group.id in ranks.prefix(nested.manifest, 2) and group.kind == "body"
        )


@pytest.mark.parametrize("algorithm", ["mezo", "fedspzo"])
def test_a_fleet_of_unequal_ranks_learns_and_may_change_them_between_rounds(algorithm: str, nested: Bundle) -> None:
    run = fleet(nested, (1, 2, 4), rounds=30, algorithm=algorithm, rate=Rate())
    for number, _ in enumerate(run.run(validation(nested), range(31))):
        run._ranks = ((1, 2, 4), (4, 1, 2), (2, 2, 1))[number % 3]
    assert not any(kind == "diverged" for _, kind, _ in run.rounds.store.events(run.rounds.run.id))
    with run.engine.cut(1):
        small = run.engine.loss(validation(nested)[0])
    assert run.rounds.ledger.entry == 30
    assert small != run.engine.loss(validation(nested)[0])


def test_where_reports_are_compared_all_devices_bear_the_largest(nested: Bundle) -> None:
    run = fleet(nested, (4, 4, 4), aggregation="median", seeds=Seeds(shared=True))
    assert run.rounds.plan(0, "fp32", rank=4).root.rank == run.rounds.plan(0, "fp32").root.rank == 4
    plan_limits.check(run.rounds.plan(0, "fp32", rank=4), nested.manifest, 4)
    run.step()
    assert run.rounds.ledger.entry == 1
    with pytest.raises(ReportRefused, match="compares devices of the largest rank, 4; this one bears rank 2"):
        run.rounds.plan(0, "fp32", rank=2)


def test_a_rank_that_the_bundle_has_not_is_refused_in_plans_and_reports(nested: Bundle) -> None:
    run = fleet(nested, (4, 4, 4))
    with pytest.raises(ReportRefused, match="has no adapters of rank 3; it has 1, 2, 4"):
        run.rounds.plan(0, "fp32", rank=3)
    plan = run.rounds.plan(0, "fp32", rank=2)
    with pytest.raises(ReportRefused, match="no adapters of rank 3"):
        run.rounds.plan_id(0, "fp32", dataclasses.replace(plan.shape, rank=3))
    assert RunConfig("", ranks=Ranks()).ranks.probabilities == ()


@pytest.mark.parametrize("rank", RANKS)
def test_a_step_of_a_prefix_moves_the_loss_as_far_as_one_of_all(rank: int, nested: Bundle) -> None:
    manifest, grid, log2_eps = nested.manifest, Grid(20, 8.0), {"body": -6, "head": -6}
    body = tuple(group.id for group in manifest.groups if group.kind == "body")
    root = tree(manifest, log2_eps, Shape((1,), groups=body, rank=rank))
    given = Rates({"body": 0.5, "head": 0.5}, {"body": 0.25, "head": 0.25}, log2_eps, log2_eps)
    stretch = (4 / rank) ** 0.5
    larger = 2.0 ** np.ceil(np.log2(stretch))
    usual = 0.5 / stretch * larger  # what its probes are expected to measure: fewer values, moved further
    report = Report(1, 0, 1, grid.integers(np.array([usual])), 4, "fp32", shape=root.shape)
    (term,) = aggregation.aggregate([report], [root], given, {"body": 1.0, "head": 1.0}, manifest, grid)
    assert set(term.groups) == set(body) & ranks.prefix(manifest, rank)
    moved = abs(float(term.steps[0])) * manifest.groups[0].unit
    assert moved == pytest.approx(0.25 * 2.0**-6 * stretch, rel=1e-3)
