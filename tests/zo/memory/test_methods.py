"""What the formulas must agree with: counts of published models, limits that can be worked out by hand, and what grows with what."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo.memory import fitting, table
from zo.memory.engine import Device, base_bytes
from zo.memory.methods import METHODS, RANK, Work, saved_row_bytes
from zo.memory.shapes import PUBLISHED, ModelShape, of_config, scaled, table_bytes, weight_bytes

DEVICE = Device(100_000_000)
BERT = PUBLISHED["bert-base"]
PUBLISHED_COUNTS = {  # parameters, in millions, as their model cards state them
    "minilm-l6": 22.7,
    "bert-base": 110,
    "bert-large": 335,
    "opt-125m": 125,
    "opt-1.3b": 1316,
    "opt-6.7b": 6658,
    "opt-13b": 12853,
    "llama-135m": 135,
    "llama-360m": 362,
    "llama-1b": 1236,
    "llama-3b": 3213,
    "llama-7b": 6738,
    "llama-13b": 13016,
}


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_COUNTS.items())
def test_the_shapes_have_the_parameters_that_are_published(name: str, millions: float) -> None:
    assert PUBLISHED[name].parameters / 1e6 == pytest.approx(millions, rel=0.02)


def test_a_config_is_read_as_the_shape_that_it_states() -> None:
    bert = {"model_type": "bert", "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    assert of_config(bert | {"vocab_size": 30_522, "max_position_embeddings": 512}) == BERT
    llama = {"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32, "intermediate_size": 8192}
    llama |= {"vocab_size": 128_256, "max_position_embeddings": 2048, "num_key_value_heads": 8, "tie_word_embeddings": True}
    assert of_config(llama) == PUBLISHED["llama-1b"]
    assert not of_config(llama | {"tie_word_embeddings": False}).tied
    assert of_config(llama | {"head_dim": 64}) == PUBLISHED["llama-1b"]


def test_heads_that_are_together_wider_than_the_model_count_as_wide_as_they_are() -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
    config |= {"vocab_size": 100, "max_position_embeddings": 32, "num_key_value_heads": 2, "head_dim": 32}
    shape = of_config(config)
    assert (shape.query_width, shape.kv_width) == (128, 64)
    assert shape.block_weights == 64 * (128 + 64 + 64) + 128 * 64 + 3 * 64 * 96
    assert shape.adapters(8) == 2 * 8 * (128 + 64)


def test_weights_take_what_their_precision_says() -> None:
    assert weight_bytes("fp32", 1000, 10) == 4000
    assert weight_bytes("w8", 3200, 32) == 3200 + 100 * 4
    assert weight_bytes("w4", 3200, 32) == 1600 + 100 * 4
    assert weight_bytes("int8", 3200, 32) == 3200 + 100 * 4
    assert table_bytes("int8", 3200, 32) == 3200 + 100 * 4
    assert table_bytes("fp32", 3200, 32) == 4 * 3200
    assert base_bytes(BERT, "fp32") == pytest.approx(4 * BERT.parameters, rel=1e-6)


def test_adam_holds_four_times_what_it_trains_sgd_twice_mezo_once() -> None:
    trained, work = 4 * BERT.blocks * BERT.block_weights, Work(1, 1)
    adam, sgd, mezo = (METHODS[name](BERT, work, DEVICE) for name in ("backprop, full, Adam", "backprop, full, SGD", "MeZO, full"))
    assert (adam.trainables + adam.optimiser, sgd.trainables, mezo.trainables) == (4 * trained, 2 * trained, trained)
    assert adam.base == sgd.base == mezo.base == table_bytes("fp32", BERT.tables, BERT.width)


def test_a_block_of_bert_keeps_sixteen_widths_a_token_for_its_gradients() -> None:
    assert saved_row_bytes(BERT, adapters=False) == 4 * 16 * BERT.width
    assert saved_row_bytes(BERT, adapters=True) == 4 * 10 * BERT.width


def test_checkpoints_keep_one_block_and_the_inputs_of_all() -> None:
    work = Work(4, 32)
    plain, kept = (METHODS[f"backprop, full, SGD{name}"](BERT, work, DEVICE) for name in ("", ", checkpoints"))
    assert plain.activations == 12 * work.rows * saved_row_bytes(BERT, adapters=False)
    assert kept.activations == plain.activations // 12 + 12 * work.rows * 4 * BERT.width


def test_forward_only_activations_do_not_grow_with_depth() -> None:
    deep = replace(BERT, blocks=100)
    for name, method in METHODS.items():
        grows = method(deep, Work(), DEVICE).activations > method(BERT, Work(), DEVICE).activations
        assert grows == name.startswith("backprop")


def test_branches_cost_rows_and_copies_of_the_adapters() -> None:
    one, four = (METHODS["MeZO, adapters"](BERT, Work(directions=count), DEVICE) for count in (1, 4))
    assert four.activations == 4 * one.activations
    assert four.trainables - one.trainables == 6 * 4 * BERT.adapters(RANK)


SHAPES = st.builds(scaled, st.integers(1, 64).map(lambda count: 128 * count))
WORKS = st.builds(Work, st.integers(1, 64), st.integers(1, 512), st.integers(1, 32), st.booleans())


@given(SHAPES, WORKS, st.sampled_from(sorted(METHODS)))
def test_more_of_anything_never_takes_less(model: ModelShape, work: Work, name: str) -> None:
    method = METHODS[name]
    base = method(model, work, DEVICE).total
    larger = [
        replace(work, examples=work.examples + 1),
        replace(work, tokens=work.tokens + 1),
        replace(work, directions=work.directions + 1),
    ]
    assert all(method(model, each, DEVICE).total >= base for each in larger)
    assert method(scaled(model.width + 128), work, DEVICE).total > base
    assert min(vars(method(model, work, DEVICE)).values()) >= 0


@given(WORKS, st.sampled_from(sorted(METHODS)), st.floats(1e8, 1e10))
def test_the_largest_fits_and_the_next_does_not(work: Work, name: str, budget: float) -> None:
    method, most = METHODS[name], fitting.most_examples(METHODS[name], BERT, work, DEVICE, budget)
    if most:
        assert method(BERT, replace(work, examples=most), DEVICE).total <= budget
    if most < 4096:
        assert method(BERT, replace(work, examples=most + 1), DEVICE).total > budget


def test_the_table_marks_what_fits_and_names_the_largest() -> None:
    rows = {row["method"]: row for row in table.rows(BERT, Work(), DEVICE, 700e6)}
    assert rows["MeZO, adapters"]["fits"]
    assert not rows["backprop, full, Adam"]["fits"]
    assert rows["backprop, full, Adam"]["most_examples"] == 0
    assert rows["MeZO, adapters, w4 base"]["most_directions"] > rows["MeZO, adapters"]["most_directions"] > 0
    assert rows["MeZO, adapters, w4 base"]["largest_parameters"] > rows["backprop, full, Adam"]["largest_parameters"]
    told = table.told(list(rows.values()), Work())
    assert "MeZO, adapters, w4 base" in told
    assert "llama-360m" in told
