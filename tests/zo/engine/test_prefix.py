"""A kept prefix changes no loss: it holds what the untrained stages gave, whatever is asked, in whatever company and order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles
from tiny_walks import CountingStages, Watched, batch_of, moved, plan, rows_of

from coordinator.bench import tiny_models
from coordinator.build.build import build
from coordinator.build.layers import Training
from zo.batches import Batch, Encoded, collate
from zo.bundle import Bundle, open_bundle
from zo.engine import Engine, Prefix
from zo.engine.stages import share
from zo.terms import Term

EXACT = 1e-6  # nats: the same float32 operations in the same company, split otherwise
COMPANY = 5e-6  # nats, kept in other company: logits are 20 x cosine, so that each carries a rounding of 20 * 2**-23
ROOM = 1e6  # bytes: more than all examples take
FROZEN = {1: 2, 0: 2}  # stages below every group, by top_blocks (of three blocks in two stages)
WIDTH = 32
CASES = [("bert", 1), ("bert", 0), ("bert-classifier", 1), ("bert-classifier", 0), ("llama", 1)]


def part(bundle: Bundle, rows: list[Encoded], *places: int) -> Batch:
    return collate([rows[place] for place in places], bundle.manifest.task)


def pair(bundle: Bundle, prefix: Prefix, **settings: int) -> tuple[Engine, Watched]:
    """An engine without, and one with a prefix, over the same parameters."""
    parameters = moved(bundle)
    return Engine(bundle, parameters, **settings), Watched(bundle, parameters, prefix=prefix, **settings)


def longest_first(rows: list[Encoded]) -> list[Encoded]:
    return sorted(rows, key=lambda row: -len(row.ids))


# --- engines ---


@pytest.mark.parametrize("trainable", ["lora", "lora-fa", "norms", "full"])
@pytest.mark.parametrize(("model", "top_blocks"), CASES)
def test_losses_with_a_kept_prefix_are_those_without(model: str, top_blocks: int, trainable: str, bundles: Bundles) -> None:
    bundle = bundles(model, trainable, top_blocks=top_blocks)
    plain, keeping = pair(bundle, Prefix(ROOM))
    batch, node = batch_of(bundle), plan(bundle, sizes={group.kind: -5 for group in bundle.manifest.groups})
    expected = plain.probe(node, batch)
    for epoch in range(3):
        np.testing.assert_allclose(keeping.probe(node, batch), expected, atol=EXACT, rtol=0)
        ran = keeping.taken()
        assert [ran.get(stage, 0) for stage in range(FROZEN[top_blocks])] == [not epoch] * FROZEN[top_blocks]
        assert ran[len(bundle.manifest.stages) - 1] >= 1


@pytest.mark.parametrize("asked", ["probe", "loss", "forward", "head_input"])
@pytest.mark.parametrize(("model", "top_blocks"), CASES)
def test_whatever_is_asked_uses_what_is_kept_and_gives_the_same(asked: str, model: str, top_blocks: int, bundles: Bundles) -> None:
    bundle = bundles(model, top_blocks=top_blocks)
    batch = batch_of(bundle)
    node = plan(bundle, sizes={group.kind: -5 for group in bundle.manifest.groups})
    asking: dict[str, Callable[[Engine], object]] = {
        "probe": lambda engine: engine.probe(node, batch),
        "loss": lambda engine: engine.loss(batch),
        "forward": lambda engine: np.concatenate([[engine.forward(batch)[0]], engine.forward(batch)[1].ravel()]),
        "head_input": lambda engine: engine.head_input(batch),
    }
    plain, keeping = pair(bundle, Prefix(ROOM))
    expected = asking[asked](plain)
    for _ in range(2):
        np.testing.assert_allclose(asking[asked](keeping), expected, atol=1e-5 if asked in ("forward", "head_input") else EXACT, rtol=0)
    assert keeping.taken()[0] == 1
    for each in asking.values():  # what one kept serves all
        np.testing.assert_allclose(each(keeping), each(plain), atol=1e-5, rtol=0)
    assert 0 not in keeping.taken()


@pytest.mark.parametrize(("model", "top_blocks"), CASES)
def test_what_was_kept_serves_in_longer_and_in_shorter_padding(model: str, top_blocks: int, bundles: Bundles) -> None:
    bundle = bundles(model, top_blocks=top_blocks)
    long, *middle, short = {len(row.ids): row for row in longest_first(rows_of(bundle, 12))}.values()  # of different lengths
    assert len(middle) > 1
    plain, keeping = pair(bundle, Prefix(ROOM))
    task = bundle.manifest.task
    for rows in ([short], middle, [long, short]):  # kept with padding of their own
        keeping.loss(collate(rows, task))
    keeping.taken()
    for rows in ([*middle, long, short], [short, long], [short], middle[::-1], [short, short]):
        batch = collate(rows, task)
        assert keeping.loss(batch) == pytest.approx(plain.loss(batch), abs=COMPANY)
        node = plan(bundle, sizes={"body": -5} if top_blocks else {"head": -5})
        np.testing.assert_allclose(keeping.probe(node, batch), plain.probe(node, batch), atol=COMPANY, rtol=0)
    assert 0 not in keeping.taken()


@pytest.mark.parametrize("max_rows", [1, 30, 60, 10**6])
@pytest.mark.parametrize(("model", "top_blocks"), CASES)
def test_split_batches_keep_and_find_every_part(max_rows: int, model: str, top_blocks: int, bundles: Bundles) -> None:
    bundle = bundles(model, top_blocks=top_blocks)
    plain, keeping = pair(bundle, Prefix(ROOM), max_rows=max_rows)
    batch, node = batch_of(bundle, 7), plan(bundle, sizes={group.kind: -5 for group in bundle.manifest.groups})
    parts = len(batch.split(max(1, max_rows // (2 * batch.tokens))))
    assert (parts > 1) == (max_rows < 10**6)
    for epoch in range(2):
        np.testing.assert_allclose(keeping.probe(node, batch), plain.probe(node, batch), atol=EXACT, rtol=0)
        assert keeping.taken().get(0, 0) == (0 if epoch else parts)
        assert keeping.loss(batch) == pytest.approx(plain.loss(batch), abs=EXACT)
        assert 0 not in keeping.taken()


@pytest.mark.parametrize("top_blocks", [1, 0])
def test_examples_without_a_number_are_never_kept(top_blocks: int, bundles: Bundles) -> None:
    bundle = bundles("bert", top_blocks=top_blocks)
    rows = [replace(row, key=-1) for row in rows_of(bundle)]
    plain, keeping = pair(bundle, Prefix(ROOM))
    batch, other = collate(rows, bundle.manifest.task), collate(rows[::-1][:3], bundle.manifest.task)
    for each in (batch, other, batch):
        assert keeping.loss(each) == pytest.approx(plain.loss(each), abs=EXACT)
        assert keeping.taken()[0] == 1


def test_one_example_that_is_not_kept_makes_the_whole_batch_run(bundles: Bundles) -> None:
    bundle = bundles("bert", top_blocks=1)
    rows = rows_of(bundle)
    plain, keeping = pair(bundle, Prefix(ROOM))
    keeping.loss(part(bundle, rows, 0, 1, 2))
    for places, runs in (((0, 1, 2), 1), ((3, 0), 1), ((3, 2, 1), 0), ((0, 0, 0), 0)):
        batch = part(bundle, rows, *places)
        assert keeping.loss(batch) == pytest.approx(plain.loss(batch), abs=COMPANY)
        assert (keeping.taken().get(0, 0) > 0) == (runs > 0), places


def test_a_full_room_keeps_who_came_first(bundles: Bundles) -> None:
    bundle = bundles("bert", top_blocks=1)
    rows = rows_of(bundle, 6)
    room = 4 * WIDTH * sum(len(row.ids) for row in rows[:3])
    plain, keeping = pair(bundle, Prefix(room))
    for epoch in range(3):
        for first in range(0, 6, 3):
            batch = part(bundle, rows, first, first + 1, first + 2)
            assert keeping.loss(batch) == pytest.approx(plain.loss(batch), abs=EXACT)
            assert keeping.taken().get(0, 0) == (1 if first or not epoch else 0)


@pytest.mark.parametrize("trainable", ["norms", "full"])
@pytest.mark.parametrize("model", ["llama", "llama-tied"])
def test_positions_of_a_language_models_head_are_not_kept_and_stay_right(model: str, trainable: str, bundles: Bundles) -> None:
    bundle = bundles(model, trainable, top_blocks=0)
    plain, keeping = pair(bundle, Prefix(ROOM))
    batch, node = batch_of(bundle), plan(bundle, sizes={"head": -5})
    assert batch.losses > batch.examples
    for _ in range(2):
        np.testing.assert_allclose(keeping.probe(node, batch), plain.probe(node, batch), atol=EXACT, rtol=0)
        assert keeping.loss(batch) == pytest.approx(plain.loss(batch), abs=EXACT)
        assert keeping.taken()[0] == 2


def test_texts_of_one_position_are_kept_and_stay_right_beside_longer_ones(bundles: Bundles) -> None:
    """As many positions as examples: then, and only then, each row is an example's."""
    bundle = bundles("llama", "norms", top_blocks=0)
    rows = [replace(row, ids=row.ids[:2], types=row.types[:2]) for row in rows_of(bundle, 4)]
    plain, keeping = pair(bundle, Prefix(ROOM))
    longer = replace(rows_of(bundle, 5)[4], key=9)
    for given in (rows, [*rows[:2], longer], rows[::-1], [longer], [rows[1]]):
        batch = collate(given, bundle.manifest.task)
        for _ in range(2):
            assert keeping.loss(batch) == pytest.approx(plain.loss(batch), abs=COMPANY)


