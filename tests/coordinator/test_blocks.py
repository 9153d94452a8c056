"""The blocks of a run's devices, round by round: who comes, goes and changes; noise; restarts; and rounds that use it."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_coordinator import report, settings

from coordinator.allocation import Asking, Base
from coordinator.bench.random_fleets import manifest_of
from coordinator.blocks import GONE, GROWN, Blocks, asked
from coordinator.config import Round, RunConfig, Seeds
from coordinator.memory_store import MemoryStore
from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from zo.bundle import Bundle
from zo.errors import ConfigError
from zo.memory import PUBLISHED
from zo.messages import Profile, Verdict
from zo.plan import WorkPlan
from zo.recipe import Rate

FULL = manifest_of("bert-base")
CONFIG = RunConfig("bundle", round=Round(2, 1, 60.0))
HEAD = len(FULL.groups) - 1


class Clock:
    """Seconds, moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """Blocks of a run, what they noted, and their clock."""

    def __init__(self, summaries: list[dict[str, Any]] | None = None, **changed: Any) -> None:
        self.notes, self.clock = list[tuple[str, str]](), Clock()
        config = dataclasses.replace(CONFIG, **changed)
        self.blocks = Blocks(config, FULL, summaries or [], lambda kind, text: self.notes.append((kind, text)), self.clock)

    def ask(self, device: int, round_number: int, most: float = 12, **told: Any) -> tuple[int, ...] | None:
        """Blocks that a device with memory for `most` gets."""
        asking = Asking(Profile(room(most), **told), "w4")
        found = self.blocks.among(device, asking, round_number, {})
        return tuple(range(12)) if found == () else None if found is None else tuple(block for block in found if block != HEAD)


def room(blocks: float) -> int:
    """MiB for so many blocks."""
    base = Base(FULL, asked(CONFIG))
    each = base.needed(1) - base.needed(0)
    return int((base.needed(0) + blocks * each) / 2**20) + 1


def test_a_device_with_memory_for_all_gets_all_and_no_list_of_groups() -> None:
    heard = Heard()
    assert heard.blocks.among(0, Asking(Profile(room(12)), "w4"), 1, {}) == ()
    assert heard.blocks.among(1, Asking(Profile(), "w4"), 1, {}) == ()


def test_a_smaller_one_gets_what_fits_and_the_head() -> None:
    found = Heard().blocks.among(0, Asking(Profile(room(2)), "w4"), 1, {})
    assert found is not None
    assert len(found) == 3
    assert found[-1] == HEAD


def test_those_who_come_in_mid_round_cover_all_blocks_by_turns_and_the_next_round_is_planned_for_all() -> None:
    heard = Heard()
    for _ in range(2):
        assert all(len(heard.ask(device, 1, 2) or ()) == 2 for device in range(6))
    alone = {block for device in range(6) for block in heard.ask(device, 1, 2) or ()}
    assert alone == set(range(12))
    together = [heard.ask(device, 2, 2) for device in range(6)]
    assert sorted(block for each in together for block in each or ()) == list(range(12))
    assert together == [heard.ask(device, 3, 2) for device in range(6)]


def test_one_device_alone_tries_every_block_over_a_window() -> None:
    heard = Heard()
    assert {block for number in range(1, 7) for block in heard.ask(0, number, 2) or ()} == set(range(12))


def test_with_adapters_a_device_meets_every_block_unless_one_is_too_slow_for_some() -> None:
    manifest = dataclasses.replace(FULL, trainable="lora")
    base = Base(manifest, asked(CONFIG))
    small = Profile((base.needed(3) >> 20) + 1)
    slow = Profile(0, *((int(1.1e9 * 60 / base.seconds(Profile(0, (10**9,) * 13, (10**9,) * 13))[0]),) * 13,) * 2)
    for other, wanted in ((Profile(), 12), (slow, 3)):
        made, met = Blocks(CONFIG, manifest, [], lambda kind, text: None), set[int]()
        for number in range(1, 14):
            for device, profile in enumerate((small, other)):
                found = made.among(device, Asking(profile, "w4"), number, {})
                assert found is not None
                if device == 0 and number > 1:
                    assert len(found) == 4
                    met |= set(found) - {HEAD}
        assert len(met) == wanted


