"""From settings to the tree of directions that every device walks."""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from zo import ranks
from zo.errors import ConfigError
from zo.group import Group
from zo.lattice import LIMIT
from zo.manifest import Manifest
from zo.plan import Node, ProbeSize, Shape
from zo.recipe import Probe
from zo.seeds import first_seed

MOST_LOG2_E = LIMIT.bit_length() - 2  # of a probe: less than a lattice holds


def kinds(manifest: Manifest) -> tuple[str, ...]:
    """The kinds of group that a bundle has."""
    return tuple(dict.fromkeys(group.kind for group in manifest.groups))


def groups_of_its_size(groups: Iterable[Group]) -> dict[int, float]:
    """By group id: how many groups as large as it would hold all values of its kind. Rank slices differ in size, blocks hardly do."""
    groups, values = tuple(groups), Counter[str]()
    for group in groups:
        values[group.kind] += group.size
    return {group.id: values[group.kind] / group.size for group in groups}


def stretch(manifest: Manifest, tried: Collection[int]) -> dict[str, float]:
    """By kind: how many times as far a tree that tries these groups alone moves their values, so that the loss moves as far as with all
    (docs/blocks.md).

    The scalar of fewer values says more of each: its square is its noise, and weighing by one over that is what a longer step does.
    """
    every, some = Counter[str](), Counter[str]()
    for group in manifest.groups:
        every[group.kind] += group.size
        some[group.kind] += group.size * (group.id in tried)
    return {kind: math.sqrt(every[kind] / some[kind]) for kind in every if some[kind]}


def enlarged(manifest: Manifest, log2_eps: Mapping[str, int], further: Mapping[str, float]) -> dict[str, int]:
    """Probe sizes of a tree with that `stretch`: so many times as large, rounded up to a power of two, within the lattice."""
    most = {kind: min(group.log2_unit for group in manifest.groups if group.kind == kind) + MOST_LOG2_E for kind in further}
    larger = {kind: min(log2_eps[kind] + math.ceil(math.log2(times)), most[kind]) for kind, times in further.items() if kind in log2_eps}
    return {kind: max(log2, larger.get(kind, log2)) for kind, log2 in log2_eps.items()}


def probe_sizes(manifest: Manifest, log2_eps: Mapping[str, int], among: Collection[int] | None = None) -> tuple[ProbeSize, ...]:
    """E of every group of the kinds given (and in `among`): eps in that group's own units; groups of one kind and E together."""
    alike: dict[tuple[str, int], list[int]] = {}
    for group in manifest.groups:
        if group.kind in log2_eps and (among is None or group.id in among):
            alike.setdefault((group.kind, log2_eps[group.kind] - group.log2_unit), []).append(group.id)
    return tuple(ProbeSize(tuple(groups), log2_e) for (_, log2_e), groups in sorted(alike.items()))


def lowest_stage(manifest: Manifest, log2_eps: Mapping[str, int], among: Collection[int] = ()) -> int:
    """Index of the first stage that holds a group of one of these kinds (and in `among`, where that holds any)."""
    perturbed = {group for size in probe_sizes(manifest, log2_eps, among or None) for group in size.groups}
    return min(number for number, stage in enumerate(manifest.stages) if perturbed & set(stage.groups))


def within(manifest: Manifest, log2_eps: Mapping[str, int], shape: Shape, among: Collection[int]) -> Shape:
    """The shape for a device that tries these groups only: parts that would try nothing are left out, with their directions.

    ConfigError where that leaves none, or the bundle has no such rank.
    """
    every = ranks.prefix(manifest, shape.rank)
    tried = {group for size in probe_sizes(manifest, log2_eps, every.intersection(among) if among else every) for group in size.groups}
    bounds, counts, cuts, pending = (0, *shape.cuts, len(manifest.stages)), list[int](), list[int](), 1
    for count, (start, stop) in zip(shape.counts, itertools.pairwise(bounds), strict=True):
        pending *= count
        if any(tried.intersection(stage.groups) for stage in manifest.stages[start:stop]):
            cuts += [start] if counts else []
            counts.append(pending)
            pending = 1
    if not counts:
        raise ConfigError(f"groups = {sorted(among)}: none of them is in what the run trains of adapters of rank {shape.rank or 'any'}")
    groups = () if tried == every else tuple(sorted(tried))
    return replace(shape, counts=tuple(counts), cuts=tuple(cuts), joint=shape.joint and bool(cuts), groups=groups)