@pytest.mark.parametrize("kept_first", [True, False])
def test_a_plan_that_begins_below_the_lowest_group_takes_nothing_of_another_stage(kept_first: bool, bundles: Bundles) -> None:
    bundle = bundles("bert", top_blocks=1)
    plain, keeping = pair(bundle, Prefix(ROOM))
    usual = plan(bundle)
    assert usual.stage == 2
    batch, early = batch_of(bundle), replace(usual, stage=1)
    for node in (usual, early, usual) if kept_first else (early, usual, early):
        np.testing.assert_allclose(keeping.probe(node, batch), plain.probe(node, batch), atol=EXACT, rtol=0)


def test_where_all_is_trained_nothing_is_kept(bert_bundle: Bundle) -> None:
    plain, keeping = pair(bert_bundle, Prefix(ROOM))
    batch, node = batch_of(bert_bundle), plan(bert_bundle)
    for _ in range(2):
        np.testing.assert_array_equal(keeping.probe(node, batch), plain.probe(node, batch))
        assert keeping.taken()[0] == 1


@pytest.mark.parametrize("trainable", ["lora-fa", "full"])
@pytest.mark.parametrize("top_blocks", [1, 0])
def test_what_is_learnt_is_seen_above_a_kept_prefix(top_blocks: int, trainable: str, bundles: Bundles) -> None:
    bundle = bundles("bert", trainable, top_blocks=top_blocks)
    plain, keeping = pair(bundle, Prefix(ROOM))
    batch, before = batch_of(bundle), keeping.forward(batch_of(bundle))[0]
    asking: list[Callable[[Engine], float]] = [
        lambda engine: engine.forward(batch)[0],
        lambda engine: engine.loss(batch),
        lambda engine: float(engine.probe(plan(bundle, 1, {"head": -5}), batch)[0]),
    ]
    for seed, ask in enumerate(asking):
        terms = [Term((group.id,), seed, np.array([1 << (-4 - group.log2_unit)])) for group in bundle.manifest.groups]
        for change in (keeping.parameters.add, keeping.parameters.postpone):  # the engine itself is who must settle
            change(terms)
            found = ask(keeping)
            keeping.parameters.settle()
            assert found == pytest.approx(ask(plain), abs=EXACT)
            assert abs(found - before) > 1e-4
            before = found


