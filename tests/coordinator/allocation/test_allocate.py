"""From profiles to shares: memory, time, bases, windows, and errors that name the devices."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.allocation import Asked, Asking, Base, Uncovered, allocate, blocks
from coordinator.bench.random_fleets import manifest_of
from zo.errors import ConfigError
from zo.group import Group, Tensor
from zo.manifest import Manifest
from zo.memory.shapes import weight_bytes
from zo.messages import Profile

FULL, ADAPTERS = manifest_of("bert-base"), manifest_of("minilm-l6", "lora-fa")
ASKED = Asked(8, 1, 8, 10.0)
BASE = Base(FULL, ASKED)


def with_room(active: int, manifest: Manifest = FULL) -> Profile:
    """Memory for so many blocks and not for another."""
    return Profile(-(-Base(manifest, ASKED).needed(active) >> 20) + 1)


def timed(milliseconds: float, manifest: Manifest = FULL) -> Profile:
    """So long a branch of an example in every stage."""
    each = (round(1e6 * milliseconds),) * len(manifest.stages)
    return Profile(0, each, each)


def held(profiles: list[Profile], manifest: Manifest = FULL, asked: Asked = ASKED, slack: float = 0.0) -> list[tuple[tuple[int, ...], ...]]:
    made = allocate({place: Asking(each) for place, each in enumerate(profiles)}, manifest, asked, slack)
    return [share.blocks for share in made.shares.values()]


def test_bytes_grow_block_by_block_by_an_active_blocks_float32() -> None:
    each = [BASE.needed(active) for active in range(13)]
    steps = {after - before for before, after in itertools.pairwise(each)}
    assert max(steps) - min(steps) <= 8
    size = FULL.groups[0].size
    assert min(steps) == pytest.approx(4 * size - weight_bytes("w4", size, FULL.width), abs=8)


def test_devices_without_limits_train_everything() -> None:
    for profiles in ([Profile()], [Profile()] * 5, [with_room(12), timed(0.1)]):
        assert held(profiles) == [(tuple(range(12)),)] * len(profiles)


def test_each_gets_as_many_as_fit_and_rare_ones_go_to_who_has_room() -> None:
    made = allocate({place: Asking(with_room(most)) for place, most in enumerate((12, 3, 3, 1))}, FULL, ASKED)
    assert [share.active for share in made.shares.values()] == [12, 3, 3, 1]
    taken = [block for share in list(made.shares.values())[1:] for block in share.blocks[0]]
    assert len(set(taken)) == 7  # none twice while others have but one contributor
    assert (made.window, made.uncovered, made.exact) == (1, (), True)


def test_fleets_that_cannot_hold_all_blocks_take_turns_over_the_shortest_window() -> None:
    for rooms, window in (((2,), 6), ((2, 2), 3), ((2,) * 6, 1), ((5, 5), 2), ((1,), 12)):
        made = allocate({place: Asking(with_room(most)) for place, most in enumerate(rooms)}, FULL, ASKED)
        assert made.window == window
        for turn in range(window):
            assert all(len(share.blocks[turn]) <= most for share, most in zip(made.shares.values(), rooms, strict=True))
        assert {block for share in made.shares.values() for turn in share.blocks for block in turn} == set(range(12))


def test_a_slow_device_tries_only_what_lies_high_enough() -> None:
    slow = timed(50)  # 8 examples: 0.8 s of both branches a stage, 0.4 s of the unperturbed ones
    share = allocate({0: Asking(slow), 1: Asking(Profile())}, FULL, dataclasses.replace(ASKED, seconds=8.0)).shares[0]
    lowest = share.capacity.lowest
    base = Base(FULL, ASKED)
    assert 0 < lowest < 11
    assert share.blocks == (tuple(range(lowest, 12)),)
    assert base.seconds(slow)[lowest] <= 8.0 < base.seconds(slow)[lowest - 1]
    assert base.seconds(slow)[lowest] == pytest.approx(8 * 0.05 * (lowest + 2 * (13 - lowest)))


def test_replay_and_the_line_count_as_time() -> None:
    size = sum(group.size for group in FULL.groups)
    slow = Profile(signs_per_second=size, bytes_per_second=1)
    assert Base(FULL, ASKED).seconds(slow)[0] == pytest.approx(8 + 3)


def test_blocks_below_what_anyone_can_try_in_time_are_named_with_the_devices() -> None:
    made = allocate({3: Asking(timed(50)), 4: Asking(timed(55))}, FULL, dataclasses.replace(ASKED, seconds=8.0))
    assert made.uncovered == tuple(range(made.uncovered[-1] + 1))
    assert {block for share in made.shares.values() for turn in share.blocks for block in turn} == set(range(12)) - set(made.uncovered)
    with pytest.raises(Uncovered, match=r"^blocks 0 to \d can be trained by no device: device 3 is too slow for blocks below"):
        made.check()


def test_a_device_too_slow_for_anything_still_tries_the_topmost_stage() -> None:
    share = allocate({0: Asking(timed(1e5)), 1: Asking(Profile())}, FULL, ASKED).shares[0]
    assert share.blocks == ((11,),)


def test_devices_too_small_for_a_block_are_named_with_both_numbers() -> None:
    made = allocate({7: Asking(Profile(90)), 8: Asking(Profile(40))}, FULL, ASKED)
    assert (made.shares, made.uncovered) == ({}, tuple(range(12)))
    with pytest.raises(
        Uncovered, match=r"device 7 is too small \(one block with base w4 needs \d+ MB, it has 94 MB for the model\); device 8"
    ):
        made.check()
    made = allocate({7: Asking(Profile(90)), 8: Asking(Profile())}, FULL, ASKED)
    made.check()
    assert list(made.too_small) == [7]
    assert list(made.shares) == [8]


def test_a_long_list_of_devices_is_cut() -> None:
    with pytest.raises(Uncovered, match="; and 12 more; give one"):
        allocate({place: Asking(Profile(1)) for place in range(20)}, FULL, ASKED).check()
    with pytest.raises(Uncovered, match="there are no devices"):
        allocate({}, FULL, ASKED).check()


def test_the_first_base_with_which_it_can_take_most_is_chosen_and_a_stated_one_kept() -> None:
    fp32 = ADAPTERS.bases["fp32"]
    both = dataclasses.replace(ADAPTERS, bases={"fp32": fp32, "w4": fp32})
    small = Profile(-(-Base(both.at("w4"), ASKED).needed(6) >> 20) + 1)
    assert Base(both, ASKED).needed(1) > small.memory_mib << 20
    chosen = allocate({0: Asking(small), 1: Asking(Profile()), 2: Asking(Profile(), "w4")}, both, ASKED)
    assert [share.precision for share in chosen.shares.values()] == ["w4", "fp32", "w4"]
    assert list(allocate({0: Asking(small, "fp32"), 1: Asking(Profile())}, both, ASKED).too_small) == [0]
    with pytest.raises(ConfigError, match="no base of precision 'int8'"):
        allocate({0: Asking(Profile(), "int8")}, both, ASKED)


def test_branches_are_given_up_before_examples() -> None:
    asked = Asked(8, 4)
    base = Base(ADAPTERS, asked)
    assert base.runs(Profile(), 6) == (8, 8)
    rows = [1, 2, 8, 16, 24, 64]  # examples and branches
    mib = [-(-base.needed(6, count * ADAPTERS.task.max_tokens) >> 20) + 1 for count in rows]
    found = [base.runs(Profile(each), 6) for each in mib]
    assert found[0] == (2, 1)
    assert found[-1] == (8, 8)
    assert [branches * examples for branches, examples in found] == sorted(branches * examples for branches, examples in found)
    assert all(examples == 8 or branches == 2 for branches, examples in found)


def test_without_the_models_dimensions_memory_is_no_limit() -> None:
    assert held([Profile(1)], dataclasses.replace(FULL, model=None)) == [(tuple(range(12)),)]


profiles = st.builds(
    lambda room, milliseconds: dataclasses.replace(timed(milliseconds), memory_mib=with_room(room).memory_mib),
    st.integers(1, 12),
    st.floats(1, 60),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(profiles, min_size=1, max_size=8), st.sampled_from((0.0, 0.2)))
def test_no_device_is_asked_for_more_than_it_can_and_all_that_can_be_is_covered(fleet: list[Profile], slack: float) -> None:
    asked = dataclasses.replace(ASKED, seconds=8.0)
    base, made = Base(FULL, asked), allocate({place: Asking(each) for place, each in enumerate(fleet)}, FULL, asked, slack)
    for device, share in made.shares.items():
        assert base.needed(share.active) <= fleet[device].memory_mib << 20
        for turn in share.blocks:
            assert turn
            assert turn[0] == 11 or base.seconds(fleet[device])[turn[0]] <= asked.seconds
    covered = {block for share in made.shares.values() for turn in share.blocks for block in turn}
    assert covered == set(range(12)) - set(made.uncovered)
    assert made.uncovered == tuple(range(min(base.lowest(each) for each in fleet)))
    again = allocate({place: Asking(each) for place, each in reversed(list(enumerate(fleet)))}, FULL, asked, slack)
    assert again == made


def test_every_group_of_the_body_is_a_block_and_slices_of_an_adapter_are_one() -> None:
    assert blocks(ADAPTERS) == tuple((place,) for place in range(6))
    slices = tuple(Group(place, "body", -20, (Tensor(f"layer.{place // 3}.query.lora_B.{place % 3}", (9,)),)) for place in range(6))
    sliced = dataclasses.replace(ADAPTERS, groups=(*slices, Group(6, "head", -20, (Tensor("head", (9,)),))))
    assert blocks(sliced) == ((0, 1, 2), (3, 4, 5))


def test_beyond_the_search_a_slack_is_used_by_moves_alone() -> None:
    fleet = {place: Asking(with_room(1 + place % 12)) for place in range(60)}
    strict, loose = (allocate(fleet, FULL, ASKED, slack) for slack in (0.0, 0.1))
    assert (strict.exact, loose.exact) == (True, False)
    assert strict.proxy < loose.proxy <= 1.1000001 * strict.proxy
    assert sum(share.active for share in loose.shares.values()) < sum(share.active for share in strict.shares.values())
    few = allocate(dict(list(fleet.items())[:20]), FULL, ASKED, 0.1)
    assert few.exact
