from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    FP32: _ClassVar[Precision]
    W8: _ClassVar[Precision]
    W4: _ClassVar[Precision]
    INT8: _ClassVar[Precision]
PRECISION_UNSPECIFIED: Precision
FP32: Precision
W8: Precision
W4: Precision
INT8: Precision

class ProbeSize(_message.Message):
    __slots__ = ("groups", "log2_e")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    LOG2_E_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedScalarFieldContainer[int]
    log2_e: int
    def __init__(self, groups: _Optional[_Iterable[int]] = ..., log2_e: _Optional[int] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("stage", "first_seed", "count", "probe_sizes", "child", "joint", "clean", "rank")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEED_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    PROBE_SIZES_FIELD_NUMBER: _ClassVar[int]
    CHILD_FIELD_NUMBER: _ClassVar[int]
    JOINT_FIELD_NUMBER: _ClassVar[int]
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    stage: int
    first_seed: int
    count: int
    probe_sizes: _containers.RepeatedCompositeFieldContainer[ProbeSize]
    child: Node
    joint: bool
    clean: bool
    rank: int
    def __init__(self, stage: _Optional[int] = ..., first_seed: _Optional[int] = ..., count: _Optional[int] = ..., probe_sizes: _Optional[_Iterable[_Union[ProbeSize, _Mapping]]] = ..., child: _Optional[_Union[Node, _Mapping]] = ..., joint: _Optional[bool] = ..., clean: _Optional[bool] = ..., rank: _Optional[int] = ...) -> None: ...

class Shape(_message.Message):
    __slots__ = ("counts", "cuts", "joint", "clean", "groups", "rank")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    JOINT_FIELD_NUMBER: _ClassVar[int]
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    cuts: _containers.RepeatedScalarFieldContainer[int]
    joint: bool
    clean: bool
    groups: _containers.RepeatedScalarFieldContainer[int]
    rank: int
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., cuts: _Optional[_Iterable[int]] = ..., joint: _Optional[bool] = ..., clean: _Optional[bool] = ..., groups: _Optional[_Iterable[int]] = ..., rank: _Optional[int] = ...) -> None: ...

class Grid(_message.Message):
    __slots__ = ("log2_levels", "clip")
    LOG2_LEVELS_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    log2_levels: int
    clip: float
    def __init__(self, log2_levels: _Optional[int] = ..., clip: _Optional[float] = ...) -> None: ...

class WorkPlan(_message.Message):
    __slots__ = ("round", "entry", "root", "examples", "measure_held_out", "stride", "want_digest", "grid", "groups", "id")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    MEASURE_HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    WANT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    round: int
    entry: int
    root: Node
    examples: int
    measure_held_out: bool
    stride: int
    want_digest: bool
    grid: Grid
    groups: _containers.RepeatedScalarFieldContainer[int]
    id: int
    def __init__(self, round: _Optional[int] = ..., entry: _Optional[int] = ..., root: _Optional[_Union[Node, _Mapping]] = ..., examples: _Optional[int] = ..., measure_held_out: _Optional[bool] = ..., stride: _Optional[int] = ..., want_digest: _Optional[bool] = ..., grid: _Optional[_Union[Grid, _Mapping]] = ..., groups: _Optional[_Iterable[int]] = ..., id: _Optional[int] = ...) -> None: ...