def test_with_adapters_blocks_have_their_turns_as_the_slopes_of_the_run_say() -> None:
    manifest = dataclasses.replace(FULL, trainable="lora")
    small = Asking(Profile((Base(manifest, asked(CONFIG)).needed(3) >> 20) + 1), "w4")
    made, tried = Blocks(CONFIG, manifest, [], lambda kind, text: None), Counter[int]()
    slopes = {block: 6.0 if block == 7 else 1.0 for block in range(12)}
    for number in range(1, 201):
        tried.update(made.among(0, small, number, slopes) or ())
    assert tried[HEAD] == 200
    assert [tried[block] / 200 for block in range(12)] == pytest.approx([1.0 if block == 7 else 2 / 11 for block in range(12)], abs=0.02)


def test_noise_of_memory_and_of_times_changes_nothing() -> None:
    heard = Heard()
    times = (10**6,) * len(FULL.stages)
    for device, most in enumerate((2, 10)):
        heard.ask(device, 1, most, stage_ns=times, single_ns=times)
    first = [heard.ask(device, 2, most, stage_ns=times, single_ns=times) for device, most in enumerate((2, 10))]
    for number in range(3, 9):
        noisy = (10**6 * (10 + number) // 12,) * len(FULL.stages)
        memory = [Asking(Profile(round(room(most) * (0.97 + 0.03 * number)), noisy, noisy), "w4") for most in (2, 10)]
        groups = [heard.blocks.among(device, asking, number, {}) for device, asking in enumerate(memory)]
        assert [tuple(each for each in found or () if each != HEAD) for found in groups] == first


def test_less_memory_gives_fewer_blocks_at_once_and_more_memory_more_in_the_next_round() -> None:
    heard = Heard()
    heard.ask(0, 1, 12)
    heard.ask(1, 1, 12)
    assert len(heard.ask(0, 2, 4) or ()) == 4
    assert len(heard.ask(0, 3, 4) or ()) == 4
    assert len(heard.ask(1, 3, 12) or ()) == 12
    assert len(heard.ask(0, 4, 12) or ()) == 12


def test_a_device_with_too_little_for_a_block_gets_none_and_is_told_why_until_it_has_more() -> None:
    heard = Heard()
    heard.ask(1, 1, 12)
    heard.ask(0, 1, 3)
    for number in (2, 3, 4):
        assert heard.ask(0, number, 0.2) is None
        assert "one block with base w4 needs" in heard.blocks.too_small[0]
    assert [kind for kind, _ in heard.notes] == ["too small"]
    assert len(heard.ask(0, 5, 3) or ()) == 3
    assert heard.blocks.too_small == {}


def test_whoever_has_not_asked_for_long_is_not_counted_on() -> None:
    heard = Heard()
    for device in range(6):
        heard.ask(device, 1, 2)
    for device in range(6):
        heard.ask(device, 2, 2)
    heard.clock.now += GONE + 1
    heard.ask(0, 3, 2)  # who comes back first does not know who is there; by and by it is not alone
    for device in (1, 2):
        heard.ask(device, 3, 2)
    seen = {block for number in range(4, 6) for device in range(3) for block in heard.ask(device, number, 2) or ()}
    assert seen == set(range(12))


def test_slow_devices_leave_the_lower_blocks_to_others_and_the_operator_hears_where_none_is_fast_enough() -> None:
    heard = Heard(round=Round(2, 1, 8.0))
    slow = {"stage_ns": (50_000_000,) * len(FULL.stages), "single_ns": (50_000_000,) * len(FULL.stages)}
    heard.ask(0, 1, 12, **slow)
    found = heard.ask(0, 2, 12, **slow)
    assert found is not None
    assert found == tuple(range(found[0], 12))
    assert found[0] > 0
    assert heard.notes == [("blocks", f"blocks {list(range(found[0]))} are trained by no device: none is fast enough for them")]


@pytest.mark.parametrize("changed", [{"blocks": "all"}, {"rate": Rate(body=0.0)}])
def test_where_all_is_asked_of_everyone_nothing_is_allocated(changed: dict[str, Any]) -> None:
    assert Heard(**changed).ask(0, 1, 1) == tuple(range(12))


def test_a_slack_saves_memory() -> None:
    strict, loose = Heard(), Heard(blocks_slack=0.5)
    for heard in (strict, loose):
        for device in range(5):
            heard.ask(device, 1, 12)
    held = [sum(len(heard.ask(device, 2, 12) or ()) for device in range(5)) for heard in (strict, loose)]
    assert held[0] == 60
    assert 36 <= held[1] < 48


def test_a_base_that_the_bundle_has_not_is_refused_and_forgotten() -> None:
    heard = Heard()
    with pytest.raises(ConfigError, match="no base of precision 'int8'"):
        heard.blocks.among(0, Asking(Profile(), "int8"), 1, {})
    assert heard.ask(1, 2, 12) == tuple(range(12))


def test_the_news_are_all_that_a_restart_needs_and_each_is_kept_once() -> None:
    before, summaries = Heard(), list[dict[str, Any]]()
    for number, most in ((1, 3), (2, 2)):
        found = [before.ask(device, number, most if device else 3) for device in range(4)]
        summaries.append(json.loads(json.dumps(before.blocks.news())))
        assert json.loads(json.dumps(before.blocks.news())) == summaries[-1]  # until they are kept
        before.blocks.keep()
        assert before.blocks.news() == {}
    assert [list(each["profiles"]) for each in summaries] == [["0", "1", "2", "3"], ["1", "2", "3"]]
    found = [before.ask(device, 3, 2 if device else 3) for device in range(4)]
    after = Heard([*summaries, {"round": 3}])
    assert [after.ask(device, 3, 2 if device else 3) for device in range(4)] == found
    assert after.blocks.news() == {}
    before.clock.now += GONE + 1
    before.ask(0, 4, 3)
    assert {device: row is None for device, row in before.blocks.news()["profiles"].items()} == {"1": True, "2": True, "3": True}


def test_times_of_other_stages_are_not_believed_nor_kept() -> None:
    heard = Heard(round=Round(2, 1, 8.0))
    assert heard.ask(0, 1, 12, stage_ns=(10**12,) * 1000, single_ns=(10**12,) * 1000) == tuple(range(12))
    assert heard.blocks.news()["profiles"]["0"]["profile"]["stage_ns"] == ()


@hypothesis.settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0.1, 14)), min_size=1, max_size=30))
def test_whatever_is_told_no_device_is_asked_for_more_than_it_can_and_the_same_is_answered_twice(told: list[tuple[int, float]]) -> None:
    one, other = Heard(), Heard()
    base = Base(FULL, asked(CONFIG))
    for place, (device, most) in enumerate(told):
        found = [heard.ask(device, 1 + place // 4, most) for heard in (one, other)]
        assert found[0] == found[1]
        if found[0] is None:
            assert GROWN * base.needed(1) > 0.97 * (room(most) << 20)  # until it has grown by so much, it counts as it was
        else:
            assert 0.97 * base.needed(len(found[0])) <= room(most) << 20


def test_what_a_device_has_parked_it_is_not_asked_for_and_the_event_says_so_once() -> None:
    heard, body = Heard(), tuple(range(HEAD))

    def among(round_number: int, *parked: int, most: float = 12) -> tuple[int, ...] | None:
        return heard.blocks.among(0, Asking(Profile(room(most), parked=parked), "w4"), round_number, {})

    assert [among(number, *body) for number in (1, 2)] == [(HEAD,), (HEAD,)]
    assert among(3, HEAD) == body
    assert len(among(4, HEAD, most=2) or ()) == 2
    assert among(5, *body, HEAD) == among(6) == ()  # better than nothing
    assert among(6, HEAD) == body  # what changes again within a round is heard, and told in the next
    assert heard.notes == [
        ("parked", "device 0 leaves out the body: probes there are mostly noise"),
        ("parked", "device 0 leaves out the head: probes there are mostly noise"),
        ("parked", "device 0 leaves out the body and the head: probes there are mostly noise"),
        ("parked", "device 0 tries all again"),
    ]


def test_nothing_is_left_out_where_it_is_all_that_is_trained_or_devices_are_compared() -> None:
    noisy = Asking(Profile(parked=tuple(range(HEAD))), "w4")
    assert Heard(rate=Rate(head=0.0)).blocks.among(0, noisy, 1, {}) == ()
    assert Heard(aggregation="median", seeds=Seeds(shared=True)).blocks.among(0, noisy, 1, {}) == ()
    assert Heard(blocks="all").blocks.among(0, noisy, 1, {}) == (HEAD,)


# --- the rounds of a run ---

Make = Callable[..., Rounds]
TINY = {"round": Round(2, 1, 30.0), "algorithm": "mezo"}


@pytest.fixture
def make(bert_bundle: Bundle, tmp_path: Path) -> Make:
    """make(bundle=bert_bundle, **settings): rounds over the same file at each call."""

    def rounds(bundle: Bundle = bert_bundle, **changed: Any) -> Rounds:
        store = SqliteStore(tmp_path / "run.sqlite", create=True)
        run = store.open_run("run", bert_bundle.folder, bert_bundle.digest)
        made = Rounds(store, run, bundle, settings(bert_bundle, **TINY | changed), Clock())
        for device in range(2):
            made.enrol(1000 + device)
        return made

    return rounds


def slow(rounds: Rounds) -> Profile:
    """So slow that half of its blocks are too much for the deadline."""
    base = Base(rounds.bundle.manifest, asked(rounds.config))
    each = rounds.config.round.deadline / base.seconds(Profile(0, (10**9,) * 3, (10**9,) * 3))[1] * 10**9
    return Profile(0, (int(each),) * 3, (int(each),) * 3)


def steps_after(rounds: Rounds, plans: Sequence[WorkPlan | None]) -> dict[int, int]:
    """How many steps the entry of round 1 has for each group, once every plan was answered."""
    for device, plan in enumerate(plans):
        assert plan is not None
        scalars = tuple(range(300, 300 + plan.root.scalars))
        assert rounds.accept(report(device, 1, scalars, plan=plan.id, shape=plan.shape)) is Verdict.ACCEPTED
    assert rounds.close_if_due()
    (entry,) = rounds.store.entries(1)
    groups = [group.id for group in rounds.bundle.manifest.groups]
    return {group: sum(term.steps.size for term in entry.terms if group in term.groups) for group in groups}


def test_a_slow_devices_report_counts_for_its_blocks_and_is_taken_after_a_restart_too(make: Make) -> None:
    rounds = make()
    *body, head = (group.id for group in rounds.bundle.manifest.groups)
    plans = [rounds.work(0, "fp32", Profile()), rounds.work(1, "fp32", slow(rounds))]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[0].groups == ()
    stages = rounds.bundle.manifest.stages
    assert plans[1].groups == tuple(group for stage in stages[1:] for group in stage.groups)
    assert plans[1].root.stage == 1
    rounds = make()
    steps = steps_after(rounds, plans)
    assert steps[body[0]] < steps[body[-1]] == steps[head]


def test_a_device_that_parks_the_body_is_asked_for_the_head_alone_and_its_report_counts(make: Make) -> None:
    rounds = make()
    *body, head = (group.id for group in rounds.bundle.manifest.groups)
    plans = [rounds.work(device, "fp32", Profile(parked=tuple(body) if device else ())) for device in range(2)]
    assert [plan.groups for plan in plans if plan] == [(), (head,)]
    steps = steps_after(rounds, plans)
    assert {steps[group] for group in body} == {steps[head] // 2}


def test_a_device_without_a_block_hears_why_and_the_round_goes_on_without_it(make: Make, bert_bundle: Bundle) -> None:
    large = dataclasses.replace(bert_bundle.manifest, model=PUBLISHED["bert-base"])
    rounds = make(dataclasses.replace(bert_bundle, manifest=large), round=Round(1, 1, 30.0))
    assert rounds.work(1, "fp32", Profile(1)) is None
    assert rounds.why_waiting(1).startswith("one block with base fp32 needs")
    assert rounds.why_waiting(0).startswith("round 1 has 0 of 1 reports")
    plan = rounds.work(0, "fp32", Profile())
    assert plan is not None
    assert rounds.accept(report(0, 1, plan=plan.id, shape=plan.shape)) is Verdict.ACCEPTED
    assert rounds.close_if_due()
    assert set(rounds.store.summaries(1)[-1]["profiles"]) == {"0", "1"}


def test_devices_that_are_compared_train_the_same(bert_bundle: Bundle) -> None:
    store = MemoryStore()
    changed = settings(bert_bundle, aggregation="median", seeds=Seeds(shared=True))
    rounds = Rounds(store, store.open_run("run", bert_bundle.folder, bert_bundle.digest), bert_bundle, changed)
    rounds.enrol(1)
    plan = rounds.work(0, "fp32", Profile(1))
    assert plan is not None
    assert plan.groups == ()
