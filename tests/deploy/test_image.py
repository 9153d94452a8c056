"""The arm64 image, as it would be on a Raspberry Pi 4 but for the speed: golden vectors, and training with an x86-64 coordinator."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arm64 import Image, emulated, packages, size
from fleets import joined, serving
from machine import ROOT, lacks
from waiting import wait_until

from coordinator.bench import tiny_models
from coordinator.config import Round
from coordinator.demo import shares
from edge_agent.config import AgentConfig
from edge_agent.daemon import Daemon
from zo.bundle import Bundle

WHY_NOT = lacks("mmdebstrap", "arch-test", "buildah", "unshare") or emulated()
pytestmark = [pytest.mark.machine, pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
CHECK = ["CMD", "edge-agent", "status", "--state", "/state", "--check"]
GOLDEN = ("zo/test_directions.py", "zo/test_kernel.py", "coordinator/test_parity.py")
PYTEST = ("pytest", "iniconfig", "pluggy", "pygments", "hypothesis", "sortedcontainers", "onnx", "ml_dtypes", "typing_extensions")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    made = Image(tmp_path_factory.mktemp("image"))
    yield made
    made.remove()


def test_it_is_small_unprivileged_and_silent(image: Image) -> None:
    layers = size(image.root) - image.base_bytes
    print(f"our layers: {layers / 1e6:.0f} MB")
    assert layers < 300e6
    told = image.config()
    config = told["config"]
    assert (told["architecture"], config["User"], config["Entrypoint"]) == ("arm64", "10001:10001", ["edge-agent"])
    assert "ORT_DISABLE_TELEMETRY=1" in config["Env"]
    assert config["Healthcheck"]["Test"] == CHECK
    assert (image.root / "state").stat().st_uid == 10001


def test_golden_vectors(image: Image, tmp_path: Path) -> None:
    site, log = packages(tmp_path / "site", *PYTEST), tmp_path / "log"
    binds = {ROOT / "tests": "/source/tests", site: "/site"}
    paths = {"PYTHONPATH": "/opt/edge-agent/lib:/site", "PYTHONSAFEPATH": 1, "PYTHONDONTWRITEBYTECODE": 1, "HOME": "/tmp"}
    options = ("--rootdir=/source/tests", "-c", "/dev/null", "-p", "no:cacheprovider", "-o", "pythonpath=/source/tests")
    tests = [f"/source/tests/{each}" for each in GOLDEN]
    check = "import platform, zo.kernel; assert platform.machine() == 'aarch64' and zo.kernel.COMPILED and zo.__file__.startswith('/opt')"
    assert image.start("python3", "-c", check, binds={}, log=log, **paths).wait(120) == 0, log.read_text()
    process = image.start("python3", "-m", "pytest", *options, "-k", "not stories and not minilm", *tests, binds=binds, log=log, **paths)
    code = process.wait(900)
    print(log.read_text())
    assert code == 0


def check(image: Image, folder: Path) -> int:
    """Exit code of the health check."""
    return image.start(*CHECK[1:], binds={}, log=folder / "check").wait(120)


def test_two_rounds_with_an_x86_coordinator_end_with_equal_digests(image: Image, bert_bundle: Bundle, tmp_path: Path) -> None:
    shares.write(tmp_path / "data/a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30, seed=1))
    shares.write(tmp_path / "here/a.jsonl", tiny_models.examples(tiny_models.CLASSIFICATION, 30, seed=2))
    log, config = tmp_path / "log", image.config()["config"]
    place: dict[str, Any] = {"binds": {tmp_path / "data": "/data"}} | dict(each.split("=", 1) for each in config["Env"])
    with serving(tmp_path, bert_bundle, rounds=2, round=Round(2, 2, 300.0)) as (fleet, coordinator):
        agent = image.start(*config["Entrypoint"], *config["Cmd"], log=log, **place)
        wait_until(lambda: (image.root / "state/status.json").exists(), 120)
        assert check(image, tmp_path) == 0  # it waits to be joined
        joining = image.start("edge-agent", "join", fleet.create_token(1, 600).text, log=tmp_path / "joining", **place)
        assert joining.wait(120) == 0, (tmp_path / "joining").read_text()
        joined(fleet, tmp_path / "state")
        here = Daemon(AgentConfig(str(tmp_path / "here"), state=str(tmp_path / "state")), threading.Event())
        here.run()
        assert agent.wait(300) == 0, log.read_text()
        wanted = coordinator.call(lambda service: service.rounds.ledger.replica.parameters.digest().hex())
    assert check(image, tmp_path) == 1  # it has ended
    status = json.loads((image.root / "state/status.json").read_text())
    assert (status["state"], status["reports"], status["entry"]) == ("finished", 2, 2)
    assert wanted == status["digest"] == here.status.facts["digest"] != bert_bundle.parameters().digest().hex()
    assert not (image.root / "state/.cache").exists()  # where onnxruntime's telemetry would keep its things
