"""Batches hold what the examples say: templates and pairs, padding on the right, and every next token once as a label."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from coordinator.bench import tiny_models
from zo.batches import BUCKET, LONGEST_TOKEN, Batch, Encoded, collate, encode
from zo.examples import Example
from zo.manifest import Task

CLASSIFICATION, LANGUAGE = tiny_models.CLASSIFICATION, tiny_models.LANGUAGE
CLS, SEP = 2, 3
TEXTS = st.lists(st.sampled_from(tiny_models.WORDS), max_size=70).map(" ".join)


def tokens(text: str) -> list[int]:
    """Ids without [CLS] and [SEP]."""
    return tiny_models.tokenizer().encode(text, add_special_tokens=False).ids


def encoded(example: Example, task: Task, tokenizer: Tokenizer | None = None) -> Encoded:
    rows = encode(example, task, tokenizer or tiny_models.tokenizer())
    assert len(rows) == 1
    return rows[0]


def row(length: int, label: int = 0) -> Encoded:
    """`length` nonzero ids; the second half is of segment 1."""
    return Encoded(np.arange(1, length + 1, dtype=np.int32), np.arange(length) * 2 // max(length, 1), label)


def windows(text: str, task: Task = LANGUAGE) -> Batch:
    return collate(encode(Example(text), task, tiny_models.tokenizer()), task)


# --- classification: what is encoded ---


def test_text_and_label_are_encoded_with_the_tokenizers_own_frame() -> None:
    found = encoded(Example("ba bee", 2), CLASSIFICATION)
    assert found.ids.tolist() == [CLS, *tokens("ba bee"), SEP]
    assert found.types.tolist() == [0, 0, 0, 0]
    assert found.label == 2


def test_the_template_frames_the_text() -> None:
    task = dataclasses.replace(CLASSIFICATION, template="da dee {text} do")
    assert encoded(Example("ba", 0), task).ids.tolist() == [CLS, *tokens("da dee ba do"), SEP]


def test_a_pair_without_a_place_in_the_template_becomes_the_second_segment() -> None:
    found = encoded(Example("ba bee", 0, "la"), CLASSIFICATION)
    assert found.ids.tolist() == [CLS, *tokens("ba bee"), SEP, *tokens("la"), SEP]
    assert found.types.tolist() == [0, 0, 0, 0, 1, 1]


def test_a_pair_with_a_place_in_the_template_is_put_there() -> None:
    task = dataclasses.replace(CLASSIFICATION, template="{text_pair} do {text}")
    found = encoded(Example("ba", 0, "la"), task)
    assert found.ids.tolist() == [CLS, *tokens("la do ba"), SEP]
    assert not found.types.any()


def test_a_missing_pair_leaves_its_place_empty() -> None:
    task = dataclasses.replace(CLASSIFICATION, template="{text_pair} do {text}")
    assert encoded(Example("ba", 0), task).ids.tolist() == [CLS, *tokens("do ba"), SEP]


@pytest.mark.parametrize("example", [Example("{text_pair} ba", 0, "la"), Example("ba", 0, "{text} la")])
def test_braces_in_the_data_are_data(example: Example) -> None:
    task = dataclasses.replace(CLASSIFICATION, template="{text} do {text_pair}")
    expected = tokens(f"{example.text} do {example.text_pair}")
    assert encoded(example, task).ids.tolist() == [CLS, *expected, SEP]


@given(TEXTS, TEXTS)
@settings(deadline=None, max_examples=40)
def test_nothing_is_longer_than_max_tokens_and_the_frame_stays_whole(text: str, pair: str) -> None:
    found = encoded(Example(text, 0, pair or None), CLASSIFICATION)
    assert len(found.ids) == len(found.types) <= CLASSIFICATION.max_tokens
    assert (found.ids[0], found.ids[-1]) == (CLS, SEP)
    assert (found.ids == SEP).sum() == (2 if pair else 1)


def test_cutting_keeps_the_beginning() -> None:
    text = " ".join(tiny_models.WORDS)
    assert encoded(Example(text, 0), CLASSIFICATION).ids[1:-1].tolist() == tokens(text)[: CLASSIFICATION.max_tokens - 2]


def test_the_end_of_a_very_long_text_is_never_looked_at() -> None:
    task = dataclasses.replace(CLASSIFICATION, template="da {text}", max_tokens=8)
    longest = LONGEST_TOKEN * task.max_tokens
    text = "ba " + " " * longest + "bee"
    assert encoded(Example(text, 0), task).ids.tolist() == [CLS, *tokens("da ba"), SEP]


def test_an_unlabelled_example_says_so() -> None:
    assert encoded(Example("ba"), CLASSIFICATION).label == -1


def test_one_tokenizer_serves_classification_and_language_modelling_in_turn() -> None:
    tokenizer, text = tiny_models.tokenizer(), " ".join(tiny_models.WORDS)
    encoded(Example(text, 0), dataclasses.replace(CLASSIFICATION, max_tokens=5), tokenizer)
    rows = encode(Example(text), LANGUAGE, tokenizer)
    assert sum(len(window.ids) - 1 for window in rows) == len(tokens(text)) - 1


# --- classification: how it is laid out ---


def test_rows_are_padded_on_the_right_to_a_multiple_of_the_bucket() -> None:
    fields = collate([row(3, 1), row(9, 0)], CLASSIFICATION).fields
    assert {array.shape for name, array in fields.items() if name != "labels"} == {(2, 2 * BUCKET)}
    assert fields["input_ids"][0].tolist() == [1, 2, 3] + [0] * 13
    assert fields["attention_mask"].sum(axis=1).tolist() == [3, 9]
    assert fields["attention_mask"][:, :3].all()
    assert fields["token_type_ids"][0].tolist() == [0, 0, 1] + [0] * 13
    assert fields["labels"].tolist() == [1, 0]


@given(st.lists(st.integers(1, 32), min_size=1, max_size=9))
@settings(deadline=None, max_examples=60)
def test_padding_adds_less_than_a_bucket_and_loses_nothing(lengths: list[int]) -> None:
    batch = collate([row(length) for length in lengths], CLASSIFICATION)
    width = batch.fields["input_ids"].shape[1]
    assert max(lengths) <= width < max(lengths) + BUCKET
    assert width % BUCKET == 0
    assert batch.examples == len(lengths)
    for place, length in enumerate(lengths):
        kept = batch.fields["attention_mask"][place].astype(bool)
        assert batch.fields["input_ids"][place][kept].tolist() == list(range(1, length + 1))


def test_max_tokens_bounds_the_padding_too() -> None:
    task = dataclasses.replace(CLASSIFICATION, max_tokens=13)
    assert collate([row(13)], task).fields["input_ids"].shape == (1, 13)


def test_all_fields_are_what_the_graphs_take() -> None:
    for batch in (collate([row(3)], CLASSIFICATION), windows("ba bee bi")):
        assert {array.dtype for array in batch.fields.values()} == {np.dtype(np.int64)}


@given(st.lists(st.integers(2, 30), min_size=1, max_size=7), st.integers(1, 8), st.sampled_from((CLASSIFICATION, LANGUAGE)))
@settings(deadline=None, max_examples=60)
def test_the_parts_of_a_split_batch_are_the_batch(lengths: list[int], most: int, task: Task) -> None:
    batch = collate([row(min(length, task.max_tokens), place) for place, length in enumerate(lengths)], task)
    parts = batch.split(most)
    sizes = [part.examples for part in parts]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    assert len(parts) == -(-len(lengths) // most)
    assert max(sizes) == sizes[-1] <= most
    assert max(sizes) - min(sizes) <= 1
    assert np.concatenate([part.lengths for part in parts]).tolist() == batch.lengths.tolist()
    assert {part.tokens for part in parts} == {batch.tokens}
    assert all(part.losses == len(part.fields["labels"]) for part in parts)
    for name in batch.fields.keys() - {"positions"}:
        np.testing.assert_array_equal(np.concatenate([part.fields[name] for part in parts]), batch.fields[name])
    if task.kind == "language-modelling":
        moved = [part.fields["positions"] + start * batch.tokens for part, start in zip(parts, starts, strict=True)]
        np.testing.assert_array_equal(np.concatenate(moved), batch.fields["positions"])


# --- language modelling ---


@given(TEXTS, st.integers(1, 20))
@settings(deadline=None, max_examples=80)
def test_every_token_but_the_first_is_a_label_exactly_once_in_order(text: str, max_tokens: int) -> None:
    task = dataclasses.replace(LANGUAGE, max_tokens=max_tokens)
    ids, rows = tokens(text), encode(Example(text), task, tiny_models.tokenizer())
    if len(ids) < 2:
        assert rows == []
        return
    assert collate(rows, task).fields["labels"].tolist() == ids[1:]


@given(TEXTS.filter(lambda text: len(text.split()) > 1), st.integers(1, 20))
@settings(deadline=None, max_examples=80)
def test_the_input_at_each_position_is_the_token_before_the_label(text: str, max_tokens: int) -> None:
    task = dataclasses.replace(LANGUAGE, max_tokens=max_tokens)
    fields = windows(text, task).fields
    assert fields["positions"].shape == fields["labels"].shape
    assert fields["input_ids"].ravel()[fields["positions"]].tolist() == tokens(text)[:-1]
    assert fields["input_ids"].shape[1] <= max_tokens


def test_positions_of_rows_of_different_lengths_stay_aligned_with_the_labels() -> None:
    rows = [row(4), row(12), row(2)]
    fields = collate(rows, LANGUAGE).fields
    inputs = fields["input_ids"].ravel()[fields["positions"]]
    assert (fields["labels"] == inputs + 1).all()
    assert len(inputs) == 3 + 11 + 1
    assert (fields["positions"] // fields["input_ids"].shape[1]).tolist() == [0] * 3 + [1] * 11 + [2]


def test_language_modelling_frames_nothing() -> None:
    assert not {CLS, SEP} & set(windows("ba bee bi").fields["input_ids"].ravel().tolist())


# --- several times the same ---


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_batch_repeated_holds_its_examples_one_copy_after_the_other(times: int) -> None:
    batch = collate([dataclasses.replace(row(length, label), key=label) for length, label in ((3, 1), (9, 0), (5, 2))], CLASSIFICATION)
    found = batch.repeated(times)
    assert (found.examples, found.losses, found.tokens) == (3 * times, 3 * times, batch.tokens)
    for name, array in batch.fields.items():
        assert found.fields[name].dtype == array.dtype
        assert np.array_equal(found.fields[name], np.concatenate([array] * times))
    assert found.keys.tolist() == [1, 0, 2] * times
    assert found.lengths.tolist() == [3, 9, 5] * times


@given(st.lists(st.integers(2, 17), min_size=1, max_size=5), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_repeated_positions_point_at_the_tokens_of_their_own_copy(lengths: list[int], times: int) -> None:
    batch = collate([row(length) for length in lengths], LANGUAGE)
    kept = batch.fields["positions"].copy()
    found = batch.repeated(times)
    assert found.losses == times * batch.losses
    assert found.fields["labels"].tolist() == batch.fields["labels"].tolist() * times
    flat, place = found.fields["input_ids"].ravel(), found.fields["positions"]
    assert np.array_equal(flat[place], np.tile(batch.fields["input_ids"].ravel()[kept], times))
    assert (np.diff(place) > 0).all()
    copies = place // (batch.examples * batch.tokens)
    assert copies.tolist() == np.repeat(np.arange(times), batch.losses).tolist()
    assert np.array_equal(batch.fields["positions"], kept)


@pytest.mark.parametrize("model", ["classification", "language"])
def test_parts_of_a_batch_repeated_are_the_batch_repeated(model: str) -> None:
    """The examples of one copy, split off, are those that were repeated."""
    rows = [row(length) for length in (3, 9, 5)]
    batch = collate(rows, CLASSIFICATION if model == "classification" else LANGUAGE)
    for part in batch.repeated(4).split(3):
        assert part.fields.keys() == batch.fields.keys()
        assert all(np.array_equal(part.fields[name], array) for name, array in batch.fields.items())
