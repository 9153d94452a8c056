from zo._pb.edge_zo.v1 import ledger_pb2 as _ledger_pb2
from zo._pb.edge_zo.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Spent(_message.Message):
    __slots__ = ("peak_memory_mib", "milliseconds", "millijoules", "energy")
    class EnergySource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NONE: _ClassVar[Spent.EnergySource]
        RAPL: _ClassVar[Spent.EnergySource]
        INA3221: _ClassVar[Spent.EnergySource]
        BATTERY: _ClassVar[Spent.EnergySource]
        MODEL: _ClassVar[Spent.EnergySource]
    NONE: Spent.EnergySource
    RAPL: Spent.EnergySource
    INA3221: Spent.EnergySource
    BATTERY: Spent.EnergySource
    MODEL: Spent.EnergySource
    PEAK_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    MILLIJOULES_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    peak_memory_mib: int
    milliseconds: int
    millijoules: int
    energy: Spent.EnergySource
    def __init__(self, peak_memory_mib: _Optional[int] = ..., milliseconds: _Optional[int] = ..., millijoules: _Optional[int] = ..., energy: _Optional[_Union[Spent.EnergySource, str]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("run", "device", "round", "scalars", "examples", "precision", "dropped", "held_out", "spent", "digest", "plan", "shape")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    run: int
    device: int
    round: int
    scalars: _containers.RepeatedScalarFieldContainer[int]
    examples: int
    precision: _plan_pb2.Precision
    dropped: int
    held_out: _containers.RepeatedScalarFieldContainer[int]
    spent: Spent
    digest: _ledger_pb2.Digest
    plan: int
    shape: _plan_pb2.Shape
    def __init__(self, run: _Optional[int] = ..., device: _Optional[int] = ..., round: _Optional[int] = ..., scalars: _Optional[_Iterable[int]] = ..., examples: _Optional[int] = ..., precision: _Optional[_Union[_plan_pb2.Precision, str]] = ..., dropped: _Optional[int] = ..., held_out: _Optional[_Iterable[int]] = ..., spent: _Optional[_Union[Spent, _Mapping]] = ..., digest: _Optional[_Union[_ledger_pb2.Digest, _Mapping]] = ..., plan: _Optional[int] = ..., shape: _Optional[_Union[_plan_pb2.Shape, _Mapping]] = ...) -> None: ...
