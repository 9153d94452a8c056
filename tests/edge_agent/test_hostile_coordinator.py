"""What a coordinator that means harm can do to a device: waste its time, and nothing else."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent import download, plan_limits
from edge_agent.config import AgentConfig
from edge_agent.data import Dataset
from edge_agent.guest import Guest
from edge_agent.precision import Chooser
from edge_agent.state import State
from edge_agent.work import work
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import BundleError, RunRefused, StorageError
from zo.estimators import Grid
from zo.messages import FileChunk, FileRequest, JoinReply
from zo.plan import Node, ProbeSize, WorkPlan

PIECE = 1 << 16


class Liar:
    """Answers for a coordinator that announces a bundle, and hands out what it likes."""

    def __init__(self, files: dict[str, bytes], size: int | None = None) -> None:
        self.files, self.size, self.sent = files, size, 0

    def ask(self, request: FileRequest) -> FileChunk:
        content = list(self.files.values())[request.file]
        piece = content[request.offset : request.offset + PIECE] if self.size is None else bytes(PIECE)
        self.sent += len(piece)
        return FileChunk(piece, len(content) if self.size is None else self.size)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "outside").write_text("untouched")
    made = tmp_path / "state"
    made.mkdir()
    yield made
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "state"}
    assert (tmp_path / "outside").read_text() == "untouched"


def fetched(liar: Liar, state: Path, names: tuple[str, ...] = (), digest: bytes = bytes(32), **changed: Any) -> Bundle:
    joined = JoinReply(1, 0, "run", digest, names or tuple(liar.files), bytes(32))
    config, own = AgentConfig("unused", **changed), State(state / "agent", 50e6)
    try:
        return download.bundle(liar.ask, joined, state, Chooser(config, own, lambda: None), config)  # type: ignore[arg-type]
    finally:
        own.close()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\nb", "\x1b[2J", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_fetched(name: str, state: Path) -> None:
    liar = Liar({"manifest.json": b"{}", name: b"x"})
    with pytest.raises(BundleError, match="is no file name for a bundle"):
        fetched(liar, state)
    assert liar.sent == 0


@pytest.mark.parametrize("digest", [b"", b"x", bytes(31), bytes(33), bytes(4000)])
def test_a_digest_that_is_none_names_no_folder(digest: bytes, state: Path) -> None:
    with pytest.raises(BundleError, match="announces no digest"):
        fetched(Liar({"manifest.json": b"{}"}), state, digest=digest)


@pytest.mark.parametrize("size", [2**40, 2**63, 2**64 - 1])
def test_a_file_without_end_is_refused_at_its_first_piece(size: int, state: Path) -> None:
    liar = Liar({"manifest.json": b""}, size)
    with pytest.raises(StorageError, match="allow more with --bundle-bytes"):
        fetched(liar, state)
    assert liar.sent == PIECE


def test_a_file_that_the_disk_has_no_room_for_is_refused_with_the_numbers(state: Path) -> None:
    with pytest.raises(StorageError, match=r"has \d+ MB left, and manifest.json.part needs \d+ MB; make room"):
        fetched(Liar({"manifest.json": b""}, 2**62), state, bundle_bytes=2.0**63)


def test_a_file_that_grows_while_it_is_fetched_ends_at_the_limit(state: Path) -> None:
    class Growing(Liar):
        def ask(self, request: FileRequest) -> FileChunk:
            return dataclasses.replace(super().ask(request), size=request.offset + 2 * PIECE)

    liar = Growing({"manifest.json": b""}, 1)
    with pytest.raises(StorageError, match="allow more with --bundle-bytes"):
        fetched(liar, state, bundle_bytes=1e6)
    assert liar.sent <= 1e6 + PIECE


def test_bundles_that_are_announced_one_after_the_other_take_no_more_than_one_may(state: Path) -> None:
    liar = Liar({"manifest.json": bytes(40_000)})
    for number in range(5):
        with pytest.raises(BundleError):
            fetched(liar, state, digest=bytes([number] * 32), bundle_bytes=100_000)
        held = [path for path in (state / "bundles").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in held) == min(2, number + 1) * 40_000
        assert bytes([number] * 32).hex() in {path.parent.name for path in held}


def test_another_manifest_than_the_one_announced_is_refused(bert_bundle: Bundle, state: Path) -> None:
    files = {"manifest.json": (bert_bundle.folder / "manifest.json").read_bytes()}
    with pytest.raises(BundleError, match="is not the bundle that the coordinator announced"):
        fetched(Liar(files), state)


# --- plans ---

GRID = Grid(14, 2.0)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
few = st.integers(0, 4)
sizes = st.lists(st.builds(ProbeSize, st.lists(few | u32, max_size=3).map(tuple), few | u32), max_size=2).map(tuple)
nodes = st.recursive(
    st.builds(Node, few | u32, few | u64, few | u32, sizes),
    lambda inner: st.builds(Node, few | u32, few | u64, few | u32, sizes, inner, st.booleans()),
    max_leaves=4,
)
plans = st.builds(WorkPlan, u64, u64, nodes, few | u32, st.booleans(), st.booleans(), st.just(GRID), u32)


@pytest.fixture(scope="module")
def engine(bert_bundle: Bundle) -> Engine:
    return Engine(bert_bundle, bert_bundle.parameters())


@pytest.fixture(scope="module")
def dataset(bert_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    from coordinator.bench import tiny_models
    from coordinator.demo import shares

    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    shares.write(path, tiny_models.examples(tiny_models.CLASSIFICATION, 20))
    task, tokenizer = bert_bundle.manifest.task, bert_bundle.tokenizer()
    return Dataset(path, task, tokenizer, held_out_share=0.1, held_out_most=4, balanced=True)


@given(plan=plans)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_plan_is_refused_or_can_be_worked(engine: Engine, dataset: Dataset, plan: WorkPlan) -> None:
    before = engine.parameters.digest()
    try:
        plan_limits.check(plan, engine.manifest)
    except RunRefused:
        return
    if plan.root.scalars * plan.examples < 1000:
        work(plan, engine, dataset, Guest(threading.Event()))
    assert engine.parameters.digest() == before


def usual(engine: Engine, **changed: Any) -> WorkPlan:
    """A plan of one level."""
    lowest = next(place for place, stage in enumerate(engine.manifest.stages) if stage.groups)
    groups = tuple(group.id for group in engine.manifest.groups)
    root = Node(lowest, 5, 2, (ProbeSize(groups, 12),))
    given = {"round": 1, "entry": 0, "root": root, "examples": 4, "measure_held_out": False, "want_digest": False, "grid": GRID, "id": 1}
    return WorkPlan(**given | changed)


def test_an_honest_plan_is_worked(engine: Engine, dataset: Dataset) -> None:
    plan = usual(engine)
    plan_limits.check(plan, engine.manifest)
    assert work(plan, engine, dataset, Guest(threading.Event())).scalars.shape == (2,)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda plan: {"examples": 0}, "a batch of 0 examples"),
        (lambda plan: {"examples": 2**32 - 1}, "a batch of 4294967295 examples"),
        (lambda plan: {"root": dataclasses.replace(plan.root, count=0)}, "must be at least 1 each"),
        (lambda plan: {"root": dataclasses.replace(plan.root, count=2**32 - 1)}, "at most 4096 multiplied"),
        (lambda plan: {"root": dataclasses.replace(plan.root, stage=2**32 - 1)}, "parts that begin at stages"),
        (lambda plan: {"root": dataclasses.replace(plan.root, probe_sizes=())}, "groups .* in stages"),
        (lambda plan: {"root": dataclasses.replace(plan.root, probe_sizes=(ProbeSize((2**32 - 1,), 1),))}, "groups .* in stages"),
        (lambda plan: {"root": dataclasses.replace(plan.root, probe_sizes=plan.root.probe_sizes * 2)}, "groups .* in stages"),
        (lambda plan: {"root": dataclasses.replace(plan.root, first_seed=2**64 - 1)}, "do not fit 64 bits"),
        (lambda plan: {"root": dataclasses.replace(plan.root, child=plan.root)}, "cuts|parts"),
    ],
)
def test_a_plan_that_asks_too_much_is_refused_by_name(engine: Engine, wrong: Any, said: str) -> None:
    plan = usual(engine)
    with pytest.raises(RunRefused, match=said):
        plan_limits.check(dataclasses.replace(plan, **wrong(plan)), engine.manifest)


def test_a_probe_beyond_the_lattice_is_refused(engine: Engine) -> None:
    plan = usual(engine)
    size = dataclasses.replace(plan.root.probe_sizes[0], log2_e=24)
    with pytest.raises(RunRefused, match="beyond the lattice"):
        plan_limits.check(usual(engine, root=dataclasses.replace(plan.root, probe_sizes=(size,))), engine.manifest)
