"""Usable lines are read, all others skipped, counted and quoted; nothing usable is an error a person can act on."""

import json
from pathlib import Path
from typing import Any

import pytest

from zo import examples as examples_file
from zo.errors import DataError
from zo.examples import Example, Reading, load, read
from zo.manifest import Task

TASK = Task("classification", 16, "prototypes", ("good", "bad"))
LANGUAGE = Task("language-modelling", 16, "vocabulary")
GOOD = b'{"text": "fine", "label": 1}'


def file(folder: Path, *lines: bytes, name: str = "a.jsonl") -> Path:
    (folder / name).write_bytes(b"\n".join(lines))
    return folder / name


def refusal(path: Path, task: Task = TASK) -> str:
    with pytest.raises(DataError) as caught:
        read(path, task)
    return str(caught.value)


# --- what is read ---


def test_labels_are_indices_or_the_labels_themselves(tmp_path: Path) -> None:
    path = file(tmp_path, b'{"text": "a", "label": 0}', b'{"text": "b", "label": "bad"}', b'{"text": "c", "label": 1, "text_pair": "d"}')
    assert read(path, TASK) == Reading([Example("a", 0), Example("b", 1), Example("c", 1, "d")])


def test_language_modelling_looks_at_the_text_alone(tmp_path: Path) -> None:
    assert read(file(tmp_path, b'{"text": "a"}', b'{"text": "b", "label": "whatever"}'), LANGUAGE).examples == [Example("a"), Example("b")]


def test_other_keys_blank_lines_and_windows_line_ends_are_no_problem(tmp_path: Path) -> None:
    path = file(tmp_path, b"", b'{"id": 7, "text": "a", "label": 0}\r', b"  ", GOOD, b"")
    assert read(path, TASK) == Reading([Example("a", 0), Example("fine", 1)])


def test_a_folder_is_read_in_order_of_name_and_only_its_jsonl(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        file(tmp_path, json.dumps({"text": name, "label": 0}).encode(), name=name)
    assert [example.text for example in read(tmp_path, TASK).examples] == ["a.jsonl", "b.jsonl"]


def test_a_folder_named_like_a_file_inside_the_folder_is_skipped(tmp_path: Path) -> None:
    file(tmp_path, GOOD)
    (tmp_path / "b.jsonl").mkdir()
    assert [example.text for example in read(tmp_path, TASK).examples] == ["fine"]


def test_a_megabyte_on_one_line_is_an_example(tmp_path: Path) -> None:
    long = "word " * 200_000
    path = file(tmp_path, json.dumps({"text": long, "label": 0}).encode(), GOOD)
    assert [len(example.text) for example in read(path, TASK).examples] == [1_000_000, 4]


def test_an_empty_file_beside_a_good_one_is_no_problem(tmp_path: Path) -> None:
    file(tmp_path, GOOD)
    file(tmp_path, name="empty.jsonl")
    assert read(tmp_path, TASK) == Reading([Example("fine", 1)])


# --- what is skipped ---


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"text", "not JSON: 'text'"),
        (b'{"text": "cut of', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"[1]", 'no "text"'),
        (b"null", 'no "text"'),
        (b'{"label": 0}', 'no "text"'),
        (b'{"text": 3, "label": 0}', 'no "text"'),
        (b'{"text": "  ", "label": 0}', '"text" is empty'),
        (b'{"text": "a", "label": 0, "text_pair": 3}', '"text_pair" is not a text'),
        (b'{"text": "a"}', "unknown label None (known: 0..1)"),
        (b'{"text": "a", "label": 2}', "unknown label 2 (known: 0..1)"),
        (b'{"text": "a", "label": -1}', "unknown label -1"),
        (b'{"text": "a", "label": true}', "unknown label True"),
        (b'{"text": "a", "label": 1.0}', "unknown label 1.0"),
        (b'{"text": "a", "label": "ugly"}', "unknown label 'ugly'"),
        (b'{"text": "a", "label": [0]}', "unknown label [0]"),
        (b'{"text": "a", "label": "' + b"long " * 200_000 + b'"}', "unknown label 'long long"),
    ],
)
def test_a_line_that_is_no_example_is_skipped_and_quoted(line: bytes, why: str, tmp_path: Path) -> None:
    reading = read(file(tmp_path, GOOD, line, GOOD), TASK)
    assert len(reading.examples) == 2
    assert reading.skipped == 1
    assert reading.complaints[0].startswith(f"a.jsonl:2: {why}")
    assert len(reading.complaints[0]) < 200


