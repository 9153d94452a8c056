"""Plain data (from JSON or TOML) to dataclasses, strictly: unknown keys and wrong types are errors that say where."""

import dataclasses
import difflib
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class StructureError(ValueError):
    """Where and what: one line."""


class MissingKey(StructureError):
    """A key without a default was left out. key: with its place."""

    def __init__(self, key: str) -> None:
        super().__init__(f"key {key!r} is missing")
        self.key = key


def from_plain(kind: Any, plain: Any, where: str = "") -> Any:
    """`plain` as an instance of `kind`: a dataclass, tuple[X, ...], dict[X, Y], Literal, X | None, X | Literal or a scalar type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, plain, where)
    if origin is tuple:
        if not isinstance(plain, list):
            raise StructureError(f"{where or 'value'} must be a list, not {plain!r}")
        return tuple(from_plain(arguments[0], item, f"{where}[{place}]") for place, item in enumerate(plain))
    if origin is dict:
        if not isinstance(plain, dict):
            raise StructureError(f"{where or 'value'} must be a table, not {plain!r}")
        return {from_plain(arguments[0], key, where): from_plain(arguments[1], item, _join(where, key)) for key, item in plain.items()}
    if origin is Literal:
        if plain not in arguments:
            raise StructureError(f"{where} must be one of {', '.join(map(repr, arguments))}, not {plain!r}{nearest(plain, arguments)}")
        return plain
    if origin in (Union, types.UnionType):
        if plain is None and type(None) in arguments:
            return None
        kind, *words = sorted((a for a in arguments if a is not type(None)), key=lambda a: get_origin(a) is Literal)
        if any(plain in get_args(each) for each in words):
            return plain
        try:
            return from_plain(kind, plain, where)
        except StructureError as error:
            others = "".join(f" or {word!r}" for each in words for word in get_args(each))
            raise StructureError(f"{error}{others}") from None
    return _scalar(kind, plain, where)


def _dataclass(kind: Any, plain: Any, where: str) -> Any:
    if not isinstance(plain, dict):
        raise StructureError(f"{where or 'the file'} must be a table, not {plain!r}")
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in plain:
        if key not in fields:
            raise StructureError(f"unknown key {_join(where, key)!r}{nearest(key, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in plain:
            raise MissingKey(_join(where, name))
    try:
        return kind(**{key: from_plain(hints[key], value, _join(where, key)) for key, value in plain.items()})
    except StructureError:
        raise
    except ValueError as error:
        raise StructureError(f"{where + ': ' if where else ''}{error}") from None


def _scalar(kind: type, plain: Any, where: str) -> Any:
    if kind is float and isinstance(plain, int) and not isinstance(plain, bool) and abs(plain) < 2**1023:
        return float(plain)
    if not isinstance(plain, kind) or (isinstance(plain, bool) and kind is not bool) or (isinstance(plain, float) and math.isnan(plain)):
        names = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}
        raise StructureError(f"{where} must be {names.get(kind, kind.__name__)}, not {plain!r}")
    return plain


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def encodable(text: str) -> bool:
    """Whether it is UTF-8: not, where it holds half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def nearest(word: Any, known: Any) -> str:
    """ "; did you mean ...?" where something known is near, else nothing."""
    found = difflib.get_close_matches(str(word), [str(k) for k in known], 1, 0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
