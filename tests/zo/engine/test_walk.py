"""Trees of directions: the engine gives what the plain definition gives, at the cost that is predicted, and leaves nothing behind."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import Bundles
from numpy_models import NumpyModel
from tiny_walks import Countdown, Stop, Watched, batch_of, boundaries, moved, plan, tree_of

from coordinator.bench import tiny_models
from zo import split
from zo.batches import Batch
from zo.bundle import Bundle
from zo.engine import Engine, EnoughProbed, Prefix
from zo.engine.stages import Stages, Values
from zo.engine.walk import Cache, Walk
from zo.manifest import TRAINABLE_SETS
from zo.parameters import Parameters
from zo.plan import Node, Shape
from zo.planning import kept_bytes, kinds, lowest_stage, tree
from zo.reference import probe
from zo.timing import random_batch

EXACT = 2e-5  # nats: float32 against float64
SAME = 2e-6  # nats: float32 in other company
CASES = [(model, trainable) for model in ("bert", "llama") for trainable in TRAINABLE_SETS]
ONE_CUT = [(1, 1), (2, 3), (3, 4)]
TWO_CUTS = [(1, 1, 1), (2, 1, 3), (1, 3, 2), (3, 2, 1)]


def shapes(bundle: Bundle, one: list[tuple[int, ...]] = ONE_CUT, two: list[tuple[int, ...]] = TWO_CUTS) -> list[Shape]:
    """Every cut and pair of cuts, with these counts, in every form that may be."""
    cuts = boundaries(bundle)
    single = [Shape(counts, (cut,), joint) for counts in one for cut in cuts for joint in (False, True)]
    double = [Shape(counts, pair) for counts in two for pair in itertools.combinations(cuts, 2)]
    return single + double + [replace(shape, clean=True) for shape in single + double if not shape.joint]


def plainly(bundle: Bundle, model: str, parameters: Parameters, root: Node, batch: Batch) -> np.ndarray:
    """The plain definition, on a model in plain numpy."""
    config, weights, task = tiny_models.MODELS[model]
    plain = NumpyModel(config, weights, task.head, rank=4, alpha=8.0, run_key=bundle.manifest.run_key)
    return probe(parameters, root, lambda tensors: plain.loss(tensors, batch.fields))


class OneByOne(Engine):
    """Walks every plan in place, also where branches would do."""

    def in_place(self, node: Node) -> bool:
        return True


class LowInPlace(Engine):
    """Walks the lowest part in place and the others side by side."""

    def in_place(self, node: Node) -> bool:
        return node.stage == 0 or super().in_place(node)


class Cramped(Engine):
    """The head has room for one direction at a time."""

    HEAD_ROOM = 1


# --- against the plain definition ---


@pytest.mark.parametrize(("model", "trainable"), CASES)
def test_trees_are_walked_as_the_plain_definition_says(model: str, trainable: str, bundles: Bundles) -> None:
    bundle = bundles(model, trainable)
    parameters, batch = moved(bundle), batch_of(bundle)
    engine, before = Engine(bundle, parameters), parameters.digest()
    tried = shapes(bundle)
    assert {shape.cuts for shape in tried} >= {(1,)}
    for shape in tried:
        root = tree_of(bundle, shape)
        expected, found = plainly(bundle, model, parameters, root, batch), engine.probe(root, batch)
        assert found.shape == (2 * root.scalars,)
        assert found.dtype == np.float64
        assert np.ptp(expected) > 20 * EXACT
        np.testing.assert_allclose(found, expected, atol=EXACT, rtol=0, err_msg=str(shape))
        assert parameters.digest() == before


@pytest.mark.parametrize("model", ["bert", "llama-tied"])
def test_a_chain_of_many_stages_is_cut_anywhere(model: str, bundles: Bundles) -> None:
    bundle = bundles(model, "lora-fa", stages=3)
    parameters, batch = moved(bundle), batch_of(bundle)
    engine, cuts = Engine(bundle, parameters, max_rows=100), boundaries(bundle)
    assert cuts == ([1, 2, 3] if model == "bert" else [1, 2])
    tried = [Shape((2, 2), (cut,)) for cut in cuts] + [Shape((1, 2, 2), pair) for pair in itertools.combinations(cuts, 2)]
    tried += [Shape((1, 2, 1, 2), (1, 2, 3))] if model == "bert" else []
    for shape in tried:
        root = tree_of(bundle, shape)
        expected = plainly(bundle, model, parameters, root, batch)
        np.testing.assert_allclose(engine.probe(root, batch), expected, atol=EXACT, rtol=0, err_msg=str(shape))


def test_a_part_of_the_kinds_alone_is_cut_too(bert_bundle: Bundle) -> None:
    parameters, batch = moved(bert_bundle), batch_of(bert_bundle)
    root = tree_of(bert_bundle, Shape((2, 3), (1,)), {"body": -6})
    expected = plainly(bert_bundle, "bert", parameters, root, batch)
    np.testing.assert_allclose(Engine(bert_bundle, parameters).probe(root, batch), expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("form", [{}, {"joint": True}, {"clean": True}], ids=str)
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_ways_of_walking_agree_part_by_part(model: str, form: dict[str, bool], bundles: Bundles) -> None:
    bundle = bundles(model, "norms")
    parameters, batch, root = moved(bundle), batch_of(bundle, 5), tree_of(bundle, Shape((2, 3), (1,), **form))
    expected = Engine(bundle, parameters).probe(root, batch)
    for kind in (OneByOne, LowInPlace):
        np.testing.assert_allclose(kind(bundle, parameters).probe(root, batch), expected, atol=5e-6, rtol=0)


# --- in whichever pieces ---


@pytest.mark.parametrize("max_rows", [1, 40, 100, 200, 400])
@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("llama", "lora"), ("llama", "full"), ("bert", "norms")])
def test_losses_of_trees_do_not_depend_on_how_many_rows_run_at_once(model: str, trainable: str, max_rows: int, bundles: Bundles) -> None:
    bundle = bundles(model, trainable)
    parameters, batch = moved(bundle), batch_of(bundle, 5)
    whole, parted = Engine(bundle, parameters, max_rows=10**6), Engine(bundle, parameters, max_rows=max_rows)
    for shape in shapes(bundle, [(2, 3)], [(2, 1, 3)]):
        root = tree_of(bundle, shape)
        atol = 3 * SAME if shape.clean else SAME  # twice the unperturbed loss less another
        np.testing.assert_allclose(parted.probe(root, batch), whole.probe(root, batch), atol=atol, rtol=0, err_msg=str(shape))


@pytest.mark.parametrize(("form", "runs_a_direction"), [({}, 2), ({"joint": True}, 2), ({"clean": True}, 1)])
def test_losses_do_not_depend_on_the_room_of_the_head(form: dict[str, bool], runs_a_direction: int, bert_bundle: Bundle) -> None:
    parameters, batch, runs = moved(bert_bundle), batch_of(bert_bundle), Counter[type]()
    found = []
    for kind in (Engine, Cramped):
        root = tree_of(bert_bundle, Shape((2, 5), (2,), **form))
        found.append(kind(bert_bundle, parameters).probe(root, batch, lambda kind=kind: runs.update([kind])))
    np.testing.assert_allclose(*found, atol=SAME, rtol=0)
    assert runs[Cramped] - runs[Engine] == {2: 2 * (5 - 1), 1: 2 * 5 - 1}[runs_a_direction]


@pytest.mark.parametrize("max_rows", [96, 200, 384])
@pytest.mark.parametrize(
    "shape",
    [Shape((3,)), Shape((2, 3), (1,)), Shape((2, 3), (1,), joint=True), Shape((2, 2, 3), (1, 2)), Shape((2, 4), (1,), clean=True)],
    ids=str,
)
def test_no_run_holds_more_rows_than_are_allowed(shape: Shape, max_rows: int, bundles: Bundles) -> None:
    bundle = bundles("bert", "lora-fa", stages=3)
    engine, batch = Engine(bundle, moved(bundle), max_rows=max_rows), batch_of(bundle, 7)
    assert 8 * batch.tokens > 96 >= 4 * batch.tokens
    engine.stages = watched = Weighing(bundle)
    engine.probe(tree_of(bundle, shape), batch)
    assert max_rows / 3 < watched.most * batch.tokens <= max(max_rows, 2 ** len(shape.counts) * batch.tokens)


def test_what_is_kept_of_the_stages_below_serves_a_tree_too(bundles: Bundles) -> None:
    bundle = bundles("bert", top_blocks=1)
    parameters, batch, root = moved(bundle), batch_of(bundle), tree_of(bundle, Shape((2, 3), (3,)))
    assert root.stage == 2
    expected = Engine(bundle, parameters).probe(root, batch)
    keeping = Watched(bundle, parameters, prefix=Prefix(1e6))
    for runs in (1, 0):
        np.testing.assert_allclose(keeping.probe(root, batch), expected, atol=SAME, rtol=0)
        assert keeping.taken().get(0, 0) == runs


# --- plain MeZO ---


@pytest.mark.parametrize(("model", "trainable"), CASES)
def test_joint_probes_of_one_direction_each_are_those_of_plain_mezo_bit_for_bit(model: str, trainable: str, bundles: Bundles) -> None:
    bundle = bundles(model, trainable)
    parameters, batch = moved(bundle), batch_of(bundle)
    for kind in (Engine, OneByOne):
        if kind is Engine and trainable == "full":
            continue  # a part in place and another side by side: other shapes of matrices, other last bits
        engine = kind(bundle, parameters)
        plain = engine.probe(tree_of(bundle, Shape((1,))), batch)
        for cut in boundaries(bundle):
            found = engine.probe(tree_of(bundle, Shape((1, 1), (cut,), joint=True)), batch)
            assert found.tolist() == plain.tolist()


@pytest.mark.parametrize("trainable", ["lora-fa", "full"])
def test_the_first_level_of_a_tree_is_the_part_tried_alone(trainable: str, bundles: Bundles) -> None:
    bundle = bundles("bert", trainable)
    engine, batch, root = Engine(bundle, moved(bundle)), batch_of(bundle), tree_of(bundle, Shape((3, 2), (1,)))
    alone = Node(root.stage, root.first_seed, root.count, root.probe_sizes)
    np.testing.assert_allclose(engine.probe(root, batch)[:6], engine.probe(alone, batch), atol=SAME, rtol=0)


# --- what it costs ---


class Weighing(Stages):
    """Counts branches x examples that went through each stage. most: of one run, the head's aside. Classification only."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, 1)
        self.weighed: Counter[int] = Counter()
        self.most = 0
        self._names = [stage.outputs[0] for stage in bundle.manifest.stages]

    def run(self, values: Values, first: int, stop: int, tensors: Values, logits: bool = False) -> Values:
        for stage in range(first, stop):
            values = super().run(values, stage, stage + 1, tensors, logits)
            branches, examples = values[self._names[stage]].numpy().shape[0], values["labels"].numpy().shape[0]
            self.weighed[stage] += branches * examples
            if stage < len(self) - 1:
                self.most = max(self.most, branches * examples)
        return values


