"""A whole agent as a guest: it pauses for every reason, says so, is stopped soon, goes on, and ends with the fleet's parameters."""

import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Bundles
from local_coordinator import LocalCoordinator
from test_daemon import working
from waiting import wait_until

from coordinator.bench import tiny_models
from coordinator.config import Round
from coordinator.demo import shares
from coordinator.service import Service
from edge_agent import memory
from edge_agent.config import AgentConfig
from edge_agent.daemon import Daemon
from edge_agent.flash import DailyBudget, WriteBudget
from edge_agent.governor import Governor
from edge_agent.guest_config import Memory, Network
from edge_agent.manners import Policy
from edge_agent.manners.policies import Flash, Heat, Hours, Power, Throttling, Traffic
from edge_agent.pressure import Line
from edge_agent.sensors import Battery, Throttle
from edge_agent.solo import Solo
from edge_agent.solo_config import SoloConfig
from edge_agent.status import told as told_status
from edge_agent.windows import parse
from zo.bundle import Bundle
from zo.errors import DataError, DoesNotFit
from zo.manifest import FILE
from zo.messages import FileChunk, FileRequest, Report, ReportReply
from zo.recipe import Probe


@dataclasses.dataclass
class House:
    """What the fake sensors say; a test changes it while the agent works."""

    degrees: float = 20.0
    flags: int = 0
    battery: Battery = dataclasses.field(default_factory=lambda: Battery(100, True))
    now: datetime = datetime(2026, 3, 2, 23, 0)
    clock: float = 0.0
    traffic: DailyBudget = dataclasses.field(init=False)
    flash: WriteBudget = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.traffic = DailyBudget(1e9, clock=lambda: self.clock)
        self.flash = WriteBudget(1e9, clock=lambda: self.clock)

    def policies(self) -> list[Policy]:
        return [
            Heat(lambda: self.degrees, 80, 70),
            Throttling(lambda: Throttle(self.flags), lambda: self.clock),
            Power(lambda: self.battery, 50),
            Hours([parse("22:00-06:00")], lambda: self.now),
            Traffic(self.traffic),
            Flash(self.flash, lambda: 10_000),
        ]


TROUBLES: dict[str, tuple[Callable[[House], None], Callable[[House], None], str]] = {
    "hot": (lambda h: setattr(h, "degrees", 90.0), lambda h: setattr(h, "degrees", 60.0), "it is hot: 90 °C"),
    "throttled": (
        lambda h: setattr(h, "flags", 4),
        lambda h: [setattr(h, "flags", 0), setattr(h, "clock", 100.0)],  # type: ignore[arg-type,return-value]
        "the board is held back: throttled",
    ),
    "on battery": (
        lambda h: setattr(h, "battery", Battery(30, False)),
        lambda h: setattr(h, "battery", Battery(30, True)),
        "on battery, 30 % left",
    ),
    "outside its hours": (
        lambda h: setattr(h, "now", datetime(2026, 3, 2, 12, 0)),
        lambda h: setattr(h, "now", datetime(2026, 3, 2, 22, 0)),
        "Mon 12:00 is outside the hours allowed",
    ),
    "network spent": (lambda h: h.traffic.spend(6e8), lambda h: setattr(h, "clock", 86400.0), "the bytes of the network are spent"),
}


class Housed(Daemon):
    """Its policies read the house."""

    house: House

    def policies(self) -> list[Policy]:
        return self.house.policies()


Make = Callable[..., Housed]
ROUND = Round(1, 1, 30.0)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """make(address, house, **settings): an agent that reads the sensors of that house."""
    made: list[Daemon] = []

    def agent(address: str, house: House, **changed: Any) -> Housed:
        shares.write(tmp_path / "data" / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30))
        given = {"data": str(tmp_path / "data"), "coordinator": address, "state": str(tmp_path / "state"), "insecure_loopback": True}
        made.append(type("", (Housed,), {"house": house})(AgentConfig(**given | changed), threading.Event()))
        return made[-1]  # type: ignore[return-value]

    yield agent
    for each in made:
        each._stop.set()
        each.state.close()


def written(agent: Daemon) -> dict[str, Any]:
    return json.loads((agent.state.folder / "status.json").read_text())


