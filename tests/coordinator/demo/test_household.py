import dataclasses
import hashlib
import json
import re
from collections import Counter
from itertools import combinations

import pytest

import coordinator.demo.household as household_module
from coordinator.demo.household import HOMES, INTENTS, Household, Intent, generate

SEED_0 = "e925eee5045854f0bfaa087497ce3225ec16f66aa18322c91a8cbb3f9103cb27"


@pytest.fixture(scope="module")
def household() -> Household:
    return generate()


def digest(household: Household) -> str:
    return hashlib.sha256(json.dumps(dataclasses.asdict(household)).encode()).hexdigest()


def test_same_seed_gives_the_same_bytes(household: Household) -> None:
    assert digest(household) == digest(generate(seed=0)) == SEED_0


def test_another_seed_gives_other_sentences(household: Household) -> None:
    other = generate(seed=1)
    assert other.labels == household.labels
    assert {row["text"] for row in other.test} != {row["text"] for row in household.test}


def test_sizes(household: Household) -> None:
    assert [len(home) for home in household.homes] == [150] * 8
    assert (len(household.validation), len(household.test)) == (300, 600)
    small = generate(homes=10, examples_per_home=5, validation=7, test=9)
    assert [len(home) for home in small.homes] == [5] * 10
    assert (len(small.validation), len(small.test)) == (7, 9)


def test_text_is_as_speech_recognition_gives_it(household: Household) -> None:
    rows = [row for split in (*household.homes, household.validation, household.test) for row in split]
    assert [row["text"] for row in rows if not re.fullmatch(r"[a-z]+( [a-z]+)*", row["text"])] == []


def test_every_label_is_in_every_split(household: Household) -> None:
    labels = set(range(len(INTENTS)))
    assert len(household.labels) == len(set(household.labels)) == len(INTENTS)
    assert {row["label"] for home in household.homes for row in home} == labels
    for split in (household.validation, household.test):
        counts = Counter(row["label"] for row in split)
        assert set(counts) == labels
        assert max(counts.values()) <= 3 * min(counts.values())


def test_homes_differ_in_their_proportions(household: Household) -> None:
    shares = []
    for home, rows in enumerate(household.homes):
        counts = Counter(list(INTENTS)[row["label"]] for row in rows)
        assert sum(counts[name] for name in HOMES[home]) > len(rows) / 2
        shares.append({name: counts[name] / len(rows) for name in INTENTS})
    for one, other in combinations(shares, 2):
        distance = sum(abs(one[name] - other[name]) for name in INTENTS) / 2  # total variation
        assert distance > 0.2


def test_own_words_are_in_the_training_data_of_their_home_only(household: Household) -> None:
    for home, own in enumerate(HOMES):
        for name, (word, templates) in own.items():
            assert all(word in template for template in templates)
            uses = [{row["label"] for row in rows if re.search(rf"\b{word}\b", row["text"])} for rows in household.homes]
            assert uses.pop(home) == {list(INTENTS).index(name)}
            assert not any(uses)


def test_no_sentence_is_given_twice(household: Household) -> None:
    rows = [row["text"] for split in (*household.homes, household.validation, household.test) for row in split]
    assert len(set(rows)) == len(rows)


def test_exhausted_tables_repeat_sentences_instead_of_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(household_module, "INTENTS", {"weather": Intent("Tell me the weather.", (), ("is it raining",))})
    monkeypatch.setattr(household_module, "REQUEST_SHARE", 0)
    monkeypatch.setattr(household_module, "HOMES", ())
    rows = generate(homes=1, examples_per_home=50, validation=1, test=1).homes[0]
    assert len(rows) == 50
    assert {row["text"] for row in rows} == {f"{word} is it raining".strip() for word in household_module.REMARKING}
