"""Configuration: one dataclass gives the TOML file, the environment variables, the flags and their help.

A setting is looked for in the flags, then the environment, then the file, then its default. Nested dataclasses are
tables: `round.goal` is [round] goal in the file, --round.goal as a flag, EDGE_COORDINATOR_ROUND_GOAL in the environment.
"""

import argparse
import copy
import dataclasses
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from zo.errors import ConfigError
from zo.structure import MissingKey, StructureError, from_plain, nearest

MOST_THREADS = 256  # that any setting may ask for: starting many more is never over

T = TypeVar("T")


def setting(help: str, default: Any = dataclasses.MISSING) -> Any:
    """A field of a configuration dataclass with its help text."""
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=type(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def add_flags(parser: argparse.ArgumentParser, kind: type) -> None:
    """--config and a flag for every setting of `kind`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with the settings below")
    for name, field in settings(kind):
        default = field.default if field.default is not dataclasses.MISSING else "required"
        shown = "" if default is None or default == "" else f" [{default}]"
        text = (field.metadata.get("help", "") + shown).replace("%", "%%")
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if field.default is False else {}
        parser.add_argument(_flag(name), dest=f"setting {name}", metavar="VALUE", help=text, **switch)


def load(kind: type[T], flags: argparse.Namespace, prefix: str, environment: Mapping[str, str] | None = None) -> T:
    """The configuration from flags, environment (names begin with `prefix`) and file. ConfigError says what and where."""
    environment = os.environ if environment is None else environment
    file = _read_file(flags.config) if flags.config else {}
    where = str(flags.config) if flags.config else "configuration"
    given: dict[str, tuple[str, Any]] = {}  # source and value of what flags and variables state
    variables = {name: f"{prefix}_{name.upper().replace('.', '_')}" for name, _ in _hints(kind)}
    for variable in environment:
        if variable.startswith(f"{prefix}_") and variable not in variables.values():
            raise ConfigError(f"unknown environment variable {variable}{nearest(variable, variables.values())}")
    for name, hint in _hints(kind):
        variable = variables[name]
        flag = getattr(flags, f"setting {name}", None)
        if flag is not None or variable in environment:
            value = _parse(hint, flag if flag is not None else environment[variable])
            given[name] = _flag(name) if flag is not None else variable, value
            _checked(hint, value, name, given[name][0])
    try:
        return from_plain(kind, _joined(file, given, where))
    except MissingKey as error:
        raise ConfigError(f"{where}: {error}; give it with {_flag(error.key)}") from None
    except StructureError as error:
        sources = [given[name][0] for name in given if _is_at_fault(name, kind, file, given, str(error))]
        raise ConfigError(f"{', '.join(sources) or where}: {error}") from None


def is_given(name: str, flags: argparse.Namespace, prefix: str) -> bool:
    """Whether a setting (no table's) is stated in flags, environment or file."""
    if getattr(flags, f"setting {name}", None) is not None or f"{prefix}_{name.upper()}" in os.environ:
        return True
    return bool(flags.config) and name in _read_file(flags.config)


def from_texts(kind: type[T], texts: Mapping[str, str]) -> T:
    """The configuration from dotted names and texts, as flags would give them."""
    return load(kind, argparse.Namespace(config=None, **{f"setting {name}": text for name, text in texts.items()}), "", {})


def settings(kind: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Dotted name and field of every setting, tables opened."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from settings(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def _hints(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _hints(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check the path after --config") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _checked(kind: Any, plain: Any, name: str, source: str) -> Any:
    try:
        return from_plain(kind, plain, name)
    except StructureError as error:
        raise ConfigError(f"{source}: {error}") from None


def _is_at_fault(name: str, kind: Any, file: dict[str, Any], given: dict[str, tuple[str, Any]], complaint: str) -> bool:
    """Whether the complaint would be no more, or another one, without that flag or variable."""
    try:
        from_plain(kind, _joined(file, {other: each for other, each in given.items() if other != name}, ""))
    except MissingKey:
        return False
    except StructureError as error:
        return str(error) != complaint
    return True


def _joined(file: dict[str, Any], given: Mapping[str, tuple[str, Any]], where: str) -> dict[str, Any]:
    plain = copy.deepcopy(file)
    for name, (_, value) in given.items():
        _put(plain, name, value, where)
    return plain


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _put(plain: dict[str, Any], name: str, value: Any, where: str) -> None:
    *tables, key = name.split(".")
    for table in tables:
        plain = plain.setdefault(table, {})
        if not isinstance(plain, dict):
            raise ConfigError(f"{where}: {table} must be a table, not {plain!r}")
    plain[key] = value


def _parse(hint: Any, text: str) -> Any:
    """A flag or variable as plain data: texts stay as they are, everything else is read as JSON where it is that."""
    if hint is str or hint == str | None:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
