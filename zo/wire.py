"""Dataclasses to protobuf and back: the only module that touches the generated classes.

A message has the fields of the dataclass of the same name, so one walk over the fields serves them all.
"""

import dataclasses
import types
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from google.protobuf.message import DecodeError, Message

from zo import messages
from zo._pb.edge_zo.v1 import fleet_pb2, ledger_pb2, plan_pb2, report_pb2

SERVICE = "edge_zo.v1.Fleet"
MAX_MESSAGE = 16 * 2**20  # bytes

T = TypeVar("T")


class WireError(ValueError):
    """Bytes that are not the message they should be."""


class Method(NamedTuple):
    """One call of the service: the types that go in and come out."""

    name: str
    request: type
    reply: type

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/{SERVICE}/{self.name}"


METHODS = (
    Method("Enrol", messages.EnrolRequest, messages.EnrolReply),
    Method("Join", messages.JoinRequest, messages.JoinReply),
    Method("FetchFile", messages.FileRequest, messages.FileChunk),
    Method("CatchUp", messages.CatchUpRequest, messages.CatchUpReply),
    Method("FetchCheckpoint", messages.CheckpointRequest, messages.FileChunk),
    Method("RequestWork", messages.WorkRequest, messages.WorkReply),
    Method("SendReport", messages.Report, messages.ReportReply),
)


def encode(value: Any) -> bytes:
    """A dataclass as protobuf bytes."""
    return _to_message(value).SerializeToString(deterministic=True)


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """The function that reads protobuf bytes as `kind`; it raises WireError."""
    made: Any = kind
    parse = _message_class(made).FromString

    def decode(data: bytes) -> T:
        try:
            return _from_message(kind, parse(data))
        except (DecodeError, ValueError, TypeError) as error:
            raise WireError(f"no valid {kind.__name__}: {error}") from None

    return decode


def printable(text: str) -> str:
    """A text of the other side's, as it may be shown: nothing in it moves a terminal's cursor, or begins a line of a log."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _to_message(value: Any) -> Message:
    kind: Any = type(value)
    items = {}
    for name, _, pack, _ in _fields(kind):
        item = getattr(value, name)
        if item is not None:
            items[name] = pack(item) if pack else item
    return _message_class(kind)(**items)


def _from_message(kind: Any, message: Message) -> Any:
    values = []
    for name, optional, _, read in _fields(kind):
        item = getattr(message, name) if not optional or message.HasField(name) else None
        values.append(read(item) if read and item is not None else item)
    return kind(*values)


class _Field(NamedTuple):
    """How a field of a dataclass travels; a function is None where the value stays as it is."""

    name: str
    optional: bool
    pack: Callable[[Any], Any] | None
    read: Callable[[Any], Any] | None


@cache
def _message_class(kind: Any) -> type[Message]:
    for module in (fleet_pb2, report_pb2, plan_pb2, ledger_pb2):
        if hasattr(module, kind.__name__):
            return getattr(module, kind.__name__)
    raise TypeError(f"{kind.__name__} has no message")


@cache
def _fields(kind: Any) -> tuple[_Field, ...]:
    """Of a dataclass, in order: looked up once, since there are hundreds of thousands of messages."""
    hints, described, fields = get_type_hints(kind), _message_class(kind).DESCRIPTOR.fields_by_name, []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        optional = get_origin(hint) in (Union, types.UnionType)
        if optional:
            hint = next(one for one in get_args(hint) if one is not type(None))
        is_digest = hint is bytes and described[field.name].message_type is not None
        names = _names(hint, described[field.name].enum_type) if get_origin(hint) is Literal else None
        fields.append(_Field(field.name, optional, *(_DIGEST if is_digest else names or _functions(hint))))
    return tuple(fields)


def _functions(hint: Any) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]:
    """What packs a value of a type, and what reads it back."""
    if hint is np.ndarray:
        return np.ndarray.tolist, lambda items: np.array(items, np.int64)
    if dataclasses.is_dataclass(hint):
        return _to_message, partial(_from_message, hint)
    if get_origin(hint) is tuple:
        pack, read = _functions(get_args(hint)[0])
        return (lambda items: list(map(pack, items))) if pack else None, (lambda items: tuple(map(read, items))) if read else tuple
    if hint is str:
        return None, printable
    return None, None if hint in (int, bytes, bool, float) else hint


def _names(hint: Any, enum: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """For a text that is one of a few: it travels as the number that the enum has for it."""
    numbers = {name: enum.values_by_name[name.upper()].number for name in get_args(hint)}
    names = {number: name for name, number in numbers.items()}

    def read(number: int) -> str:
        if number not in names:
            raise ValueError(f"{enum.name} {number} is not known")
        return names[number]

    return numbers.__getitem__, read


def _digest_message(digest: bytes) -> ledger_pb2.Digest:
    word0, word1, word2, word3 = np.frombuffer(digest, "<u8").tolist()
    return ledger_pb2.Digest(word0=word0, word1=word1, word2=word2, word3=word3)


def _digest_bytes(message: ledger_pb2.Digest) -> bytes:
    return np.array([message.word0, message.word1, message.word2, message.word3], "<u8").tobytes()


_DIGEST = (_digest_message, _digest_bytes)
