"""Errors are one line and a documented exit code."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zo import __version__, cli, errors
from zo.errors import UserError

PAGE = (Path(__file__).resolve().parents[2] / "docs/exit-codes.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    yield
    root.handlers[:] = kept
    root.setLevel(level)


def run(command: Callable[..., object], *flags: str) -> int:
    top, commands = cli.parser("edge-test", "a test")
    commands.add_parser("go", help="go").set_defaults(command=command)
    return cli.run(top, [*flags, "go"])


def raising(error: BaseException) -> Callable[..., object]:
    def command(_: object) -> None:
        raise error

    return command


def user_errors() -> list[type[UserError]]:
    """UserError and the kinds that have a code of their own; what is derived from those shares theirs."""
    return [UserError, *UserError.__subclasses__()]


def test_a_command_that_returns_nothing_has_succeeded() -> None:
    assert run(lambda _: None) == 0
    assert run(lambda _: 5) == 5


@pytest.mark.parametrize("kind", user_errors())
def test_a_user_error_is_one_line_and_its_exit_code(kind: type[UserError], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(kind("the cable is unplugged; plug it in"))) == kind.exit_code
    assert capsys.readouterr() == ("", "edge-test: the cable is unplugged; plug it in\n")


def test_an_internal_error_is_one_line_and_the_traceback_only_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyError("x"))) == cli.INTERNAL_ERROR == 70
    assert re.fullmatch(r"edge-test: internal error: KeyError: 'x'; .*--verbose\n", capsys.readouterr().err)
    assert run(raising(KeyError("x")), "--verbose") == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141)])
def test_what_the_shell_did_is_no_error_to_tell_of(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(error)) == code
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_written_is_no_internal_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(lambda _: (tmp_path / "file" / "below").mkdir()) == errors.StorageError.exit_code
    assert str(tmp_path / "file" / "below") in capsys.readouterr().err


def test_wrong_usage_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    top, commands = cli.parser("edge-test", "a test")
    commands.add_parser("go")
    for wrong in ([], ["come"], ["go", "--fast"]):
        with pytest.raises(SystemExit) as caught:
            cli.run(top, wrong)
        assert caught.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("edge-test")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    top, _ = cli.parser("edge-test", "a test")
    with pytest.raises(SystemExit) as caught:
        cli.run(top, ["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"edge-test {__version__}\n")


def test_exit_codes_are_told_apart() -> None:
    codes = [kind.exit_code for kind in user_errors()]
    assert len(set(codes)) == len(codes)
    assert not {0, 2, cli.INTERNAL_ERROR, 130, 141} & set(codes)


@pytest.mark.parametrize("code", [0, 2, cli.INTERNAL_ERROR, 130, 141, *(kind.exit_code for kind in user_errors())])
def test_every_exit_code_has_a_row_and_a_section_on_its_page(code: int) -> None:
    assert re.search(rf"^\| *\[?{code}\b", PAGE, re.M)
    section = re.search(rf"^## {code}\b.*?(?=^## |\Z)", PAGE, re.M | re.S)
    assert section is not None
    assert len(section[0]) > 150


@pytest.mark.parametrize("kind", user_errors()[1:])
def test_the_section_names_its_error(kind: type[UserError]) -> None:
    section = re.search(rf"^## {kind.exit_code}\b.*?(?=^## |\Z)", PAGE, re.M | re.S)
    assert section is not None
    assert kind.__name__ in section[0]
