"""Errors are one line and a documented exit code."""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zo import __version__, cli, errors
from zo.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import pathlib, signal, sys, tempfile, time
from zo import cli

def go(_):
    {}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the entry points leave it
    top, commands = cli.parser("edge-test", "a test")
    commands.add_parser("go").set_defaults(command=go)
    sys.exit(cli.run(top, ["go"]))
"""
WORK = """
    with tempfile.TemporaryDirectory(dir=".") as folder:
        print(folder, flush=True)
        time.sleep(60)
"""
SLOW_IMPORT = """
import sys, time
from {0}.__main__ import main

class Slow:
    def find_spec(self, name, *_):
        if name == "{0}.cli":
            print("importing", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
sys.exit(main())
"""
PAGE = (ROOT / "docs/exit-codes.md").read_text(encoding="utf-8")


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
    assert run(raising(RuntimeError("one\ntwo"))) == 70
    assert capsys.readouterr().err.startswith("edge-test: internal error: RuntimeError: one two; ")
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
        (line,) = capsys.readouterr().err.splitlines()
        assert re.fullmatch("edge-test( go)?: .*; see edge-test( go)? --help", line)


def process(program: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", program], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **pipes)


@pytest.mark.parametrize("size", [3, 100_000])
def test_an_output_without_room_is_one_line(size: int, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        ended = process(PROGRAM.format(f"print('x' * {size})"), tmp_path, stdout=full)
    said = "edge-test: the output: No space left on device; check the path, its permissions and the room there\n"
    assert (ended.communicate()[1], ended.returncode) == (said, errors.StorageError.exit_code)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_streams_that_are_closed_lead_nowhere(number: int, tmp_path: Path) -> None:
    program = PROGRAM.format("print('out', repr(sys.stdin.read()), pathlib.Path('file').open('w').fileno() > 2)")
    ended = process(program, tmp_path, preexec_fn=lambda: os.close(number), stdin=subprocess.DEVNULL)
    assert ended.communicate() == ("" if number == 1 else "out '' True\n", "")
    assert ended.returncode == 0


def test_what_the_output_cannot_encode_is_escaped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM.format(r"print('gr\u00fcn \U0001f600 \udcff')")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("gr\\xfcn \\U0001f600 \\udcff\n", "", 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_command_that_is_stopped_leaves_nothing_behind(number: signal.Signals, code: int, tmp_path: Path) -> None:
    started = process(PROGRAM.format(WORK), tmp_path)
    assert started.stdout is not None
    assert (tmp_path / started.stdout.readline().strip()).is_dir()
    started.send_signal(number)
    assert (started.communicate(timeout=30)[1], started.returncode) == ("", code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["coordinator", "edge_agent"])
def test_ctrl_c_while_a_program_starts_ends_it_without_a_word(package: str, tmp_path: Path) -> None:
    started = process(SLOW_IMPORT.format(package), tmp_path)
    assert started.stdout is not None
    assert started.stdout.readline() == "importing\n"
    started.send_signal(signal.SIGINT)
    assert (started.communicate(timeout=30)[1], started.returncode) == ("", -signal.SIGINT)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    top, _ = cli.parser("edge-test", "a test")
    with pytest.raises(SystemExit) as caught:
        cli.run(top, ["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"edge-test {__version__}\n")


def test_exit_codes_are_told_apart() -> None:
    codes = [kind.exit_code for kind in user_errors()]
    assert len(set(codes)) == len(codes)
    assert not {0, 2, cli.INTERNAL_ERROR, 130, 141} & set(codes)


@pytest.mark.parametrize("code", [0, 2, cli.INTERNAL_ERROR, 130, 141, 143, *(kind.exit_code for kind in user_errors())])
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