# --- half precision ---


def kept_stages(bundle: Bundle, batch: Batch, top: int) -> tuple[CountingStages, dict, dict, str]:
    """The stages, the batch with what the frozen stages give, the live tensors, and the name of that output."""
    stages, parameters = CountingStages(bundle), moved(bundle)
    live = {name: share(array[None]) for name, array in parameters.tensors().items()}
    values = stages.run({name: share(array) for name, array in batch.fields.items()}, 0, FROZEN[top], live)
    return stages, values, live, bundle.manifest.stages[FROZEN[top] - 1].outputs[0]


def half_precision_bound(bundle: Bundle, batch: Batch, top: int) -> float:
    """By how much rounding the kept states to float16 can move the loss, to first order.

    Rounding to nearest moves a value h by at most 2**-11 |h| (or 2**-25, below 2**-14), so the loss by at most the sum of
    |dL/dh| times that over all values; the slopes are central differences.
    """
    stages, values, live, name = kept_stages(bundle, batch, top)
    hidden, step = values[name].numpy().copy(), 2.0**-6
    given = share(hidden)

    def loss() -> float:
        return float(stages.run(values | {name: given}, FROZEN[top], len(stages), live)["loss"].numpy()[0])

    total = 0.0
    for place in np.ndindex(hidden.shape):
        was = hidden[place]
        hidden[place] = was + step
        above = loss()
        hidden[place] = was - step
        slope = (above - loss()) / (2 * step)
        hidden[place] = was
        total += abs(slope) * max(2.0**-11 * abs(float(was)), 2.0**-25)
    return total


