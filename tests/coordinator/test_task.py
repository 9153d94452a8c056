"""Task files: what they may hold, and what is said of the rest."""

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator import task
from coordinator.task import DEFAULT_MAX_TOKENS
from zo.errors import ConfigError, DataError
from zo.manifest import Task


def write(folder: Path, content: Any, name: str = "task.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_no_file_is_language_modelling() -> None:
    assert task.read(None) == Task("language-modelling", DEFAULT_MAX_TOKENS, "vocabulary")
    assert task.read(None, 12).max_tokens == 12


def test_a_bare_list_is_the_label_sentences(tmp_path: Path) -> None:
    expected = Task("classification", DEFAULT_MAX_TOKENS, "prototypes", ("Größe?", "two"))
    assert task.read(write(tmp_path, ["Größe?", "two"], "labels.json")) == expected


@pytest.mark.parametrize("name", ["task.toml", "task.json"])
def test_toml_and_json_say_the_same(name: str, tmp_path: Path) -> None:
    plain = {"labels": ["one", "two"], "template": "is it: {text}", "max_tokens": 64, "head": "linear"}
    toml = "\n".join(f"{key} = {json.dumps(value)}" for key, value in plain.items())
    found = task.read(write(tmp_path, toml if name.endswith("toml") else plain, name))
    assert found == Task("classification", 64, "linear", ("one", "two"), "is it: {text}")


def test_a_count_of_labels_serves_where_no_sentences_are_known(tmp_path: Path) -> None:
    found = task.read(write(tmp_path, {"label_count": 3}))
    assert (found.labels, found.head) == (("label 0", "label 1", "label 2"), "linear")
    assert task.read(write(tmp_path, {"label_count": 3, "head": "prototypes"})).head == "prototypes"
    assert task.read(write(tmp_path, {"label_count": 2, "labels": ["a", "b"]})).labels == ("a", "b")


def test_label_words_are_the_labels_of_a_causal_model(tmp_path: Path) -> None:
    expected = Task("classification", DEFAULT_MAX_TOKENS, "label-words", ("no", "yes"), "{text} Spam?")
    plain = {"label_words": ["no", "yes"], "template": "{text} Spam?"}
    assert task.read(write(tmp_path, plain)) == expected
    assert task.read(write(tmp_path, plain | {"head": "label-words"})) == expected


def test_max_tokens_of_the_command_line_come_first(tmp_path: Path) -> None:
    assert task.read(write(tmp_path, {"labels": ["a", "b"], "max_tokens": 9}), 33).max_tokens == 33


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (["one"], "at least two labels"),
        ([], "a list of label sentences needs at least two"),
        ({"label_count": 1}, "at least two labels"),
        ({"label_count": -5}, "label_count"),
        ({"labels": ["a", "b"], "label_count": 3}, "label_count = 3, but there are 2 labels"),
        ({"label_words": ["a"]}, "at least two labels"),
        ({"label_words": ["a", "b"], "labels": ["a", "b"]}, "label_words stand instead of labels"),
        ({"label_words": ["a", "b"], "label_count": 2}, "label_words stand instead of labels"),
        ({"label_words": ["a", "b"], "head": "linear"}, "go together, but head is 'linear'"),
        ({"labels": ["a", "b"], "head": "label-words"}, "go together, but head is 'label-words'"),
        ({"head": "label-words"}, "go together"),
        ({"labels": ["a", "b"], "max_tokens": 1}, "max_tokens = 1 must be from 2 to 1048576"),
        ({"labels": ["a", "a"]}, "label 'a' is there more than once"),
        ({"label_words": ["a", "b", "a"]}, "label 'a' is there more than once"),
        ({"labels": ["a", " "]}, "label 1, ' ', must be a text that is not empty"),
        ('["\\ud800", "b"]', "label 0, '\\ud800', must be a text"),
        ({"label_count": 100_000_000}, "label_count = 100000000 must be from 0 to 65536"),
        ({"labels": ["a", "b"], "template": "{text} \ud800"}, "is no text that contains {text}"),
        ({"labels": ["a", "b"], "template": "no place"}, "is no text that contains {text}"),
        ({"labels": ["a", "b"], "haed": "linear"}, "unknown key 'haed'; did you mean 'head'?"),
        ({"labels": ["a", "b"], "head": "prototype"}, "did you mean 'prototypes'?"),
        ({"labels": "a, b"}, "labels must be a list"),
        ({"labels": ["a", 2]}, "labels[1] must be a text in quotes, not 2"),
        (3, "must be a table"),
        ("{", "is no valid task file"),
        ("[" * 100_000, "is no valid task file"),
        ("", "is no valid task file"),
    ],
)
def test_what_does_not_fit_is_named_with_the_file(content: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        task.read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x80labels = []"])
def test_a_file_that_is_no_text_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="is no valid task file"):
        task.read(tmp_path / "task.toml")


def test_a_missing_file_is_named_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.json cannot be read: No such file or directory; check the path after --task"):
        task.read(tmp_path / "none.json")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is no folder; give one with train.jsonl and validation.jsonl"):
        task.of_data(tmp_path / "nowhere", 32)


def test_a_mistake_on_the_command_line_is_not_blamed_on_a_file(tmp_path: Path) -> None:
    for most in (1, 10**12):
        with pytest.raises(ConfigError) as caught:
            task.read(write(tmp_path, ["a", "b"]), most)
        assert str(caught.value) == f"--max-tokens: max_tokens = {most} must be from 2 to 1048576"


@pytest.mark.parametrize("name", ["task.json", "task.TOML"])
def test_a_byte_order_mark_and_a_suffix_in_capitals_are_no_problem(name: str, tmp_path: Path) -> None:
    content = '{"labels": ["a", "b"]}' if name.endswith("json") else 'labels = ["a", "b"]'
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert task.read(tmp_path / name).labels == ("a", "b")
