"""Dataclasses to protobuf and back: the only module that touches the generated classes.

A message has the fields of the dataclass of the same name, so one walk over the fields serves them all.
"""

import dataclasses
import types
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

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

    def decode(data: bytes) -> T:
        message = _message_class(kind)()
        try:
            message.ParseFromString(data)
            return _from_message(kind, message)
        except (DecodeError, ValueError, TypeError) as error:
            raise WireError(f"no valid {kind.__name__}: {error}") from None

    return decode


def _message_class(kind: type) -> type[Message]:
    for module in (fleet_pb2, report_pb2, plan_pb2, ledger_pb2):
        if hasattr(module, kind.__name__):
            return getattr(module, kind.__name__)
    raise TypeError(f"{kind.__name__} has no message")


def _to_message(value: Any) -> Message:
    message = _message_class(type(value))()
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if item is None:
            continue
        if isinstance(item, np.ndarray):
            getattr(message, field.name).extend(item.tolist())
        elif isinstance(item, tuple):
            getattr(message, field.name).extend(_to_message(one) if dataclasses.is_dataclass(one) else one for one in item)
        elif dataclasses.is_dataclass(item):
            getattr(message, field.name).CopyFrom(_to_message(item))
        elif isinstance(item, bytes) and message.DESCRIPTOR.fields_by_name[field.name].message_type:
            getattr(message, field.name).CopyFrom(_digest_message(item))
        else:
            setattr(message, field.name, item)
    return message


def _from_message(kind: Any, message: Message) -> Any:
    hints = _hints(kind)
    values = {field.name: _field(hints[field.name], message, field.name) for field in dataclasses.fields(kind)}
    return kind(**values)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _field(hint: Any, message: Any, name: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if not message.HasField(name):
            return None
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    item = getattr(message, name)
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        return tuple(_from_message(inner, one) if dataclasses.is_dataclass(inner) else one for one in item)
    if hint is np.ndarray:
        return np.array(item, np.int64)
    if dataclasses.is_dataclass(hint):
        return _from_message(hint, item)
    if hint is bytes and isinstance(item, ledger_pb2.Digest):
        return np.array([item.word0, item.word1, item.word2, item.word3], "<u8").tobytes()
    return hint(item)


def _digest_message(digest: bytes) -> ledger_pb2.Digest:
    word0, word1, word2, word3 = np.frombuffer(digest, "<u8").tolist()
    return ledger_pb2.Digest(word0=word0, word1=word1, word2=word2, word3=word3)
