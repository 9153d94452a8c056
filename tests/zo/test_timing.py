"""What the comparison of bases is made of: batches, probe pairs, times, and what they are worth."""

import time

import pytest
from conftest import Bundles

from zo.bundle import Bundle
from zo.engine import Engine
from zo.timing import alternating, probe_pair, random_batch, signal_per_second


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
