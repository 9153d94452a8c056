"""Every message survives the wire; other bytes are refused; a device has no field to send text in."""

import contextlib
import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from zo import wire
from zo._pb.edge_zo.v1 import fleet_pb2, ledger_pb2, plan_pb2, report_pb2
from zo.checkpoint import Checkpoint, GroupValues
from zo.estimators import Grid
from zo.ledger import Entry, Tile
from zo.manifest import PRECISIONS
from zo.messages import (
    CatchUpReply,
    CatchUpRequest,
    CheckpointRequest,
    EnergySource,
    EnrolReply,
    EnrolRequest,
    FileChunk,
    FileRequest,
    JoinReply,
    JoinRequest,
    Offer,
    Profile,
    Report,
    ReportReply,
    Spent,
    Verdict,
    Way,
    WorkReply,
    WorkRequest,
)
from zo.plan import Node, ProbeSize, Shape, WorkPlan
from zo.terms import STEP_LIMIT, Term

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
s32, s64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
groups = st.lists(u32, max_size=3, unique=True).map(tuple)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(wire.printable)


def tuples(one: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[Any]:
    return st.lists(one, max_size=most).map(tuple)


def arrays(one: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    return st.lists(one, max_size=8).map(lambda values: np.array(values, np.int64))


terms = st.builds(Term, groups, st.integers(0, 2**64 - 8), arrays(st.integers(-STEP_LIMIT, STEP_LIMIT)))
digests = st.binary(min_size=32, max_size=32)
entries = st.builds(Entry, u64, u64, u32, tuples(terms), st.none() | digests)
ways = st.sampled_from(Way)
precisions = st.sampled_from(PRECISIONS)
offers = st.builds(Offer, ways, u64, u64, u64, digests)
values = st.builds(GroupValues, u32, st.binary(max_size=40))
grids = st.builds(Grid, st.integers(0, 20), st.floats(1, 2**10))
sizes = tuples(st.builds(ProbeSize, groups, u32), 2)
leaves = st.builds(Node, u32, u64, u32, sizes)
nodes = st.recursive(leaves, lambda inner: st.builds(Node, u32, u64, u32, sizes, inner, st.booleans()), max_leaves=4)
shapes = st.sampled_from(
    [Shape((8,)), Shape((4096,)), Shape((8, 256), (2,)), Shape((8, 256), (2,), joint=True), Shape((1, 2, 3), (1, 2**32 - 1), clean=True)]
)
plans = st.builds(WorkPlan, u64, u64, nodes, u32, st.booleans(), st.booleans(), grids, u32, u32)

MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    EnrolRequest: st.builds(EnrolRequest, digests, digests),
    EnrolReply: st.builds(EnrolReply, st.binary(max_size=40), u64),
    JoinRequest: st.builds(JoinRequest, u32, u64),
    JoinReply: st.builds(JoinReply, u32, u32, text, digests, tuples(text), digests, st.just(b"") | digests),
    FileRequest: st.builds(FileRequest, u32, u32, u64),
    FileChunk: st.builds(FileChunk, st.binary(max_size=50), u64),
    CatchUpRequest: st.builds(CatchUpRequest, u32, u32, u64, u64),
    CatchUpReply: st.builds(CatchUpReply, tuples(offers)),
    Offer: offers,
    CheckpointRequest: st.builds(CheckpointRequest, u32, ways, u64, u64),
    WorkRequest: st.builds(
        WorkRequest, u32, u32, u64, u64, precisions, st.builds(Profile, u32, tuples(u32), tuples(u32), u64, u32, tuples(u32))
    ),
    WorkReply: st.builds(WorkReply, tuples(entries), st.none() | plans, u32, text, st.booleans(), st.booleans()),
    Report: st.builds(
        Report,
        u32,
        u32,
        u64,
        arrays(s32),
        u32,
        precisions,
        u32,
        tuples(s64),
        st.builds(Spent, u32, u32, u32, st.sampled_from(get_args(EnergySource))),
        st.none() | digests,
        u32,
        st.none() | shapes,
    ),
    ReportReply: st.builds(ReportReply, st.sampled_from(Verdict)),
    Entry: entries,
    Tile: st.builds(Tile, tuples(entries)),
    Checkpoint: st.builds(Checkpoint, digests, u64, digests, digests, tuples(terms), tuples(values)),
}


def plain(value: Any) -> Any:
    """Comparable: Report and Term hold arrays."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return (value.dtype, value.tolist()) if isinstance(value, np.ndarray) else value


def test_every_type_of_every_call_is_covered_here() -> None:
    assert {kind for method in wire.METHODS for kind in (method.request, method.reply)} <= MESSAGES.keys()


@given(st.data())
@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    assert plain(wire.decoder(kind)(wire.encode(message))) == plain(message)


@pytest.mark.parametrize("kind", MESSAGES)
def test_bytes_that_are_no_protobuf_are_refused(kind: type) -> None:
    with pytest.raises(wire.WireError, match=f"no valid {kind.__name__}"):
        wire.decoder(kind)(b"\xff" * 9)


@given(st.binary(max_size=60))
@pytest.mark.parametrize("kind", MESSAGES)
def test_any_bytes_are_a_message_or_a_wire_error(kind: type, data: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        assert isinstance(wire.decoder(kind)(data), kind)


@given(st.data())
@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_with_one_changed_bit_is_a_message_or_a_wire_error(kind: type, data: st.DataObject) -> None:
    changed = bytearray(wire.encode(data.draw(MESSAGES[kind])) or b"\0")
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(wire.WireError):
        assert isinstance(wire.decoder(kind)(bytes(changed)), kind)


@pytest.mark.parametrize(
    ("log2_levels", "clip"), [(0, 0.5), (41, 1.0), (14, float("nan")), (14, float("inf")), (40, 1e308), (2**32 - 1, 1.0)]
)
def test_an_impossible_grid_is_refused(log2_levels: int, clip: float) -> None:
    def reply(grid: plan_pb2.Grid) -> bytes:
        return fleet_pb2.WorkReply(plan=plan_pb2.WorkPlan(root=plan_pb2.Node(), grid=grid)).SerializeToString()

    assert wire.decoder(WorkReply)(reply(plan_pb2.Grid(log2_levels=14, clip=2.0))).plan.grid == Grid(14, 2.0)
    with pytest.raises(wire.WireError):
        wire.decoder(WorkReply)(reply(plan_pb2.Grid(log2_levels=log2_levels, clip=clip)))


@pytest.mark.parametrize(
    "shape",
    [
        plan_pb2.Shape(),
        plan_pb2.Shape(counts=[0]),
        plan_pb2.Shape(counts=[1, 1]),
        plan_pb2.Shape(counts=[2**32 - 1, 2**32 - 1], cuts=[1]),
        plan_pb2.Shape(counts=[1, 1, 1], cuts=[2, 1]),
        plan_pb2.Shape(counts=[1], joint=True),
    ],
    ids=str,
)
def test_an_impossible_shape_is_refused(shape: plan_pb2.Shape) -> None:
    def sent(given: plan_pb2.Shape | None) -> bytes:
        return report_pb2.Report(precision=plan_pb2.FP32, shape=given).SerializeToString()

    assert wire.decoder(Report)(sent(plan_pb2.Shape(counts=[8, 4], cuts=[2]))).shape == Shape((8, 4), (2,))
    assert wire.decoder(Report)(sent(None)).shape is None
    with pytest.raises(wire.WireError, match="no valid Report"):
        wire.decoder(Report)(sent(shape))


@pytest.mark.parametrize("times", [(-1,), (2**32,), (1, 2**40)])
def test_times_that_do_not_fit_are_not_sent(times: tuple[int, ...]) -> None:
    profile = Profile(stage_ns=(1, 2**32 - 1))
    assert wire.decoder(WorkRequest)(wire.encode(WorkRequest(1, 2, 3, 4, "fp32", profile))).profile == profile
    with pytest.raises(ValueError, match="out of range"):
        wire.encode(WorkRequest(1, 2, 3, 4, "fp32", Profile(stage_ns=times)))


def test_an_unknown_verdict_is_refused() -> None:
    with pytest.raises(wire.WireError):
        wire.decoder(ReportReply)(b"\x08\x63")


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Offer, fleet_pb2.Offer(way=9).SerializeToString()),
        (CatchUpReply, fleet_pb2.CatchUpReply(offers=[fleet_pb2.Offer(way=1), fleet_pb2.Offer(way=9)]).SerializeToString()),
        (CheckpointRequest, fleet_pb2.CheckpointRequest(way=9).SerializeToString()),
    ],
)
def test_an_unknown_way_is_refused(kind: type, data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decoder(kind)(data)


def test_the_names_of_the_ways_are_those_of_the_protocol() -> None:
    assert dict(fleet_pb2.Offer.Way.items()) == {way.name: way.value for way in Way}


def test_the_names_of_the_precisions_are_those_of_the_protocol_and_travel_as_numbers() -> None:
    assert tuple(plan_pb2.Precision.keys()) == ("PRECISION_UNSPECIFIED", *(name.upper() for name in PRECISIONS))
    sent = wire.encode(WorkRequest(1, 2, 3, 4, "w4"))
    assert fleet_pb2.WorkRequest.FromString(sent).precision == plan_pb2.W4
    assert b"w4" not in sent.lower()


@pytest.mark.parametrize("number", [0, 5, 99])
def test_no_precision_and_an_unknown_one_are_refused(number: int) -> None:
    with pytest.raises(wire.WireError, match=f"Precision {number} is not known"):
        wire.decoder(WorkRequest)(fleet_pb2.WorkRequest(precision=number).SerializeToString())  # type: ignore[arg-type]


def test_digests_keep_the_order_of_their_bytes_and_zeros_are_not_none() -> None:
    entry = Entry(1, 2, 3, (), bytes(range(32)))
    assert ledger_pb2.Entry.FromString(wire.encode(entry)).digest.word0 == 0x0706050403020100
    assert wire.decoder(Entry)(wire.encode(entry)).digest == bytes(range(32))
    for digest in (None, bytes(32)):
        assert wire.decoder(Entry)(wire.encode(dataclasses.replace(entry, digest=digest))).digest == digest


@pytest.mark.parametrize("length", [0, 8, 31, 33, 64])
def test_a_digest_of_another_length_is_not_sent(length: int) -> None:
    with pytest.raises(ValueError, match=r"unpack|multiple"):
        wire.encode(Entry(1, 2, 3, (), bytes(length)))


@given(MESSAGES[Report])
def test_the_same_report_is_the_same_bytes(report: Report) -> None:
    assert wire.encode(report) == wire.encode(wire.decoder(Report)(wire.encode(report)))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_text_of_the_other_side_moves_no_cursor_and_begins_no_line(said: str) -> None:
    found = wire.decoder(WorkReply)(fleet_pb2.WorkReply(reason=said).SerializeToString()).reason
    assert found.isprintable()
    assert len(found) == len(said)
    assert found == said or not said.isprintable()


# --- what a device can say ---


def fields(descriptor: Descriptor, seen: set[str]) -> list[FieldDescriptor]:
    """Of the message and of all messages inside it. seen: names of the messages visited."""
    if descriptor.full_name in seen:
        return []
    seen.add(descriptor.full_name)
    return [inner for field in descriptor.fields for inner in (field, *(fields(field.message_type, seen) if field.message_type else ()))]


def holding_text(descriptor: Descriptor, seen: set[str]) -> set[str]:
    return {
        field.full_name for field in fields(descriptor, seen) if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    }


def test_nothing_that_a_device_sends_has_a_field_that_could_hold_text() -> None:
    service, seen = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"], set[str]()
    assert [name for method in service.methods for name in holding_text(method.input_type, seen)] == []
    names = ("EnrolRequest", "JoinRequest", "FileRequest", "CatchUpRequest", "CheckpointRequest", "WorkRequest", "Report")
    names += ("Spent", "Digest", "Shape", "Profile")
    assert seen == {f"edge_zo.v1.{name}" for name in names}


def test_the_walk_would_find_such_a_field() -> None:
    assert "edge_zo.v1.JoinReply.run_name" in holding_text(fleet_pb2.JoinReply.DESCRIPTOR, set())
    assert holding_text(ledger_pb2.Checkpoint.DESCRIPTOR, set()) == {"edge_zo.v1.GroupValues.values"}


def test_the_calls_are_those_of_the_service() -> None:
    declared = {m.name: (m.input_type.name, m.output_type.name) for m in fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].methods}
    assert declared == {method.name: (method.request.__name__, method.reply.__name__) for method in wire.METHODS}


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_has_the_fields_of_its_dataclass_in_order(kind: type) -> None:
    modules = (fleet_pb2, report_pb2, ledger_pb2)
    message = next(getattr(module, kind.__name__) for module in modules if hasattr(module, kind.__name__))
    assert [field.name for field in message.DESCRIPTOR.fields] == [field.name for field in dataclasses.fields(kind)]
