"""One data set, divided among devices without loss and without doubles."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.bench.tiny_models import CLASSIFICATION, LANGUAGE
from coordinator.demo import shares
from coordinator.demo.shares import FEWEST, divide
from zo import examples
from zo.errors import DataError
from zo.examples import Example


def made(count: int, classes: int = 4) -> list[Example]:
    return [Example(f"line {place}", place % classes) for place in range(count)]


@given(st.integers(1, 12), st.integers(0, 100), st.integers(0, 5), st.integers(1, 6))
def test_every_example_goes_to_exactly_one_device(devices: int, more: int, seed: int, classes: int) -> None:
    whole = made(devices * FEWEST + more, classes)
    divided = divide(whole, devices, seed)
    assert len(divided) == devices
    assert sorted((each for share in divided for each in share), key=lambda each: each.text) == sorted(whole, key=lambda each: each.text)
    assert min(map(len, divided)) >= FEWEST


def test_a_seed_always_gives_the_same_shares_and_another_seed_others() -> None:
    assert divide(made(200), 5, 1) == divide(made(200), 5, 1) != divide(made(200), 5, 2)


def test_shares_are_uneven_as_private_data_is() -> None:
    counts = [Counter(each.label for each in share) for share in divide(made(4000), 8, 0)]
    shares_of_first = [count[0] / count.total() for count in counts]
    assert max(shares_of_first) > 2 * min(shares_of_first)


def test_text_without_labels_is_cut_into_stretches() -> None:
    text = [Example(str(place)) for place in range(50)]
    divided = divide(text, 3, 0)
    assert [each for share in divided for each in share] == text
    assert max(map(len, divided)) - min(map(len, divided)) <= 1


def test_what_is_divided_stays_as_it_was() -> None:
    whole = made(60)
    divide(whole, 3, 0)
    assert whole == made(60)


def test_too_few_examples_are_refused_with_the_flag() -> None:
    with pytest.raises(DataError, match="11 training examples are too few for 3 devices; use more examples, or fewer devices"):
        divide(made(11), 3, 0)


@pytest.mark.parametrize(
    ("task", "written"),
    [
        (CLASSIFICATION, [Example("Größe\u2028\x85\n", 1), Example("b", 0, "pair"), Example("c", 2)]),
        (LANGUAGE, [Example("Größe\u2028\x85\n"), Example("b b")]),
    ],
    ids=["classification", "language modelling"],
)
def test_examples_written_are_the_examples_read(task: examples.Task, written: list[Example], tmp_path: Path) -> None:
    shares.write(tmp_path / "deep/a.jsonl", written)
    found = examples.read(tmp_path / "deep/a.jsonl", task)
    assert (found.examples, found.skipped) == (written, 0)


def test_fields_that_an_example_lacks_are_not_written(tmp_path: Path) -> None:
    shares.write(tmp_path / "a.jsonl", [Example("a"), Example("b", 0)])
    assert (tmp_path / "a.jsonl").read_text().splitlines() == ['{"text": "a"}', '{"text": "b", "label": 0}']