def tree(manifest: Manifest, log2_eps: Mapping[str, int], shape: Shape) -> Node:
    """The tree of a shape, with all seeds from 0 on: of its groups, those within its rank are tried, where they are few with larger probes.

    ConfigError where the bundle has no such stages, groups or rank, or a part tries nothing.
    """
    unknown = set(shape.groups) - {group.id for group in manifest.groups}
    if unknown:
        raise ConfigError(f"groups = {list(shape.groups)}: this bundle has no group {min(unknown)}")
    held = ranks.prefix(manifest, shape.rank)
    tried = held.intersection(shape.groups) if shape.groups else held
    log2_eps = enlarged(manifest, log2_eps, stretch(manifest, tried))
    stages, lowest = len(manifest.stages), lowest_stage(manifest, log2_eps, tried)
    for cut in shape.cuts:
        if not lowest < cut < stages:
            raise ConfigError(f"split.cuts = {list(shape.cuts)}: this bundle can be cut before stages {lowest + 1} to {stages - 1}")
    bounds = (lowest, *shape.cuts, stages)
    node = None
    for place in reversed(range(len(shape.counts))):
        start, stop = bounds[place : place + 2]
        here = {group for stage in manifest.stages[start:stop] for group in stage.groups}
        sizes = probe_sizes(manifest, log2_eps, here & tried)
        if not sizes:
            raise ConfigError(f"split.cuts = {list(shape.cuts)}: nothing is trained in stages {start} to {stop - 1}")
        node = Node(start, 0, shape.counts[place], sizes, node, shape.joint and node is not None, shape.clean and place == 0)
    assert node is not None
    return replace(node, rank=shape.rank)


def sizes(probe: Probe, manifest: Manifest, apart: bool = False) -> dict[str, int]:
    """log2 of the probe size by kind of group: the settings' for every base, else as calibrated for the manifest's.

    apart: of probes that move one kind only.
    """
    stated = {"body": probe.log2_eps_body, "head": probe.log2_eps_head}
    found = {kind: manifest.log2_eps(kind, apart) if stated[kind] == "auto" else int(stated[kind]) for kind in kinds(manifest)}
    for kind, log2 in found.items():
        if not all(0 <= size.log2_e <= MOST_LOG2_E for size in probe_sizes(manifest, {kind: log2})):
            raise ConfigError(f"probe.log2_eps_{kind} = {log2} is less than a unit of the lattice, or more than it holds")
    return found


def sized_tree(probe: Probe, manifest: Manifest, shape: Shape) -> Node:
    """The tree of a shape, all seeds from 0 on, with probe sizes that suit it: larger ones where no probe moves two kinds of group.

    ConfigError as `tree`.
    """
    made = tree(manifest, sizes(probe, manifest), shape)
    return made if shape.joint or not one_kind_each(manifest, made) else tree(manifest, sizes(probe, manifest, apart=True), shape)


def one_kind_each(manifest: Manifest, root: Node) -> bool:
    """Whether every level of a tree tries groups of one kind."""
    kind = {group.id: group.kind for group in manifest.groups}
    return all(len({kind[group] for size in node.probe_sizes for group in size.groups}) == 1 for node, _ in root.levels())


def kept_bytes(manifest: Manifest, shape: Shape, examples: int) -> int:
    """Most bytes of stage outputs that a device keeps at once: at every cut those of one direction, at + and -, on all outputs below.

    In the clean form those of the unperturbed parts.
    """
    tokens = [1 if cut == len(manifest.stages) - 1 else manifest.task.max_tokens for cut in shape.cuts]
    if manifest.task.kind == "language-modelling":
        tokens = [manifest.task.max_tokens] * len(tokens)
    once = [examples * each * manifest.width * 4 for each in tokens]
    if shape.clean:
        return sum(once)
    return sum(2 ** (level + 1) * each for level, each in enumerate(once))


def one_level(manifest: Manifest, log2_eps: Mapping[str, int], first_seed: int, count: int, rank: int = 0) -> Node:
    """The plan of plain MeZO: one node from the lowest stage that holds one of the groups to the end."""
    return replace(tree(manifest, log2_eps, Shape((count,), rank=rank)), first_seed=first_seed)


def seeded(root: Node, run_key: int, round_number: int, device: int, pool: int = 0, offset: int = 0) -> Node:
    """The tree with the seeds of a device in a round: of every level its own, next to those of its neighbours. offset: added to all."""
    levels = list(root.levels())
    made = None
    for node, total in reversed(levels):
        first = offset + first_seed(run_key, round_number, device, total, pool)
        made = replace(node, first_seed=first, child=made)
    assert made is not None
    return made
