from zo._pb.edge_zo.v1 import ledger_pb2 as _ledger_pb2
from zo._pb.edge_zo.v1 import plan_pb2 as _plan_pb2
from zo._pb.edge_zo.v1 import report_pb2 as _report_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: _ledger_pb2.Digest
    y: _ledger_pb2.Digest
    def __init__(self, x: _Optional[_Union[_ledger_pb2.Digest, _Mapping]] = ..., y: _Optional[_Union[_ledger_pb2.Digest, _Mapping]] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("certificate", "expires")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    expires: int
    def __init__(self, certificate: _Optional[bytes] = ..., expires: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol", "device_id")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    device_id: int
    def __init__(self, protocol: _Optional[int] = ..., device_id: _Optional[int] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("run", "device", "run_name", "bundle_digest", "bundle_files", "genesis", "tiles_key")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FILES_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    TILES_KEY_FIELD_NUMBER: _ClassVar[int]
    run: int
    device: int
    run_name: str
    bundle_digest: bytes
    bundle_files: _containers.RepeatedScalarFieldContainer[str]
    genesis: _ledger_pb2.Digest
    tiles_key: bytes
    def __init__(self, run: _Optional[int] = ..., device: _Optional[int] = ..., run_name: _Optional[str] = ..., bundle_digest: _Optional[bytes] = ..., bundle_files: _Optional[_Iterable[str]] = ..., genesis: _Optional[_Union[_ledger_pb2.Digest, _Mapping]] = ..., tiles_key: _Optional[bytes] = ...) -> None: ...

class FileRequest(_message.Message):
    __slots__ = ("run", "file", "offset")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run: int
    file: int
    offset: int
    def __init__(self, run: _Optional[int] = ..., file: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("content", "size")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    size: int
    def __init__(self, content: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class CatchUpRequest(_message.Message):
    __slots__ = ("run", "device", "entry", "chain")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    run: int
    device: int
    entry: int
    chain: int
    def __init__(self, run: _Optional[int] = ..., device: _Optional[int] = ..., entry: _Optional[int] = ..., chain: _Optional[int] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("way", "entry", "size", "signs", "digest")
    class Way(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WAY_UNSPECIFIED: _ClassVar[Offer.Way]
        ENTRIES: _ClassVar[Offer.Way]
        FOLD: _ClassVar[Offer.Way]
        SNAPSHOT: _ClassVar[Offer.Way]
    WAY_UNSPECIFIED: Offer.Way
    ENTRIES: Offer.Way
    FOLD: Offer.Way
    SNAPSHOT: Offer.Way
    WAY_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SIGNS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    way: Offer.Way
    entry: int
    size: int
    signs: int
    digest: _ledger_pb2.Digest
    def __init__(self, way: _Optional[_Union[Offer.Way, str]] = ..., entry: _Optional[int] = ..., size: _Optional[int] = ..., signs: _Optional[int] = ..., digest: _Optional[_Union[_ledger_pb2.Digest, _Mapping]] = ...) -> None: ...

class CatchUpReply(_message.Message):
    __slots__ = ("offers",)
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    offers: _containers.RepeatedCompositeFieldContainer[Offer]
    def __init__(self, offers: _Optional[_Iterable[_Union[Offer, _Mapping]]] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ("run", "way", "entry", "offset")
    RUN_FIELD_NUMBER: _ClassVar[int]
    WAY_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run: int
    way: Offer.Way
    entry: int
    offset: int
    def __init__(self, run: _Optional[int] = ..., way: _Optional[_Union[Offer.Way, str]] = ..., entry: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("memory_mib", "stage_ns", "single_ns", "signs_per_second", "bytes_per_second", "parked")
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    STAGE_NS_FIELD_NUMBER: _ClassVar[int]
    SINGLE_NS_FIELD_NUMBER: _ClassVar[int]
    SIGNS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    memory_mib: int
    stage_ns: _containers.RepeatedScalarFieldContainer[int]
    single_ns: _containers.RepeatedScalarFieldContainer[int]
    signs_per_second: int
    bytes_per_second: int
    parked: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, memory_mib: _Optional[int] = ..., stage_ns: _Optional[_Iterable[int]] = ..., single_ns: _Optional[_Iterable[int]] = ..., signs_per_second: _Optional[int] = ..., bytes_per_second: _Optional[int] = ..., parked: _Optional[_Iterable[int]] = ...) -> None: ...

class WorkRequest(_message.Message):
    __slots__ = ("run", "device", "entry", "chain", "precision", "profile", "rank")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    run: int
    device: int
    entry: int
    chain: int
    precision: _plan_pb2.Precision
    profile: Profile
    rank: int
    def __init__(self, run: _Optional[int] = ..., device: _Optional[int] = ..., entry: _Optional[int] = ..., chain: _Optional[int] = ..., precision: _Optional[_Union[_plan_pb2.Precision, str]] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ..., rank: _Optional[int] = ...) -> None: ...

class WorkReply(_message.Message):
    __slots__ = ("entries", "plan", "retry_after_ms", "reason", "finished", "renew")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[_ledger_pb2.Entry]
    plan: _plan_pb2.WorkPlan
    retry_after_ms: int
    reason: str
    finished: bool
    renew: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[_ledger_pb2.Entry, _Mapping]]] = ..., plan: _Optional[_Union[_plan_pb2.WorkPlan, _Mapping]] = ..., retry_after_ms: _Optional[int] = ..., reason: _Optional[str] = ..., finished: _Optional[bool] = ..., renew: _Optional[bool] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("verdict",)
    class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        VERDICT_UNSPECIFIED: _ClassVar[ReportReply.Verdict]
        ACCEPTED: _ClassVar[ReportReply.Verdict]
        DUPLICATE: _ClassVar[ReportReply.Verdict]
        LATE: _ClassVar[ReportReply.Verdict]
        DIVERGED: _ClassVar[ReportReply.Verdict]
        UNKNOWN_ROUND: _ClassVar[ReportReply.Verdict]
    VERDICT_UNSPECIFIED: ReportReply.Verdict
    ACCEPTED: ReportReply.Verdict
    DUPLICATE: ReportReply.Verdict
    LATE: ReportReply.Verdict
    DIVERGED: ReportReply.Verdict
    UNKNOWN_ROUND: ReportReply.Verdict
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    verdict: ReportReply.Verdict
    def __init__(self, verdict: _Optional[_Union[ReportReply.Verdict, str]] = ...) -> None: ...
