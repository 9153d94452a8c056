"""Reports of all bases and shapes make one entry, the same after a restart; one that is far too large hardly counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bundles
from local_coordinator import answer, report, settings
from made_rounds import CHEAP_HEAD, CUT, PLANNED, SHAPES, Clock, Make, comes_to, kinds, shaped, state
from tiny_walks import batch_of

from coordinator.config import Rate, Round, Seeds
from coordinator.memory_store import MemoryStore, _Run
from coordinator.offenders import LATELY, OFTEN
from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from coordinator.store import RunRow
from zo.bundle import Bundle
from zo.engine import Engine
from zo.estimators import Grid, half_differences
from zo.messages import Report, Verdict
from zo.parameters import Parameters
from zo.recipe import Probe, Split


def test_a_stop_changes_no_bit_of_what_comes_after(make_rounds: Make) -> None:
    rounds = make_rounds()
    rounds.accept(answer(rounds, 0))
    again = make_rounds(devices=0)
    for each in (rounds, again):
        each.reports[1] = report(1)
    terms = comes_to(rounds, [report(0), report(1)])
    assert terms == comes_to(again, [report(0), report(1)])
    assert terms


@pytest.mark.parametrize("rate", [1e5, 1e6])
def test_a_round_beyond_the_lattice_changes_nothing_but_goes_on(rate: float, make_rounds: Make) -> None:
    rounds = make_rounds(rate=Rate(rate, rate), round=Round(1, 1, 30.0))
    before = rounds.ledger.parameters.digest()
    rounds.accept(answer(rounds, 0))
    assert rounds.close_if_due()
    assert rounds.ledger.parameters.digest() == before
    assert (rounds.ledger.entry, rounds.round) == (1, 2)
    assert rounds.store.entries(rounds.run.id)[0].terms == ()
    assert kinds(rounds) == ["refused"]
    assert state(make_rounds(devices=0)) == state(rounds)


def test_the_summary_tells_what_the_reports_held(make_rounds: Make) -> None:
    rounds = make_rounds(held_out_every=16)
    rounds.accept(answer(rounds, 0, dropped=1, held_out=(2**14,)))
    rounds.accept(answer(rounds, 1, held_out=(3 * 2**14,)))
    rounds.close_if_due()
    summary = rounds.store.summaries(rounds.run.id)[0]
    assert (summary["reports"], summary["probes"], summary["dropped"], summary["held_out"]) == (2, 12, 1, 2.0)
    assert summary["half_difference"] == pytest.approx(np.sqrt((300**2 + 200**2 + 100**2) / 3) / 2**14)


def test_reports_of_several_bases_make_one_entry_and_a_restart_makes_the_same(make_several: Make, tmp_path: Path) -> None:
    wanted = {"round": Round(3, 1, 30.0)}
    rounds = make_several(**wanted)
    for device, precision in enumerate(("fp32", "int8")):
        assert rounds.accept(answer(rounds, device, precision=precision)) is Verdict.ACCEPTED
    again = make_several(**wanted)
    assert {device: report.precision for device, report in again.reports.items()} == {0: "fp32", 1: "int8"}
    reports = [answer(again, device, precision=precision) for device, precision in enumerate(("fp32", "int8", "w4"))]
    assert comes_to(again, reports) == comes_to(rounds, reports)
    assert again.accept(reports[2]) is Verdict.ACCEPTED
    assert again.close_if_due()
    assert again.store.entries(1)[0].terms == comes_to(rounds, reports)
    assert again.store.entries(1)[0].contributors == 3


def test_the_slope_counts_whichever_base_found_it(several: Bundle, make_several: Make) -> None:
    rounds = make_several(seeds=Seeds(3))  # all devices try the same directions
    times = 2 ** (several.at("int8").manifest.log2_eps("body") - several.manifest.log2_eps("body"))
    exact = answer(rounds, 0, scalars=(640, -320, 64))
    coarse = answer(rounds, 0, precision="int8", scalars=tuple(int(each * times) for each in (640, -320, 64)))
    body = [group.id for group in several.manifest.groups if group.kind == "body"]
    found = [[term for term in comes_to(rounds, [each]) if set(body) & set(term.groups)] for each in (exact, coarse)]
    assert found[0] == found[1] != []


def test_devices_that_try_other_groups_each_move_their_own_and_a_restart_makes_the_same(make_rounds: Make) -> None:
    wanted = {"round": Round(2, 1, 30.0), **CUT}
    rounds = make_rounds(devices=2, **wanted)
    *body, head = (group.id for group in rounds.bundle.manifest.groups)
    for device, among in enumerate([(body[0], head), (body[-1],)]):
        plan = rounds.plan(device, "fp32", CHEAP_HEAD, among)
        assert plan is not None
        assert plan.groups == plan.shape.groups == among
        digest = rounds.ledger.parameters.digest(among)
        assert digest != rounds.ledger.digest() == rounds.ledger.digest(())
        wrong = shaped(rounds, device, plan.shape, plan=plan.id, digest=rounds.ledger.digest())
        assert rounds.accept(wrong) is Verdict.DIVERGED
        if device == 1:
            again = make_rounds(devices=0, **wanted)
            assert kinds(again) == ["diverged"] * 2
            assert again.reports.keys() == {0}
            rounds = again
        assert rounds.accept(shaped(rounds, device, plan.shape, plan=plan.id, digest=digest)) is Verdict.ACCEPTED
    assert rounds.close_if_due()
    (entry,) = rounds.store.entries(1)
    assert {group for term in entry.terms for group in term.groups} == {body[0], body[-1], head}


def test_reports_of_several_shapes_make_one_entry_and_a_restart_keeps_them_and_makes_the_same(make_rounds: Make) -> None:
    wanted = {"round": Round(4, 1, 30.0), **PLANNED}
    rounds = make_rounds(devices=4, **wanted)
    for device, shape in enumerate(SHAPES[:3]):
        assert rounds.accept(shaped(rounds, device, shape)) is Verdict.ACCEPTED
    again = make_rounds(devices=0, **wanted)
    assert kinds(again) == []
    assert {device: report.shape for device, report in again.reports.items()} == dict(enumerate(SHAPES[:3]))
    assert [again.plan(device, "fp32") is None for device in range(4)] == [True, True, True, False]
    assert again.accept(shaped(again, 1, SHAPES[0])) is Verdict.DUPLICATE
    last = shaped(again, 3, SHAPES[3])
    reports = [*rounds.reports.values(), last]
    assert comes_to(again, reports) == comes_to(rounds, reports) != ()
    assert again.accept(last) is Verdict.ACCEPTED
    assert again.close_if_due()
    (entry,) = again.store.entries(1)
    assert (entry.terms, entry.contributors) == (comes_to(rounds, reports), 4)
    summary = again.store.summaries(1)[0]
    assert (summary["probes"], summary["scalars"]) == (2 * 3 * 4, sum(shape.scalars for shape in SHAPES))
    assert set(summary["slopes"]) == {"0", "1", "2", "3"}


def probed(bundle: Bundle, rounds: Rounds, device: int) -> Report:
    """What a device reports that stands at the fleet's parameters, with a batch of its own."""
    plan = rounds.plan(device, "fp32")
    assert plan is not None
    batch = batch_of(bundle, 4, seed=100 * rounds.round + device)
    here = Parameters(bundle.manifest.run_key, bundle.manifest.groups, rounds.ledger.parameters.tensors())
    half = half_differences(Engine(bundle, here).probe(plan.root, batch))
    return answer(rounds, device, scalars=tuple(plan.grid.integers(half).tolist()), plan=plan.id, shape=plan.root.shape)