@pytest.mark.parametrize("max_rows", [100, 10**6])
@pytest.mark.parametrize(("trainable", "top_blocks"), [("lora-fa", None), ("full", None), ("norms", None), ("lora-fa", 1)])
def test_what_runs_is_exactly_what_is_predicted(trainable: str, top_blocks: int | None, max_rows: int, bundles: Bundles) -> None:
    bundle = bundles("bert", trainable, top_blocks=top_blocks)
    engine, batch, stages = Engine(bundle, moved(bundle), max_rows=max_rows), batch_of(bundle, 5), len(bundle.manifest.stages)
    lowest = lowest_stage(bundle.manifest, {"body": -7, "head": -5})
    assert (lowest > 0) == (top_blocks is not None)
    for shape in [Shape((1,)), Shape((4,)), Shape((4,), clean=True), *shapes(bundle)]:
        engine.stages = watched = Weighing(bundle)
        engine.probe(tree_of(bundle, shape), batch)
        for stage in range(stages):
            alone = [float(place == stage) for place in range(stages)]  # all of the cost is this stage's
            assert split.forwards(shape, alone, lowest) == watched.weighed[stage] / batch.examples, (shape, stage)


class Keeping(Walk):
    """Notes the bytes kept at every cut."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.kept: dict[str, int] = {}

    def _kept(self, cache: Cache, name: str, pair: np.ndarray, joint: bool) -> Cache:
        kept = super()._kept(cache, name, pair, joint)
        self.kept[name] = kept.values[name].numpy().nbytes
        return kept

    def _unperturbed(self, cache: Cache, first: int, stop: int) -> Cache:
        kept = super()._unperturbed(cache, first, stop)
        (name,) = kept.values.keys() - cache.batch.fields.keys()
        self.kept[name] = kept.values[name].numpy().nbytes
        return kept


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_what_is_kept_of_one_direction_is_what_is_predicted(model: str, bundles: Bundles) -> None:
    bundle = bundles(model, "norms")
    engine, batch = Engine(bundle, moved(bundle), max_rows=10**6), batch_of(bundle, 6)
    tokens = {name: array for name, array in batch.fields.items() if name != "labels"}["input_ids"].shape[1]
    manifest = bundle.manifest
    for shape in shapes(bundle, [(2, 3)], [(1, 2, 3)]):
        root = tree_of(bundle, shape)
        walk = Keeping(engine, root, lambda: None)
        walk.losses([Cache(batch, engine._below(batch, root.stage), 1.0)])
        assert len(walk.kept) == len(shape.cuts)
        most = kept_bytes(manifest, shape, batch.examples)
        assert sum(walk.kept.values()) <= most
        if tokens == manifest.task.max_tokens and model == "bert":
            assert sum(walk.kept.values()) == most


# --- what is left behind ---


@pytest.mark.parametrize("kind", [Engine, LowInPlace, OneByOne])
@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("bert", "norms"), ("llama", "full"), ("bert", "full")])
def test_a_walk_that_is_ended_at_any_run_of_any_level_changes_no_bit(
    model: str, trainable: str, kind: Callable[..., Engine], bundles: Bundles
) -> None:
    bundle = bundles(model, trainable)
    parameters, batch = moved(bundle), batch_of(bundle, 3)
    engine, before = kind(bundle, parameters, max_rows=100), parameters.digest()
    for shape in shapes(bundle, [(2, 2)], [(2, 1, 2)]):
        root, whole = tree_of(bundle, shape), Countdown(10**6)
        expected = engine.probe(root, batch, whole)
        assert whole.called >= 4
        for stop in range(whole.called):
            go_on = Countdown(stop)
            with pytest.raises(Stop):
                engine.probe(root, batch, go_on)
            assert go_on.called == stop + 1
            assert parameters.digest() == before
        assert engine.probe(root, batch).tolist() == expected.tolist()


@pytest.mark.parametrize("trainable", ["lora-fa", "full"])
def test_clean_directions_of_a_level_are_tried_as_if_there_were_no_other(trainable: str, bundles: Bundles) -> None:
    """On one side, against the unperturbed loss; what other levels try, and how often, is nothing to them."""
    bundle = bundles("bert", trainable)
    engine, batch = Engine(bundle, moved(bundle)), batch_of(bundle)
    root, middle = tree_of(bundle, Shape((2, 3), (1,), clean=True)), engine.loss(batch)
    found = engine.probe(root, batch).reshape(-1, 2)
    np.testing.assert_allclose(found.mean(axis=1), middle, atol=SAME, rtol=0)
    assert root.child
    low, high = (Node(node.stage, node.first_seed, total, node.probe_sizes) for node, total in root.levels())
    ahead = np.concatenate([engine.probe(each, batch)[::2] for each in (low, high)])
    np.testing.assert_allclose(found[:, 0], ahead, atol=SAME, rtol=0)


@pytest.mark.parametrize("trainable", ["lora-fa", "full"])
def test_a_tree_leaves_no_trace_in_the_next_walk(trainable: str, bundles: Bundles) -> None:
    bundle = bundles("bert", trainable)
    engine, batch, plain = Engine(bundle, moved(bundle), max_rows=200), batch_of(bundle), plan(bundle, count=2)
    before = engine.probe(plain, batch)
    for shape in shapes(bundle, [(2, 3)], [(2, 1, 2)]):
        engine.probe(tree_of(bundle, shape), batch)
        assert engine.probe(plain, batch).tolist() == before.tolist()


# --- batches ---


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_a_batch_repeated_has_the_loss_of_one_and_the_logits_again_and_again(model: str, times: int, bundles: Bundles) -> None:
    bundle = bundles(model)
    engine, batch = Engine(bundle, moved(bundle), max_rows=10**6), batch_of(bundle, 5)
    before = {name: array.copy() for name, array in batch.fields.items()}
    (loss, logits), (again, all_logits) = engine.forward(batch), engine.forward(batch.repeated(times))
    assert again == pytest.approx(loss, abs=SAME)
    np.testing.assert_allclose(all_logits, np.tile(logits, (times, 1)), atol=1e-5)
    assert all(np.array_equal(before[name], array) for name, array in batch.fields.items())


@pytest.mark.parametrize(
    "shape", [Shape((3,)), Shape((2, 3), (2,)), Shape((2, 3), (1,)), Shape((2, 1, 3), (1, 2)), Shape((2, 3), (2,), joint=True)]
)
@pytest.mark.parametrize(("model", "trainable"), [("bert", "lora-fa"), ("bert", "full")])
def test_a_walk_that_is_given_up_keeps_what_it_had_and_restores_the_rest(
    shape: Shape, model: str, trainable: str, bundles: Callable[..., Bundle]
) -> None:
    bundle = bundles(model, trainable)
    engine = Engine(bundle, bundle.parameters(), max_rows=1)
    root = tree(engine.manifest, {kind: engine.manifest.log2_eps(kind) for kind in kinds(engine.manifest)}, shape)
    batch, before = random_batch(engine.manifest.task, 60, 4, 16), engine.parameters.digest()
    runs = 0

    def count() -> None:
        nonlocal runs
        runs += 1

    whole = engine.probe(root, batch, count)
    seen = set()
    for most in range(runs + 1):
        left = most

        def give_up() -> None:
            nonlocal left
            if left == 0:
                raise EnoughProbed
            left -= 1

        found = engine.probe(root, batch, give_up)
        known = np.isfinite(found)
        assert found[known].tolist() == whole[known].tolist()
        assert engine.parameters.digest() == before
        seen.add(int(known.sum()))
    assert min(seen) == 0
    assert max(seen) == whole.size
    assert len(seen) > 2 or shape.joint
