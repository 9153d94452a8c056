"""The device's examples: a share held out for good, the rest drawn in batches."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.bench import tiny_models
from edge_agent.data import Dataset
from zo.batches import Batch, Encoded
from zo.errors import DataError
from zo.manifest import Task
from zo.sampling import Sampler

KEPT = {"held_out_share": 0.1, "held_out_most": 32, "balanced": True}


def write(folder: Path, lines: list[dict[str, Any]]) -> Path:
    (folder / "private.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def labelled(count: int, rare: int = 3) -> list[dict[str, Any]]:
    """Different texts; one in `rare` has label 1, the rest 0."""
    return [{"text": text, "label": int(place % rare == 0)} for place, text in enumerate(tiny_models.sentences(count))]


def dataset(folder: Path, task: Task = tiny_models.CLASSIFICATION, **changed: Any) -> Dataset:
    return Dataset(folder, task, tiny_models.tokenizer(), **KEPT | changed)


def rows(encoded: list[Encoded]) -> list[tuple[int, ...]]:
    return [tuple(row.ids.tolist()) for row in encoded]


def rows_of(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(ids[mask == 1].tolist()) for ids, mask in zip(batch.fields["input_ids"], batch.fields["attention_mask"], strict=True)]


def test_the_held_out_share_is_disjoint_and_loses_nothing(tmp_path: Path) -> None:
    found = dataset(write(tmp_path, labelled(60)))
    held, training = rows(found.held_out), rows(found.training)
    assert (len(held), len(training)) == (6, 54)
    assert len({*held, *training}) == len({*held}) + len({*training}) == len({*held, *training})
    assert not {*held} & {*training}


def test_the_held_out_share_is_the_same_at_every_start(tmp_path: Path) -> None:
    write(tmp_path, labelled(60))
    assert rows(dataset(tmp_path).held_out) == rows(dataset(tmp_path).held_out)


@pytest.mark.parametrize(
    ("count", "share", "most", "kept"), [(9, 0.1, 32, 0), (60, 0.5, 8, 8), (60, 0.0, 32, 0), (1, 0.9, 32, 0), (2, 0.99, 32, 1)]
)
def test_the_share_has_its_bounds(count: int, share: float, most: int, kept: int, tmp_path: Path) -> None:
    found = dataset(write(tmp_path, labelled(count)), held_out_share=share, held_out_most=most)
    assert (len(found.held_out), len(found.training)) == (kept, count - kept)


def test_what_is_held_out_is_never_drawn(tmp_path: Path) -> None:
    found = dataset(write(tmp_path, labelled(60)))
    drawn = {row for _ in range(60) for row in rows_of(found.draw(8))}
    assert len(drawn) > 20
    assert drawn <= {*rows(found.training)}


def test_held_out_batches_are_all_of_it_in_the_same_order(tmp_path: Path) -> None:
    found = dataset(write(tmp_path, labelled(60)))
    first, second = found.held_out_batches(4), found.held_out_batches(4)
    assert all(len({*batch.fields["labels"].tolist()}) == 1 for batches in first for batch in batches)
    read = [[row for batches in each for batch in batches for row in rows_of(batch)] for each in (first, second)]
    assert read[0] == read[1]
    assert sorted(read[0]) == sorted(rows(found.held_out))


@pytest.mark.parametrize("size", [1, 3, 8, 200])
def test_a_batch_has_the_size_asked_for(size: int, tmp_path: Path) -> None:
    found = dataset(write(tmp_path, labelled(20)))
    assert [found.draw(size).examples for _ in range(6)] == [size] * 6
    assert found.draw(size + 1).examples == size + 1
    assert found.draw(size).examples == size


def shares(found: Dataset) -> Counter:
    return Counter(int(label) for _ in range(100) for label in found.draw(8).fields["labels"])


def test_balanced_drawing_takes_a_rare_class_as_often_as_others(tmp_path: Path) -> None:
    write(tmp_path, labelled(200, rare=20))
    assert 0.4 < shares(dataset(tmp_path))[1] / 800 < 0.6
    assert 0.01 < shares(dataset(tmp_path, balanced=False))[1] / 800 < 0.12


def test_text_is_dropped_once_encoded(tmp_path: Path) -> None:
    found = dataset(write(tmp_path, [*labelled(10), {"text": "lost", "label": 9}]))
    assert found.reading.examples == []
    assert found.reading.skipped == 1
    assert found.summary.startswith("10 examples; skipped 1 lines: private.jsonl:11: unknown label 9")


def test_long_text_is_split_for_language_modelling(tmp_path: Path) -> None:
    text = " ".join(tiny_models.WORDS[:40])
    found = dataset(write(tmp_path, [{"text": text}]), tiny_models.LANGUAGE, held_out_share=0.0)
    assert sorted(len(row.ids) for row in found.training) == [8, 17, 17]
    assert found.draw(2).fields["labels"].size > 0


def test_a_folder_without_a_usable_example_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no usable example"):
        dataset(write(tmp_path, [{"text": "ba", "label": 9}]))


def test_only_files_and_folders_of_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.jsonl").mkdir()
    for path, said in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", r"holds no \*.jsonl files")):
        with pytest.raises(DataError, match=said):
            dataset(path)
    (tmp_path / "mixed").mkdir()
    os.mkfifo(tmp_path / "mixed/pipe.jsonl")
    for path in (tmp_path / "mixed", tmp_path / "mixed/pipe.jsonl"):
        with pytest.raises(DataError, match=r"pipe.jsonl is no regular file; give a .jsonl file"):
            dataset(path)


def test_texts_too_short_to_learn_from_are_no_usable_examples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="usable"):
        dataset(write(tmp_path, [{"text": "ba"}, {"text": "bee"}]), tiny_models.LANGUAGE)


def test_two_devices_draw_differently(tmp_path: Path) -> None:
    write(tmp_path, labelled(60))
    one, other = (np.concatenate([d.draw(8).fields["labels"] for _ in range(20)]) for d in (dataset(tmp_path), dataset(tmp_path)))
    assert not np.array_equal(one, other)


# --- batches made ahead, and numbers of examples ---


class Seeded(Dataset):
    """Draws the same batches every time."""

    SAMPLER = Sampler

    def __init__(self, folder: Path, task: Task = tiny_models.CLASSIFICATION, **changed: Any) -> None:
        super().__init__(folder, task, tiny_models.tokenizer(), **(given := KEPT | changed))
        self._sampler = self.SAMPLER(self.training, task, given["balanced"], np.random.default_rng(5))


class AtOnce(Seeded):
    """Makes each batch when it is asked for, and none ahead."""

    def draw(self, size: int) -> Batch:
        return self._sampler.draw(size)


class FailingSampler(Sampler):
    """Cannot make its third batch."""

    made = 0

    def draw(self, size: int) -> Batch:
        self.made += 1
        if self.made == 3:
            raise MemoryError
        return super().draw(size)


class Failing(Seeded):
    """Has such a sampler."""

    SAMPLER = FailingSampler


def same(one: Batch, other: Batch) -> bool:
    fields = one.fields.keys() == other.fields.keys() and all(np.array_equal(one.fields[name], other.fields[name]) for name in one.fields)
    return fields and np.array_equal(one.keys, other.keys) and np.array_equal(one.lengths, other.lengths)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("size", [1, 4, 30])
def test_batches_made_ahead_are_those_made_at_once(size: int, balanced: bool, tmp_path: Path) -> None:
    write(tmp_path, labelled(60))
    ahead, at_once = Seeded(tmp_path, balanced=balanced), AtOnce(tmp_path, balanced=balanced)
    assert all(same(ahead.draw(size), at_once.draw(size)) for _ in range(20))


def test_the_size_may_change_at_any_time(tmp_path: Path) -> None:
    found = Seeded(write(tmp_path, labelled(60)))
    usual = {*rows(found.training)}
    for size in [4, 4, 8, 4, 1, 1, 1, 60, 2, 8, 8]:
        batch = found.draw(size)
        assert batch.examples == batch.losses == len(batch.lengths) == size
        assert {*rows_of(batch)} <= usual


def test_an_error_of_a_batch_made_ahead_comes_when_it_is_drawn(tmp_path: Path) -> None:
    found = Failing(write(tmp_path, labelled(60)))
    assert [found.draw(4).examples for _ in range(2)] == [4, 4]
    with pytest.raises(MemoryError):
        found.draw(4)


@pytest.mark.parametrize(("task", "lines"), [
    (tiny_models.CLASSIFICATION, labelled(60)),
    (tiny_models.LANGUAGE, [{"text": " ".join(tiny_models.WORDS[:length])} for length in range(2, 42)]),
])  # fmt: skip
def test_every_example_has_a_number_of_its_own(task: Task, lines: list[dict[str, Any]], tmp_path: Path) -> None:
    found = Seeded(write(tmp_path, lines), task)
    everything = [*found.training, *found.held_out]
    assert sorted(row.key for row in everything) == list(range(found.counts["examples"]))
    assert found.held_out
    by_key = {row.key: row for row in everything}
    held = {row.key for row in found.held_out}
    for size in (3, 8, 3):
        for _ in range(20):
            batch = found.draw(size)
            assert not held & {*batch.keys.tolist()}
            for place, key in enumerate(batch.keys.tolist()):
                length = batch.lengths[place]
                wanted = by_key[key].ids if task.labels else by_key[key].ids[:-1]
                assert batch.fields["input_ids"][place, :length].tolist() == wanted.tolist()
    measured = [key for batches in found.held_out_batches(4) for batch in batches for key in batch.keys.tolist()]
    assert sorted(measured) == sorted(row.key for row in found.held_out)
    assert {*Seeded(tmp_path, task).draw(8).keys.tolist()} <= by_key.keys() - held


def test_numbers_are_the_same_at_every_start(tmp_path: Path) -> None:
    write(tmp_path, labelled(60))
    one, two = dataset(tmp_path), dataset(tmp_path)
    assert [(row.key, *row.ids.tolist()) for row in one.training] == [(row.key, *row.ids.tolist()) for row in two.training]
