"""Metrics are what they are called, on all rows or a fixed sample of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from coordinator.bench import tiny_models
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import DataError
from zo.evaluation import answers, batches, evaluate, gain
from zo.terms import Term


def write(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_metrics_are_those_computed_by_hand(bert_bundle: Bundle, validation: Path) -> None:
    engine, given = Engine(bert_bundle, bert_bundle.parameters()), batches(bert_bundle, validation)
    found = evaluate(engine, given)
    losses, hits, labels = [], [], []
    for batch in given:
        for logits, label in zip(engine.forward(batch)[1].astype(np.float64), batch.fields["labels"], strict=True):
            losses.append(np.log(np.exp(logits).sum()) - logits[label])
            hits.append(float(np.argmax(logits) == label))
            labels.append(int(label))
    by_class = [[n for n, label in enumerate(labels) if label == each] for each in (0, 1)]
    assert [len(rows) for rows in by_class] == [27, 3]
    assert found["rows"] == 30
    assert found["loss"] == pytest.approx(np.mean(losses))
    assert found["accuracy"] == pytest.approx(np.mean(hits))
    assert found["balanced_loss"] == pytest.approx(np.mean([np.mean([losses[n] for n in rows]) for rows in by_class]))
    assert found["balanced_accuracy"] == pytest.approx(np.mean([np.mean([hits[n] for n in rows]) for rows in by_class]))


def test_the_mean_loss_is_the_engines(bert_bundle: Bundle, validation: Path) -> None:
    engine, given = Engine(bert_bundle, bert_bundle.parameters()), batches(bert_bundle, validation)
    total = sum(engine.forward(batch)[0] * batch.examples for batch in given)
    assert evaluate(engine, given)["loss"] == pytest.approx(total / 30, rel=1e-5)


def test_tokens_of_a_language_model_are_not_balanced(llama_bundle: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path / "text.jsonl", [{"text": text} for text in tiny_models.sentences(6, longest=30)])
    found = evaluate(Engine(llama_bundle, llama_bundle.parameters()), batches(llama_bundle, path))
    assert found["rows"] == sum(len(text.split()) for text in tiny_models.sentences(6, longest=30)) - 6
    assert found["balanced_loss"] == pytest.approx(found["loss"])


def test_a_sample_is_always_the_same_and_all_by_default(bert_bundle: Bundle, validation: Path) -> None:
    few = [batches(bert_bundle, validation, 7) for _ in range(2)]
    assert [sum(batch.examples for batch in each) for each in few] == [7, 7]
    assert all(np.array_equal(a.fields["input_ids"], b.fields["input_ids"]) for a, b in zip(*few, strict=True))
    assert sum(batch.examples for batch in batches(bert_bundle, validation)) == 30
    assert sum(batch.examples for batch in batches(bert_bundle, validation, 99)) == 30


def test_a_sample_of_long_texts_is_bounded_in_rows_too(llama_bundle: Bundle, tmp_path: Path) -> None:
    longest = llama_bundle.manifest.task.max_tokens
    path = write(tmp_path / "text.jsonl", [{"text": " ".join(["ba bee bi"] * 60 * n)} for n in (1, 2, 3)])
    everything = batches(llama_bundle, path)
    assert sum(batch.examples for batch in everything) > 3 * 180 // longest
    few = [batches(llama_bundle, path, 7) for _ in range(2)]
    assert [sum(batch.examples for batch in each) for each in few] == [7, 7]
    assert all(np.array_equal(a.fields["input_ids"], b.fields["input_ids"]) for a, b in zip(*few, strict=True))
    assert sum(batch.examples for batch in batches(llama_bundle, path, 2)) == 2


def test_a_batch_of_a_language_model_is_small(llama_bundle: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path / "text.jsonl", [{"text": text} for text in tiny_models.sentences(7)])
    assert [batch.examples for batch in batches(llama_bundle, path)] == [2, 2, 2, 1]


def test_texts_too_short_to_predict_anything_are_no_usable_data(llama_bundle: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path / "text.jsonl", [{"text": "ba"}, {"text": "bee"}])
    with pytest.raises(DataError, match=r"text\.jsonl"):
        batches(llama_bundle, path)


def test_the_gain_is_that_of_the_balanced_loss_on_the_same_rows(bert_bundle: Bundle, validation: Path) -> None:
    engine, given = Engine(bert_bundle, bert_bundle.parameters()), batches(bert_bundle, validation)
    before, first = answers(engine, given), evaluate(engine, given)
    group = bert_bundle.manifest.groups[-1]
    engine.parameters.add([Term((group.id,), 1, np.array([1 << max(0, -4 - group.log2_unit)]))])
    after, second = answers(engine, given), evaluate(engine, given)
    mean, error = gain(before, after, bert_bundle.manifest.task)
    assert mean == pytest.approx(first["balanced_loss"] - second["balanced_loss"], rel=1e-9)
    lower = before.losses - after.losses
    parts = [lower[before.labels == label] for label in (0, 1)]
    assert error == pytest.approx(0.5 * np.sqrt(sum(np.var(each, ddof=1) / len(each) for each in parts)))
    assert gain(before, before, bert_bundle.manifest.task) == (0.0, 0.0)