def test_all_skipped_lines_are_counted_and_the_first_three_quoted_with_their_numbers(tmp_path: Path) -> None:
    file(tmp_path, GOOD, b"x1", b"", b"x2", GOOD)
    file(tmp_path, b"x3", b"x4", b"x5", name="b.jsonl")
    reading = read(tmp_path, TASK)
    assert (len(reading.examples), reading.skipped) == (2, 5)
    assert [complaint.split(" ")[0] for complaint in reading.complaints] == ["a.jsonl:2:", "a.jsonl:4:", "b.jsonl:1:"]
    assert reading.summary().startswith("2 examples; skipped 5 lines: a.jsonl:2: ")


def test_what_is_loaded_tells_the_log_what_was_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(load(file(tmp_path, GOOD, b"x1"), TASK)) == 1
    assert "a.jsonl: 1 examples; skipped 1 lines: a.jsonl:2: " in caplog.text
    caplog.clear()
    assert len(load(file(tmp_path, GOOD), TASK)) == 1
    assert caplog.text == ""


def test_the_summary_of_a_clean_file_is_a_count(tmp_path: Path) -> None:
    assert read(file(tmp_path, GOOD), TASK).summary() == "1 examples"


def test_a_line_without_end_is_skipped_as_one_line(tmp_path: Path) -> None:
    endless = b'{"text": "' + b"x" * (2 * examples_file.LONGEST_LINE + 5) + b'", "label": 0}'
    reading = read(file(tmp_path, endless, GOOD, b"x"), TASK)
    assert reading.examples == [Example("fine", 1)]
    assert [complaint.split(" ")[0] for complaint in reading.complaints] == ["a.jsonl:1:", "a.jsonl:3:"]
    assert f"longer than {examples_file.LONGEST_LINE} bytes" in reading.complaints[0]


# --- what is refused ---


def test_no_usable_line_is_an_error_that_quotes_and_shows_an_example(tmp_path: Path) -> None:
    said = refusal(file(tmp_path, b"hello", b'{"text": "a", "label": 9}'))
    assert "a.jsonl:1: not JSON: 'hello' | a.jsonl:2: unknown label 9" in said
    assert '{"text": "...", "label": 0}' in said


@pytest.mark.parametrize("lines", [(), (b"", b" ")])
def test_an_empty_file_is_an_error(lines: tuple[bytes, ...], tmp_path: Path) -> None:
    assert "holds no usable example (no lines)" in refusal(file(tmp_path, *lines))


def test_a_file_that_is_not_utf_8_is_an_error_that_says_so(tmp_path: Path) -> None:
    assert "a.jsonl:1: not UTF-8" in refusal(file(tmp_path, '{"text": "a", "label": 0}'.encode("utf-16")))


def test_a_path_that_is_absent_is_an_error(tmp_path: Path) -> None:
    assert f"{tmp_path / 'absent'} does not exist" in refusal(tmp_path / "absent")


@pytest.mark.parametrize(("task", "line"), [(TASK, '{"text": "...", "label": 0}'), (LANGUAGE, '{"text": "..."}')])
def test_a_folder_without_jsonl_is_an_error_that_shows_a_line(task: Task, line: str, tmp_path: Path) -> None:
    assert f"holds no *.jsonl files; put lines like {line} into one" in refusal(tmp_path, task)


@pytest.mark.parametrize("line", [b'{"text": "\\ud800", "label": 0}', b'{"text": "\\u0000", "label": 0}'])
def test_texts_that_are_read_can_be_tokenized(line: bytes, tmp_path: Path, bert_bundle: Any) -> None:
    texts = [example.text for example in read(file(tmp_path, line, GOOD), TASK).examples]
    assert all(bert_bundle.tokenizer().encode(text).ids for text in texts)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    assert read(file(tmp_path, b"\xef\xbb\xbf" + GOOD), TASK).examples == [Example("fine", 1)]


def test_a_folder_named_like_a_file_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    assert "holds no *.jsonl files" in refusal(tmp_path)
