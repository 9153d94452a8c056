"""What the comparison of bases is made of: batches, probe pairs, times, and what they are worth."""

import time

import pytest
from conftest import Bundles
from tiny_walks import batch_of, moved

from zo.bundle import Bundle
from zo.engine import Engine
from zo.engine.stages import Stages, Values
from zo.timing import alternating, probe_pair, random_batch, signal_per_second, stage_ns


@pytest.mark.parametrize(("model", "examples", "tokens"), [("bert", 3, 8), ("llama-tied", 2, 16)])
def test_random_batches_have_the_shape_asked_for(model: str, examples: int, tokens: int, bundles: Bundles) -> None:
    batch = random_batch(bundles(model).manifest.task, 60, examples, tokens)
    assert batch.fields["input_ids"].shape == (examples, tokens)
    assert batch.losses == (examples if model == "bert" else examples * tokens)
    assert 30 < batch.fields["input_ids"].max() < 60
    assert not random_batch(bundles(model).manifest.task, 1, examples, tokens).fields["input_ids"].any()


def test_a_probe_pair_is_one_direction_of_every_group(bert_bundle: Bundle) -> None:
    engine, asked = Engine(bert_bundle, bert_bundle.parameters()), []
    pair = probe_pair(engine, random_batch(bert_bundle.manifest.task, 60, 2, 8), lambda: asked.append(1))
    losses = pair()
    assert losses.shape == (2,)  # type: ignore[attr-defined]
    assert losses[0] != losses[1]  # type: ignore[index]
    assert len(asked) == 1
    assert engine.parameters.digest() == bert_bundle.parameters().digest()


def test_times_are_medians_of_calls_in_turns_without_the_first() -> None:
    made: list[str] = []

    def slow() -> None:
        made.append("slow")
        time.sleep(0.2 if len(made) == 1 else 0.01)

    taken = alternating([slow, lambda: made.append("quick")], 3)
    assert made == ["slow", "quick"] * 4
    assert 10 <= taken[0] < 100
    assert 0 <= taken[1] < taken[0]


def test_signal_is_squared_correlation_over_seconds_and_nothing_where_probes_point_the_wrong_way() -> None:
    assert signal_per_second(0.5, 10.0) == pytest.approx(25.0)
    assert signal_per_second(-0.5, 1.0) == 0.0
    assert signal_per_second(1.0, 0.0) > 0


class Metered(Stages):
    """Takes as many microseconds a branch of an example as `each` says of the stage. Classification only."""

    each = (30, 60, 20)

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, 1)
        self.took: list[list[float]] = [[] for _ in self.each]  # of each run of a stage, nanoseconds a branch of an example
        self._outputs = [stage.outputs[0] for stage in bundle.manifest.stages]

    def run(self, values: Values, first: int, stop: int, tensors: Values, logits: bool = False) -> Values:
        for stage in range(first, stop):
            began = time.perf_counter()
            values = super().run(values, stage, stage + 1, tensors, logits)
            units = values[self._outputs[stage]].numpy().shape[0] * values["labels"].numpy().shape[0]
            while time.perf_counter() < began + 1e-6 * self.each[stage] * units:
                pass
            self.took[stage].append(1e9 * (time.perf_counter() - began) / units)
        return values


@pytest.mark.parametrize("trainable", ["lora-fa", "full"])
def test_a_stage_costs_what_it_takes_by_branches_and_examples_however_many_ran(trainable: str, bundles: Bundles) -> None:
    bundle = bundles("bert", trainable)
    engine, batch = Engine(bundle, moved(bundle)), batch_of(bundle, 40)
    metered = Metered(bundle)
    before, engine.stages = engine.parameters.digest(), metered
    for each, wanted, took in zip(stage_ns(engine, batch), Metered.each, metered.took, strict=True):
        assert 1000 * wanted <= each
        assert min(took) <= each + 1
        assert each <= max(took) + 10_000
    assert engine.parameters.digest() == before


@pytest.mark.parametrize(
    ("model", "trainable"), [("bert", "norms"), ("llama", "full"), ("llama-tied", "lora-fa"), ("bert-classifier", "lora")]
)
def test_every_stage_of_any_bundle_has_a_time_that_fits_a_message(model: str, trainable: str, bundles: Bundles) -> None:
    bundle = bundles(model, trainable)
    found = stage_ns(Engine(bundle, moved(bundle)), batch_of(bundle))
    assert len(found) == len(bundle.manifest.stages)
    assert all(isinstance(each, int) and 1 <= each < 10**8 for each in found)


class Suspended(Stages):
    """The machine sleeps a day in every run, as the clock has it."""

    def run(self, values: Values, first: int, stop: int, tensors: Values, logits: bool = False) -> Values:
        Clock.now += 86400.0
        return super().run(values, first, stop, tensors, logits)


class Clock:
    """Seconds, moved by hand."""

    now = 0.0


def test_a_day_is_told_as_the_longest_time_that_fits(bert_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    engine = Engine(bert_bundle, bert_bundle.parameters())
    engine.stages = Suspended(bert_bundle, 1)
    assert stage_ns(engine, batch_of(bert_bundle)) == (2**32 - 1,) * 3