@pytest.mark.parametrize("trouble", TROUBLES)
def test_it_pauses_says_why_and_goes_on_to_the_end(trouble: str, bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    begin, end, reason = TROUBLES[trouble]
    house = House()
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", rounds=10**6, round=ROUND) as coordinator:
        agent = make(coordinator.address, house)
        with working(agent):
            wait_until(lambda: agent._reports > 2)
            begin(house)
            wait_until(lambda: written(agent)["state"] == "paused")
            assert reason in written(agent)["held_back"]
            assert f"held back: {written(agent)['held_back']}" in told_status(written(agent) | {"alive": True})
            sent = agent._reports
            time.sleep(0.5)
            assert agent._reports <= sent + 1
            end(house)
            wait_until(lambda: agent._reports > sent + 2)
            assert agent.status.facts["held_back"] == ""
            began = time.monotonic()
            begin(house)
            wait_until(lambda: agent.status.facts["state"] == "paused")
        assert time.monotonic() - began < 5.0
        assert written(agent)["state"] == "stopped"


def test_with_the_disk_budget_spent_it_trains_on_and_says_so(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    house = House()
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", rounds=10**6, round=ROUND) as coordinator:
        agent = make(coordinator.address, house)
        with working(agent):
            wait_until(lambda: agent._reports > 2)
            house.flash.spend(6e8)
            wait_until(lambda: "the bytes of the disk are spent" in agent.status.facts.get("held_back", ""))
            sent = agent._reports
            wait_until(lambda: agent._reports > sent + 2)
            house.clock = 86400.0
            wait_until(lambda: agent.status.facts["held_back"] == "")


class Spending(Service):
    """Keeps reports."""

    reports: list[Report]

    async def send_report(self, report: Report) -> ReportReply:
        self.__dict__.setdefault("reports", []).append(report)
        return await super().send_report(report)


class Squeezed(Housed):
    """Memory is over the hard line in the middle of some probes."""

    def _prepare(self, bundle: Bundle) -> None:
        super()._prepare(bundle)
        self.looks = 0
        governor = Governor(1, [self._line], self.trainer.engine.trim)
        self.guest.govern(self.trainer.engine, governor)

    def _line(self) -> Line:
        self.looks += 1
        return Line("cgroup a", 101 if self.looks % 9 in (5, 6) else 1, 80, 100)


def test_probes_given_up_are_reported_as_less_work_and_leave_no_trace(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(
        bert_bundle, tmp_path / "run.sqlite", Spending, rounds=8, round=ROUND, probe=Probe(directions=8, examples=4)
    ) as coordinator:
        agent = make(coordinator.address, House())
        agent.__class__ = type("", (Squeezed,), {"house": House()})
        agent.guest.LOOK = 0.0
        with working(agent) as thread:
            thread.join(60)
            assert not thread.is_alive()
        digest = coordinator.call(lambda service: service.rounds.ledger.parameters.digest())
        reports = coordinator.call(lambda service: service.reports)
        assert agent._following.replica.parameters.digest() == digest
        assert written(agent)["memory"]["abandoned"] > 0
    partial = [report for report in reports if report.dropped]
    assert partial
    assert all(0 < report.dropped < 8 for report in partial)
    assert all(report.spent.milliseconds > 0 and report.spent.peak_memory_mib > 10 for report in reports)


class Asked(Service):
    """Notes which files were asked for."""

    async def fetch_file(self, request: FileRequest) -> FileChunk:
        self.__dict__.setdefault("asked", set()).add(request.file)
        return await super().fetch_file(request)


def test_what_cannot_fit_is_refused_before_more_than_the_manifest_is_fetched(bundles: Bundles, make: Make, tmp_path: Path) -> None:
    bundle = bundles("bert", precision="int8,fp32")
    with LocalCoordinator(bundle, tmp_path / "run.sqlite", Asked) as coordinator:
        agent = make(coordinator.address, House(), memory=Memory("20MB"))
        with pytest.raises(DoesNotFit) as caught:
            agent.run()
        assert coordinator.call(lambda service: service.asked) == {0}
        assert coordinator.call(lambda service: service.rounds.run) is not None
    told = str(caught.value)
    assert "needs" in told
    assert "imports" in told
    assert "17 MB are allowed" in told
    wanted = told.split("--memory.budget ")[1].split(",")[0]
    assert memory.fitting(bundle.manifest, ["int8"], AgentConfig("d", memory=Memory(wanted))) == ["int8"]
    assert {path.name for path in (tmp_path / "state").glob("bundles/*/*")} == {FILE}


def test_a_base_that_does_not_fit_is_no_candidate_and_the_refusal_names_one_that_does(bundles: Bundles) -> None:
    manifest = bundles("bert", precision="fp32,w4").manifest
    model = dataclasses.replace(manifest.dimensions, blocks=100, width=1024, feed_forward=4096)
    large = dataclasses.replace(manifest, model=model)
    config = AgentConfig("d", memory=Memory("2GB"))
    assert memory.fitting(large, ["fp32", "w4"], config) == ["w4"]
    with pytest.raises(DoesNotFit, match=r"base fp32 needs 5\.\d+ GB .*1\.70 GB are allowed; --precision w4 fits"):
        memory.fitting(large, ["fp32"], config)


def test_a_bundle_of_an_earlier_version_is_watched_though_it_cannot_be_planned(
    bert_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    bare = dataclasses.replace(bert_bundle.manifest, model=None)
    assert memory.fitting(bare, ["fp32"], AgentConfig("d", memory=Memory("20MB"))) == ["fp32"]
    assert "watched, but not planned" in caplog.text


def test_calibration_is_kept_and_not_made_again(bert_bundle: Bundle, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", rounds=2, round=ROUND) as coordinator:
        for _ in range(2):
            agent = make(coordinator.address, House(), memory=Memory("700MB"))
            agent.run()
    assert len([message for message in caplog.messages if message.startswith("memory of ")]) == 1
    assert agent.state.memory()["imports"] > 10**7


def test_where_memory_is_ample_nothing_is_measured(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", rounds=2, round=ROUND) as coordinator:
        agent = make(coordinator.address, House(), memory=Memory("100GB"))
        agent.run()
    assert agent.state.memory() == {}


def test_what_is_sent_and_received_is_counted_and_goes_on_after_a_restart(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    with LocalCoordinator(bert_bundle, tmp_path / "run.sqlite", rounds=2, round=ROUND) as coordinator:
        agent = make(coordinator.address, House(), network=Network(1e9))
        agent.run()
        size = sum(path.stat().st_size for path in bert_bundle.folder.iterdir())
        first = agent.traffic.spent
        assert size < first < 2 * size
        again = make(coordinator.address, House(), network=Network(1e9))
        assert again.traffic.spent == pytest.approx(first)
        again.run()
        assert 0 < again.traffic.spent - first < size / 2


def test_starts_that_send_nothing_keep_the_count_of_the_network(bert_bundle: Bundle, make: Make, tmp_path: Path) -> None:
    agent = make("127.0.0.1:1", House(), network=Network(1e6))
    agent.contact.spend(400_000)
    agent.status.write()
    agent.state.close()
    for _ in range(2):
        failing = make("127.0.0.1:1", House(), network=Network(1e6), data=str(tmp_path / "nowhere"))
        with pytest.raises(DataError):
            failing.run()
    given = {"data": str(tmp_path / "nowhere"), "bundle": str(bert_bundle.folder), "state": str(agent.state.folder), "rounds": 3}
    with pytest.raises(DataError):
        Solo(SoloConfig(**given), threading.Event()).run()
    left = make("127.0.0.1:1", House(), network=Network(1e6)).traffic
    assert left.spent == 400_000
    assert left.left == pytest.approx(100_000, abs=1000)


def test_the_setting_that_a_refusal_names_fits(bert_bundle: Bundle, tmp_path: Path) -> None:
    shares.write(tmp_path / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30))

    def train(budget: int) -> subprocess.CompletedProcess[str]:
        flags = [f"--bundle={bert_bundle.folder}", f"--data={tmp_path / 'a.jsonl'}", "--rounds=2", f"--memory.budget={budget}MB"]
        command = [sys.executable, "-m", "edge_agent.cli", "train", "--local", *flags, f"--state={tmp_path / str(budget)}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    refused = train(50)
    named = re.search(r"the nearest that fits is --memory.budget (\d+)MB", refused.stderr)
    assert refused.returncode == DoesNotFit.exit_code
    assert named is not None
    fits = train(int(named[1]) + 3)  # from one process to the next it differs by as much
    assert fits.returncode == 0, fits.stderr


def test_a_device_alone_minds_its_house_too(bert_bundle: Bundle, tmp_path: Path) -> None:
    shares.write(tmp_path / "a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30))
    given = {"data": str(tmp_path / "a.jsonl"), "bundle": str(bert_bundle.folder), "state": str(tmp_path / "state"), "rounds": 3}
    with pytest.raises(DoesNotFit, match="are allowed"):
        Solo(SoloConfig(**given, memory=Memory("20MB")), threading.Event()).run()
    Solo(SoloConfig(**given), threading.Event()).run()
    facts = json.loads((tmp_path / "state/status.json").read_text())
    assert facts["memory"]["rows"] > 0
