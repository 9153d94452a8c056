from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Digest(_message.Message):
    __slots__ = ("word0", "word1", "word2", "word3")
    WORD0_FIELD_NUMBER: _ClassVar[int]
    WORD1_FIELD_NUMBER: _ClassVar[int]
    WORD2_FIELD_NUMBER: _ClassVar[int]
    WORD3_FIELD_NUMBER: _ClassVar[int]
    word0: int
    word1: int
    word2: int
    word3: int
    def __init__(self, word0: _Optional[int] = ..., word1: _Optional[int] = ..., word2: _Optional[int] = ..., word3: _Optional[int] = ...) -> None: ...

class Term(_message.Message):
    __slots__ = ("groups", "first_seed", "steps")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedScalarFieldContainer[int]
    first_seed: int
    steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, groups: _Optional[_Iterable[int]] = ..., first_seed: _Optional[int] = ..., steps: _Optional[_Iterable[int]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("number", "round", "contributors", "terms", "digest")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTORS_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    number: int
    round: int
    contributors: int
    terms: _containers.RepeatedCompositeFieldContainer[Term]
    digest: Digest
    def __init__(self, number: _Optional[int] = ..., round: _Optional[int] = ..., contributors: _Optional[int] = ..., terms: _Optional[_Iterable[_Union[Term, _Mapping]]] = ..., digest: _Optional[_Union[Digest, _Mapping]] = ...) -> None: ...

class Tile(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class GroupValues(_message.Message):
    __slots__ = ("group", "values")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    group: int
    values: bytes
    def __init__(self, group: _Optional[int] = ..., values: _Optional[bytes] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("genesis", "entry", "head", "digest", "terms", "values")
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    genesis: Digest
    entry: int
    head: Digest
    digest: Digest
    terms: _containers.RepeatedCompositeFieldContainer[Term]
    values: _containers.RepeatedCompositeFieldContainer[GroupValues]
    def __init__(self, genesis: _Optional[_Union[Digest, _Mapping]] = ..., entry: _Optional[int] = ..., head: _Optional[_Union[Digest, _Mapping]] = ..., digest: _Optional[_Union[Digest, _Mapping]] = ..., terms: _Optional[_Iterable[_Union[Term, _Mapping]]] = ..., values: _Optional[_Iterable[_Union[GroupValues, _Mapping]]] = ...) -> None: ...
