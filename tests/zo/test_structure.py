"""Plain data becomes dataclasses strictly: every complaint says where, and what was probably meant."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from zo.structure import StructureError, from_plain


@dataclass(frozen=True)
class Link:
    """Inner table."""

    address: str
    port: int = 7000
    mode: Literal["dial", "wait"] = "dial"


@dataclass(frozen=True)
class Settings:
    """Outer table, with one of everything."""

    rate: float
    links: tuple[Link, ...] = ()
    names: dict[str, int] = field(default_factory=dict)
    proxy: str | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError("rate must be positive")


def complaint(plain: Any, kind: Any = Settings) -> str:
    with pytest.raises(StructureError) as caught:
        from_plain(kind, plain)
    return str(caught.value)


def test_everything_that_is_given_arrives_and_the_rest_is_default() -> None:
    plain = {"rate": 2, "links": [{"address": "a", "mode": "wait"}], "names": {"x": 1}, "proxy": None}
    assert from_plain(Settings, plain) == Settings(2.0, (Link("a", mode="wait"),), {"x": 1})


def test_whole_numbers_become_floats_where_floats_are_meant() -> None:
    assert isinstance(from_plain(Settings, {"rate": 2}).rate, float)


def test_an_unknown_key_names_the_nearest_right_one_and_its_place() -> None:
    assert complaint({"rate": 1.0, "verbos": True}) == "unknown key 'verbos'; did you mean 'verbose'?"
    assert "'links[1].adress'; did you mean 'address'?" in complaint({"rate": 1.0, "links": [{"address": "a"}, {"adress": "b"}]})


def test_an_unknown_key_like_nothing_known_gets_no_guess() -> None:
    assert complaint({"rate": 1.0, "zzz": 1}) == "unknown key 'zzz'"


def test_a_missing_key_is_named_with_its_place() -> None:
    assert complaint({}) == "key 'rate' is missing"
    assert complaint({"rate": 1.0, "links": [{}]}) == "key 'links[0].address' is missing"


def test_a_wrong_choice_lists_the_choices_and_the_nearest() -> None:
    assert complaint({"address": "a", "mode": "wiat"}, Link) == "mode must be one of 'dial', 'wait', not 'wiat'; did you mean 'wait'?"


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("rate", "2", "a number"),
        ("rate", True, "a number"),
        ("rate", None, "a number"),
        ("rate", float("nan"), "a number"),
        ("rate", 10**400, "a number"),
        ("verbose", 1, "true or false"),
        ("proxy", 3, "a text in quotes"),
        ("links", {"address": "a"}, "a list"),
        ("links", "ab", "a list"),
        ("names", [1], "a table"),
    ],
)
def test_a_wrong_type_says_what_is_wanted(key: str, value: Any, wanted: str) -> None:
    found = complaint({"rate": 1.0} | {key: value})
    assert found.startswith(f"{key} must be {wanted}")
    assert repr(value) in found


@pytest.mark.parametrize("value", [True, 1.5, "1"])
def test_a_whole_number_is_neither_a_truth_nor_a_float_nor_a_text(value: Any) -> None:
    assert complaint({"address": "a", "port": value}, Link).startswith("port must be a whole number")
    assert complaint({"rate": 1.0, "names": {"x": value}}).startswith("names.x must be a whole number")


@pytest.mark.parametrize("plain", [None, [], "text", 3])
def test_the_whole_must_be_a_table(plain: Any) -> None:
    assert complaint(plain).startswith("the file must be a table")


def test_what_a_dataclass_refuses_is_said_with_its_place() -> None:
    @dataclass
    class Outer:
        inner: Settings

    assert complaint({"rate": -1.0}) == "rate must be positive"
    assert complaint({"inner": {"rate": -1.0}}, Outer) == "inner: rate must be positive"


@pytest.mark.parametrize("value", [[], {}, ["dial"]])
def test_a_choice_that_is_a_list_or_a_table_is_a_complaint(value: Any) -> None:
    assert complaint({"address": "a", "mode": value}, Link).startswith("mode must be one of")


def test_fields_that_are_not_settable_are_unknown_keys() -> None:
    @dataclass
    class Hidden:
        shown: int = 1
        hidden: int = field(default=0, init=False)

    assert complaint({"hidden": 1}, Hidden).startswith("unknown key 'hidden'")
