"""Rank slices: which groups are of which rank, and what no bundle may say."""

import dataclasses
from collections.abc import Callable

import pytest
from conftest import Bundles

from zo import ranks
from zo.errors import ConfigError
from zo.group import Group, Tensor

RANKS = (1, 2, 4)


def test_a_prefix_holds_the_slices_within_it_and_all_that_is_none(bundles: Bundles) -> None:
    manifest = bundles("bert", ranks=RANKS).manifest
    assert [group.id for group in manifest.groups if ranks.slice_of(group) is None] == [
        9
    ]  # the head; then three slices in each of three blocks
    assert ranks.prefix(manifest, 1) == {0, 3, 6, 9}
    assert ranks.prefix(manifest, 2) == {0, 1, 3, 4, 6, 7, 9}
    assert ranks.prefix(manifest, 4) == ranks.prefix(manifest, 0) == set(range(10))


def test_without_ranks_there_is_nothing_to_cut(bundles: Bundles) -> None:
    manifest = bundles("bert").manifest
    assert ranks.prefix(manifest, 0) == {group.id for group in manifest.groups}
    assert ranks.pieces(manifest) == {}
    with pytest.raises(ConfigError, match="has no adapters of rank 4; build it with --ranks"):
        ranks.prefix(manifest, 4)


def test_a_rank_that_a_bundle_has_not_is_refused_with_those_that_it_has(bundles: Bundles) -> None:
    with pytest.raises(ConfigError, match="has no adapters of rank 3; it has 1, 2, 4"):
        ranks.prefix(bundles("bert", ranks=RANKS).manifest, 3)


def test_the_slices_of_an_adapter_lie_side_by_side(bundles: Bundles) -> None:
    pieces = ranks.pieces(bundles("bert", "lora", ranks=RANKS).manifest)
    assert len(pieces) == 12  # A and B of query and value of three blocks
    for name, found in pieces.items():
        assert [(piece.tensor, piece.start, piece.stop) for piece in found] == [
            (f"{name}.{number}", start, stop) for number, (start, stop) in enumerate(((0, 1), (1, 2), (2, 4)))
        ]


@pytest.mark.parametrize("wrong", [(2, 2), (4, 2), (0, 2), (-1,)])
def test_ranks_that_do_not_grow_are_no_manifest(wrong: tuple[int, ...], bundles: Bundles) -> None:
    with pytest.raises(ValueError, match=r"ranks = .* must"):
        dataclasses.replace(bundles("bert", ranks=RANKS).manifest, ranks=wrong)


def test_the_largest_rank_is_that_of_the_adapters(bundles: Bundles) -> None:
    with pytest.raises(ValueError, match="must end with rank = 4"):
        dataclasses.replace(bundles("bert", ranks=RANKS).manifest, ranks=(1, 2))


def renamed(old: str, new: str, shape: tuple[int, ...] | None = None) -> Callable[[Group], Group]:
    def change(group: Group) -> Group:
        tensors = tuple(Tensor(each.name.replace(old, new), shape or each.shape) if old in each.name else each for each in group.tensors)
        return dataclasses.replace(group, tensors=tensors)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed("lora_B.2", "lora_B.7"), "lora_B.7' of shape .* is no slice of ranks"),
        (renamed("query.lora_B.2", "query.lora_B.2", (3, 32)), "is no slice of ranks"),
        (renamed("query.lora_B.2", "query.lora_B.2", (64,)), "is no slice of ranks"),
        (renamed("query.lora_B.2", "query.lora_B.2", (2, 31)), r"query.lora_B' has slices \[0, 1, 2\] of widths \[31, 32\]"),
        (renamed("query.lora_B.1", "query.lora_B.0"), "holds tensors of several slices"),
        (renamed("0.attention.self.query.lora_B.1", "0.attention.self.other.lora_B.1"), r"has slices \[0, 2\]"),
    ],
)
def test_slices_that_are_not_what_they_are_named_are_no_manifest(change: Callable[[Group], Group], said: str, bundles: Bundles) -> None:
    manifest = bundles("bert", ranks=RANKS).manifest
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(manifest, groups=tuple(map(change, manifest.groups)))


def test_names_alone_make_no_slices(bundles: Bundles) -> None:
    manifest = bundles("bert").manifest
    odd = dataclasses.replace(manifest, groups=tuple(map(renamed("lora_B", "lora_B.3"), manifest.groups)))
    assert ranks.prefix(odd, 0) == {0, 1, 2, 3}