@pytest.mark.parametrize(("model", "cut"), [("bert", 1), ("bert", 2), ("llama-tied", 1)])
@pytest.mark.parametrize("pool", [0, 16])
def test_joint_parts_of_one_direction_each_are_plain_mezo_to_the_last_bit(
    model: str, cut: int, pool: int, bundles: Bundles, tmp_path: Path, clock: Clock
) -> None:
    """From plan to probes, scalars, terms and parameters, round after round."""
    bundle, digests = bundles(model), []
    ways: dict[str, dict[str, Any]] = {"mezo": {"algorithm": "mezo"}, "joint": PLANNED | {"split": Split((cut,), (1,), joint=True)}}
    for name, way in ways.items():
        store = SqliteStore(tmp_path / f"{name}.sqlite", create=True)
        chosen = settings(bundle, probe=Probe(1, 4), rounds=8, round=Round(3, 3), seeds=Seeds(pool), rate=Rate(5.0, 5.0), **way)
        rounds = Rounds(store, store.open_run("run", bundle.folder, bundle.digest), bundle, chosen, clock)
        found = [rounds.ledger.parameters.digest()]
        for device in range(3):
            rounds.enrol(device)
        while not rounds.finished:
            for device in range(3):
                assert rounds.accept(probed(bundle, rounds, device)) is Verdict.ACCEPTED
            assert rounds.close_if_due()
            found.append(rounds.ledger.parameters.digest())
        digests.append((found, [entry.terms for entry in store.entries(1)]))
    assert digests[0] == digests[1]
    assert len(set(digests[0][0])) == 9


def test_a_device_that_reports_far_too_much_hardly_counts_and_is_named_once_where_it_goes_on(make_rounds: Make) -> None:
    rounds = make_rounds(3, round=Round(3, 3, 5.0), rounds=20)
    for number in range(1, LATELY + 1):
        for device, size in enumerate((1, 1, 100)):
            rounds.accept(answer(rounds, device, number, scalars=(300 * size, -200 * size, 100 * size)))
        rounds.close_if_due()
        assert kinds(rounds) == (["tempered"] if number >= OFTEN else [])
    assert [told["tempered"] for told in rounds.store.summaries(rounds.run.id)] == [[2]] * LATELY
    steps = [abs(int(term.steps.sum())) for term in rounds.store.entries(rounds.run.id)[0].terms]
    assert max(steps) <= 5 * min(step for step in steps if step)


def test_a_liar_among_three_changes_nothing_by_the_median(bert_bundle: Bundle) -> None:
    def digest(last: tuple[int, ...], how: str) -> bytes:
        store = MemoryStore()
        run = RunRow(1, "run", bert_bundle.folder, bert_bundle.digest, bytes(32), 0.0, "running")  # always the same seeds
        store.data[1] = _Run(run)
        changed = settings(bert_bundle, aggregation=how, seeds=Seeds(shared=True), round=Round(3, 3, 30.0))
        rounds = Rounds(store, run, bert_bundle, changed)
        for device, scalars in enumerate([(300, -200, 100), (300, -200, 100), last]):
            rounds.enrol(device)
            assert rounds.accept(answer(rounds, device, scalars=scalars)) is Verdict.ACCEPTED
        rounds.close_if_due()
        assert rounds.ledger.entry == 1
        return rounds.ledger.digest()

    limit = Grid(14, 2.0).limit
    assert digest((limit, limit, -limit), "median") == digest((300, -200, 100), "median")
    assert digest((limit, limit, -limit), "mean") != digest((300, -200, 100), "mean")
