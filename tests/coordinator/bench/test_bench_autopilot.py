"""Autopilot against a sweep, on a tiny model: every figure is that of its runs."""

import json
from pathlib import Path

import pytest

from coordinator.bench import autopilot, tiny_models
from coordinator.bench.autopilot import Job, Outcome, fly
from zo.bundle import Bundle
from zo.rates import default_rate


@pytest.fixture
def data(bert_bundle: Bundle, tmp_path: Path) -> Path:
    for place, (name, count) in enumerate((("train", 80), ("validation", 24), ("test", 24))):
        rows = tiny_models.examples(bert_bundle.manifest.task, count, place)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": row.text, "label": row.label}) for row in rows))
    return tmp_path


def test_a_run_tells_its_way_and_exports_nothing_worse_by_validation(bert_bundle: Bundle, data: Path) -> None:
    found = fly(Job(data, bert_bundle.folder, ("lora-fa", "fp32"), 0, 9))
    assert [probes for probes, _ in found.way][:3] == [0, 16, 32]
    assert found.validation <= found.way[0][1]
    assert found.test[0] != 0


def test_by_hand_the_settings_are_those_stated(bert_bundle: Bundle) -> None:
    by_hand = autopilot._settings(Job(Path(), bert_bundle.folder, ("lora-fa", "fp32"), 0, 9, 2.0, -2), bert_bundle)
    assert (by_hand.rate.body, by_hand.rate.head) == (2 * default_rate(bert_bundle.manifest.task),) * 2
    assert by_hand.probe.log2_eps_body == bert_bundle.manifest.log2_eps("body") - 2
    assert autopilot._settings(Job(Path(), bert_bundle.folder, ("lora-fa", "fp32"), 0, 9), bert_bundle).rate.body == "auto"


def test_the_figures_are_summed_up_by_data_set_and_case() -> None:
    case = ("lora-fa", "int8")
    way = ((0, 1.0), (16, 0.6), (32, 0.45), (48, 0.4))
    alone = [Outcome(Job(Path("a"), Path(), case, seed, 3), (1.0, after), 0.4, way, ()) for seed, after in enumerate((0.5, 1.2))]
    swept = (
        (1.0, 0, 0.5),
        (2.0, 0, 0.3),
        (2.0, 1, 0.34),
        (4.0, 0, 0.2),
        (4.0, 1, 0.6),
    )  # the luckiest run is of x 4, the best setting is x 2
    by_hand = [Outcome(Job(Path("a"), Path(), case, seed, 3, rate, 0), (1.0, 0.5), loss, way, ()) for rate, seed, loss in swept]
    found = autopilot._summed([*alone, *by_hand])
    assert found["worse_than_start"] == 1
    assert found["loss_over_best_sweep"] == {"median": 1.255, "worst": 1.333}  # 0.4 / 0.3 and 0.4 / 0.34
    assert "loss_over_best_sweep" not in autopilot._summed(alone)
    assert found["probes_to_90_percent_of_gain"] == 32  # 1 - 0.9 * 0.6 = 0.46
    told = autopilot.told(found)
    assert "worse than the start: 1 of 2 runs" in told
    assert "x 2     +0    1  0.3400" in told