@pytest.mark.parametrize(("model", "top_blocks"), [("bert", 1), ("bert", 0), ("llama", 1)])
def test_half_precision_moves_losses_by_no_more_than_its_rounding_can(model: str, top_blocks: int, bundles: Bundles) -> None:
    bundle = bundles(model, top_blocks=top_blocks)
    batch = part(bundle, rows_of(bundle, 2), 0, 1)
    bound = half_precision_bound(bundle, batch, top_blocks)
    assert EXACT < bound < 0.02
    plain, keeping = pair(bundle, Prefix(ROOM, float16=True))
    node = plan(bundle, sizes={group.kind: -7 for group in bundle.manifest.groups})
    expected, loss = plain.probe(node, batch), plain.loss(batch)
    np.testing.assert_allclose(keeping.probe(node, batch), expected, atol=EXACT, rtol=0)  # the first epoch runs in float32
    assert keeping.taken()[0] == 1
    assert 0 < abs(keeping.loss(batch) - loss) < bound + EXACT
    np.testing.assert_allclose(keeping.probe(node, batch), expected, atol=2 * bound, rtol=0)  # slopes are others at other parameters
    assert 0 not in keeping.taken()


def test_half_precision_takes_half_the_room(bundles: Bundles) -> None:
    bundle = bundles("bert", top_blocks=1)
    rows = rows_of(bundle, 6)
    room = 2 * WIDTH * sum(len(row.ids) for row in rows)
    batch = collate(rows, bundle.manifest.task)
    for float16, runs in ((True, 0), (False, 1)):
        _, keeping = pair(bundle, Prefix(room, float16=float16))
        keeping.loss(batch)
        keeping.taken()
        keeping.loss(batch)
        assert keeping.taken().get(0, 0) == runs


# --- the room itself ---


def states(*lengths: int, width: int = 3, seed: int = 0) -> tuple[Batch, np.ndarray]:
    """A batch with keys 0, 1, ... and values for it, whose padding is not zero."""
    values = np.random.default_rng(seed).standard_normal((1, len(lengths), max(lengths), width)).astype(np.float32)
    return Batch({}, np.arange(len(lengths)), np.array(lengths)), values


@pytest.mark.parametrize("tokens", [4, 5, 9])
def test_what_is_given_back_is_what_was_kept_with_zeros_for_padding(tokens: int) -> None:
    batch, values = states(4, 2, 3)
    prefix = Prefix(ROOM)
    prefix.put(batch, values)
    found = prefix.get(np.array([2, 0, 1, 2]), tokens)
    assert found is not None
    assert found.shape == (1, 4, tokens, 3)
    assert found.dtype == np.float32
    for place, key in enumerate((2, 0, 1, 2)):
        length = (4, 2, 3)[key]
        np.testing.assert_array_equal(found[0, place, :length], values[0, key, :length])
        assert not found[0, place, length:].any()


def test_one_row_an_example_is_given_back_without_tokens() -> None:
    batch, values = states(4, 2, 3)
    prefix = Prefix(ROOM, float16=True)
    prefix.put(batch, values[:, :, 0])
    found = prefix.get(np.array([2, 0]), 4)
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values[:, [2, 0], 0].astype(np.float16))


