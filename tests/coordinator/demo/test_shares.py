"""One data set, divided among devices without loss and without doubles."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.demo import shares
from coordinator.demo.shares import FEWEST, divide
from zo.errors import DataError


def lines(count: int, classes: int = 4) -> list[dict]:
    return [{"text": f"line {place}", "label": place % classes} for place in range(count)]


@given(st.integers(1, 12), st.integers(0, 100), st.integers(0, 5), st.integers(1, 6))
def test_every_line_goes_to_exactly_one_device(devices: int, more: int, seed: int, classes: int) -> None:
    given_lines = lines(devices * FEWEST + more, classes)
    divided = divide(given_lines, devices, seed)
    assert len(divided) == devices
    assert sorted(line["text"] for share in divided for line in share) == sorted(line["text"] for line in given_lines)
    assert min(map(len, divided)) >= FEWEST


def test_a_seed_always_gives_the_same_shares_and_another_seed_others() -> None:
    assert divide(lines(200), 5, 1) == divide(lines(200), 5, 1) != divide(lines(200), 5, 2)


def test_shares_are_uneven_as_private_data_is() -> None:
    counts = [Counter(line["label"] for line in share) for share in divide(lines(4000), 8, 0)]
    shares_of_first = [count[0] / count.total() for count in counts]
    assert max(shares_of_first) > 2 * min(shares_of_first)


def test_text_without_labels_is_cut_into_stretches() -> None:
    text = [{"text": str(place)} for place in range(50)]
    divided = divide(text, 3, 0)
    assert [line for share in divided for line in share] == text
    assert max(map(len, divided)) - min(map(len, divided)) <= 1


def test_too_few_lines_are_refused_with_the_flag() -> None:
    with pytest.raises(DataError, match="11 training examples are too few for 3 devices; use fewer with --agents"):
        divide(lines(11), 3, 0)


def test_lines_written_are_the_lines_read(tmp_path: Path) -> None:
    given_lines = [{"text": "Größe\u2028\x85", "label": 1}, {"text": "b"}]
    shares.write_lines(tmp_path / "deep/a.jsonl", given_lines)
    assert shares.read_lines(tmp_path / "deep/a.jsonl") == given_lines


def test_lines_that_are_no_examples_are_passed_over(tmp_path: Path) -> None:
    good = json.dumps({"text": "a"}).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([b"{", b"\xff", b"[]", b'{"text": 3}', b"", good]))
    assert shares.read_lines(tmp_path / "a.jsonl") == [{"text": "a"}]


def test_a_file_without_examples_or_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"a.jsonl holds no usable example"):
        shares.read_lines(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"b.jsonl cannot be read"):
        shares.read_lines(tmp_path / "b.jsonl")


def test_lines_of_which_only_some_have_labels_are_refused_by_name() -> None:
    mixed = [*lines(20), {"text": "no label"}]
    with pytest.raises(DataError, match="label"):
        divide(mixed, 2, 0)
