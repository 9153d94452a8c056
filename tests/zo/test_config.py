"""One dataclass gives file, environment and flags; what does not fit is named, with where it came from."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.config import RunConfig
from edge_agent.config import AgentConfig
from zo import config
from zo.config import setting
from zo.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    """A table."""

    goal: int = setting("reports", 1)
    share: float | None = setting("of them", None)
    least: int = setting("reports", 0)

    def __post_init__(self) -> None:
        if self.least > self.goal:
            raise ValueError(f"least = {self.least} is above goal = {self.goal}")


@dataclass(frozen=True)
class Outer:
    """All kinds of setting."""

    name: str = setting("what it is called")
    patience: float = setting("seconds, 100% of them", 2.0)
    count: int = setting("of things", 3)
    loud: bool = setting("say so", False)
    round: Inner = setting("", Inner())

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count = {self.count} must not be negative")


def load(*flags: str, file: Path | None = None, **environment: str) -> Outer:
    parser = argparse.ArgumentParser()
    config.add_flags(parser, Outer)
    given = parser.parse_args([*flags, *(["--config", str(file)] if file else [])])
    return config.load(Outer, given, "EDGE", {f"EDGE_{name}": value for name, value in environment.items()})


def refusal(*flags: str, file: Path | None = None, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*flags, file=file, **environment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def test_defaults_hold_where_nothing_is_said() -> None:
    assert load("--name", "a") == Outer("a")


def test_the_file_is_read_with_its_tables(file: Path) -> None:
    file.write_text('name = "a"\nloud = true\n[round]\ngoal = 5\nshare = 1\n')
    assert load(file=file) == Outer("a", loud=True, round=Inner(5, 1.0))


def test_flags_come_before_environment_before_file(file: Path) -> None:
    file.write_text('name = "file"\ncount = 1\npatience = 1.0\n[round]\ngoal = 1\nshare = 0.5\n')
    found = load("--name=flag", "--round.goal=3", file=file, NAME="variable", COUNT="2", ROUND_GOAL="2")
    assert found == Outer("flag", 1.0, 2, round=Inner(3, 0.5))


def test_a_switch_needs_no_value_and_takes_one() -> None:
    assert load("--name=a", "--loud").loud
    assert not load("--name=a", "--loud=false", LOUD="true").loud


def test_a_text_that_looks_like_a_number_stays_a_text() -> None:
    assert load("--name=17").name == "17"


def test_an_optional_setting_can_be_given_in_every_way(file: Path) -> None:
    assert load("--name=a", "--round.share=0.25").round.share == load("--name=a", ROUND_SHARE="0.25").round.share == 0.25


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nmae = 'a'", "unknown key 'nmae'; did you mean 'name'?"),
        ("name = 'a'\n[round]\ngaol = 2", "unknown key 'round.gaol'; did you mean 'goal'?"),
        ("name = 'a'\n[ruond]\ngoal = 2", "unknown key 'ruond'; did you mean 'round'?"),
        ("name = 3", "name must be a text in quotes, not 3"),
        ("name = 'a'\ncount = 1.5", "count must be a whole number, not 1.5"),
        ("name = 'a'\ncount = true", "count must be a whole number, not True"),
        ("name = 'a'\nloud = 1", "loud must be true or false, not 1"),
        ("name = 'a'\npatience = 'long'", "patience must be a number, not 'long'"),
        ("name = 'a'\n[round]\nshare = 'big'", "round.share must be a number, not 'big'"),
        ("name = 'a'\nround = 3", "round must be a table, not 3"),
        ("name = 'a'\ncount = -1", "count = -1 must not be negative"),
        ("count = 1", "key 'name' is missing"),
        ("name = 'a'\npatience = nan", "patience must be a number, not nan"),
        ("name = ", "is not valid TOML"),
        ("name = " + "[" * 100_000, "is not valid TOML"),
    ],
)
def test_what_does_not_fit_is_named_with_the_file(content: str, said: str, file: Path) -> None:
    file.write_text(content)
    assert said in refusal(file=file)
    assert str(file) in refusal(file=file)


def test_a_file_that_is_not_there_or_not_text_is_named(file: Path) -> None:
    assert f"{file} cannot be read: No such file" in refusal(file=file)
    file.write_bytes(b"\xff\xfe")
    assert f"{file} is not valid TOML" in refusal(file=file)


def test_a_bad_value_is_told_with_the_flag_or_variable_that_gave_it() -> None:
    assert refusal("--name=a", "--count=x") == "--count: count must be a whole number, not 'x'"
    assert refusal("--name=a", COUNT="x") == "EDGE_COUNT: count must be a whole number, not 'x'"
    assert refusal("--name=a", ROUND_GOAL="x") == "EDGE_ROUND_GOAL: round.goal must be a whole number, not 'x'"


def test_what_a_dataclass_refuses_is_blamed_on_the_flags_and_variables_that_gave_it(file: Path) -> None:
    file.write_text("name = 'file'\ncount = 5\n")
    said = "count = -1 must not be negative"
    assert refusal("--count=-1", "--patience=3", file=file) == f"--count: {said}"
    assert refusal(file=file, COUNT="-1", PATIENCE="3") == f"EDGE_COUNT: {said}"
    assert refusal("--name=a", "--count=-1") == f"--count: {said}"
    file.write_text("name = 'file'\ncount = -1\n")
    assert refusal("--patience=3", file=file) == f"{file}: {said}"
    assert load("--count=1", file=file).count == 1
    assert refusal("--round.goal=2", "--round.least=3", "--name=a") == "--round.goal, --round.least: round: least = 3 is above goal = 2"
    assert refusal("--name=a", ROUND_LEAST="3") == "EDGE_ROUND_LEAST: round: least = 3 is above goal = 1"


def test_a_setting_that_is_missing_is_told_with_its_flag(file: Path) -> None:
    assert refusal("--count=1") == "configuration: key 'name' is missing; give it with --name"
    file.write_text("count = 1")
    assert refusal(file=file) == f"{file}: key 'name' is missing; give it with --name"


def test_no_number_is_a_number_wherever_it_comes_from() -> None:
    assert refusal("--name=a", "--patience=NaN") == "--patience: patience must be a number, not nan"
    assert refusal("--name=a", ROUND_SHARE="NaN").startswith("EDGE_ROUND_SHARE: round.share must be a number, not nan")
    assert refusal("--name=a", "--count=" + "[" * 100_000).startswith("--count: count must be a whole number")


def test_a_byte_order_mark_is_no_problem(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfname = 'a'\n")
    assert load(file=file) == Outer("a")


def test_flags_that_are_in_order_are_not_blamed_for_others() -> None:
    assert refusal("--name=a", "--count=x", "--round.goal=2").startswith("--count: ")


def test_flags_that_are_in_order_are_not_blamed_for_the_file(file: Path) -> None:
    file.write_text("[round]\ngaol = 2")
    assert refusal("--name=a", file=file).startswith(f"{file}: ")


def test_a_flag_of_a_table_that_the_file_gives_a_plain_value_is_refused(file: Path) -> None:
    file.write_text("round = 3")
    assert "round must be a table, not 3" in refusal("--name=a", "--round.goal=2", file=file)


def every_setting() -> Iterator[tuple[type, str, str]]:
    for kind in (RunConfig, AgentConfig):
        for name, field in config.settings(kind):
            yield kind, name, field.metadata.get("help", "")


@pytest.mark.parametrize(("kind", "name", "help_text"), list(every_setting()))
def test_every_setting_of_both_commands_has_a_help_text(kind: type, name: str, help_text: str) -> None:
    parser = argparse.ArgumentParser(prog="x")
    config.add_flags(parser, kind)
    assert len(help_text) > 10
    assert f"--{name.replace('_', '-')} " in parser.format_help()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log2_levels", "50"),
        ("clip", "0"),
        ("clip", "1e308"),
        ("evaluation.every", "0"),
        ("round.minimum", "2"),
        ("round.deadline", "0"),
        ("probe.directions", "0"),
        ("probe.examples", "5000"),
        ("rate.body", "-1"),
        ("rate.head", "NaN"),
        ("rate.head", "1e7"),
        ("rate.final", "1.5"),
        ("blocks_slack", "10"),
        ("blocks_slack", "NaN"),
        ("least_gain", "NaN"),
        ("split.kept", "NaN"),
        ("tiles.every", "Infinity"),
        ("name", ""),
        ("name", "r\udcff"),
        ("rounds", "0"),
        ("digest_every", "0"),
    ],
)
def test_an_impossible_run_is_refused_before_anything_is_opened(name: str, value: str) -> None:
    parser = argparse.ArgumentParser()
    config.add_flags(parser, RunConfig)
    given = parser.parse_args(["--bundle=b", f"--{name.replace('_', '-')}={value}"])
    with pytest.raises(ConfigError) as caught:
        config.load(RunConfig, given, "EDGE_COORDINATOR", {})
    assert name.split(".")[-1] in str(caught.value) or "rate" in str(caught.value) or "grid" in str(caught.value)


@pytest.mark.parametrize("flags", [("threads", "0"), ("max_rows", "0"), ("held_out_share", "1"), ("held_out_most", "-1")])
def test_an_impossible_agent_is_refused(flags: tuple[str, str]) -> None:
    parser = argparse.ArgumentParser()
    config.add_flags(parser, AgentConfig)
    given = parser.parse_args(["--data=d", f"--{flags[0].replace('_', '-')}={flags[1]}"])
    with pytest.raises(ConfigError, match=flags[0]):
        config.load(AgentConfig, given, "EDGE_AGENT", {})