def test_nothing_is_given_unless_all_is_there() -> None:
    batch, values = states(4, 2, 3)
    prefix = Prefix(ROOM)
    assert prefix.get(batch.keys, 4) is None
    prefix.put(batch, values)
    assert prefix.get(np.array([0, 7]), 4) is None
    assert prefix.get(np.array([-1]), 4) is None
    assert prefix.get(np.array([-1, 0]), 4) is None


def test_what_is_kept_already_is_not_kept_again() -> None:
    batch, values = states(4, 2)
    prefix = Prefix(values[:, :, :2].nbytes + 8 * 3)  # 6 of 6 rows
    prefix.put(batch, values)
    prefix.put(batch, values + 1)
    twice = Batch({}, np.array([0, 0, 1]), np.array([4, 4, 2]))
    prefix.put(twice, np.zeros((1, 3, 4, 3), np.float32))
    found = prefix.get(batch.keys, 4)
    assert found is not None
    np.testing.assert_array_equal(found[0, 0], values[0, 0])


def test_a_shorter_example_may_still_fit_where_a_longer_did_not() -> None:
    batch, values = states(4, 3, 2)
    prefix = Prefix(6 * 3 * 4)
    prefix.put(batch, values)
    assert prefix.get(np.array([1]), 4) is None
    assert prefix.get(np.array([0, 2]), 4) is not None


@pytest.mark.parametrize("float16", [True, False])
def test_values_beyond_half_precision_are_kept_in_float32_alone(float16: bool) -> None:
    batch, values = states(2, 2)
    values[0, 1, 1, 1] = 70_000
    prefix = Prefix(ROOM, float16=float16)
    prefix.put(batch, values)
    assert prefix.get(np.array([0]), 2) is not None
    found = prefix.get(np.array([1]), 2)
    assert (found is None) == float16
    assert found is None or found.max() == 70_000


@pytest.mark.parametrize("room", [0, 0.9, 3])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_room_too_small_for_a_value_keeps_nothing(room: float, on_disk: bool, tmp_path: Path) -> None:
    prefix = Prefix(room, file=tmp_path / "prefix" if on_disk else None)
    batch, values = states(2)
    prefix.put(batch, values)
    assert prefix.get(batch.keys, 2) is None


# --- a file ---


def test_a_file_serves_as_memory_does_and_its_name_is_gone(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles("bert", top_blocks=1)
    plain, keeping = pair(bundle, Prefix(ROOM, file=tmp_path / "prefix"))
    assert list(tmp_path.iterdir()) == []
    batch, node = batch_of(bundle), plan(bundle)
    for epoch in range(2):
        np.testing.assert_allclose(keeping.probe(node, batch), plain.probe(node, batch), atol=EXACT, rtol=0)
        assert keeping.taken().get(0, 0) == (not epoch)
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_of_that_name_gives_way(tmp_path: Path) -> None:
    (tmp_path / "prefix").write_bytes(b"left by another")
    prefix = Prefix(100, file=tmp_path / "prefix")
    assert list(tmp_path.iterdir()) == []
    batch, values = states(2)
    prefix.put(batch, values)
    np.testing.assert_array_equal(prefix.get(batch.keys, 2), values)


def test_a_disk_without_room_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"."):
        Prefix(2.0**60, file=tmp_path / "prefix")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Prefix(100, file=tmp_path / "nowhere" / "prefix")


# --- int8 ---


def test_int8_above_a_kept_prefix_is_near_int8_without(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Activations are quantised by the range of a whole batch, padding included: company and padding matter a little, as always."""
    task = tiny_models.CLASSIFICATION
    build(folders("bert"), tmp_path / "out", task, Training("lora-fa", "int8", 4, top_blocks=1), tiny_models.examples(task))
    bundle = open_bundle(tmp_path / "out")
    plain, keeping = pair(bundle, Prefix(ROOM))
    batch = batch_of(bundle)
    first = keeping.loss(batch)
    assert first == plain.loss(batch)
    assert keeping.loss(batch) == pytest.approx(first, abs=0.05)
