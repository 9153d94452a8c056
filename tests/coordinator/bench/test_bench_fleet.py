"""The fleet whose agents hold some blocks each: on a tiny model, as real processes."""

from pathlib import Path

import pytest

from coordinator.bench import fleet, tiny_models
from zo.bundle import Bundle, open_whole
from zo.memory.engine import Device

TINY = tiny_models.BERT | {"vocab_size": 40}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fleet.random_bundle(tmp_path_factory.mktemp("fleet"), TINY)


def test_the_bundle_is_whole_and_every_block_may_be_inactive(bundle: Bundle) -> None:
    opened = open_whole(bundle.folder)
    assert set(opened.manifest.bases) == {"fp32", "w4"}
    assert opened.manifest.at("w4").optional == {0, 1, 2}


def test_a_budget_lies_between_what_so_many_blocks_need_and_one_more(bundle: Bundle) -> None:
    device = Device(1_000_000)
    for active in (1, 2):
        soft = 0.85 * fleet.budget(bundle.at("w4"), active, device)
        assert fleet.predicted(bundle.at("w4"), active, device) < soft < fleet.predicted(bundle.at("w4"), active + 1, device)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["w4", "fp32"])
def test_agents_end_with_the_same_parameters(precision: str, bundle: Bundle, tmp_path: Path) -> None:
    fleet._write_texts(tmp_path / "data.jsonl", TINY["vocab_size"])
    found = fleet.train(tmp_path / "run", bundle, tmp_path / "data.jsonl", 4, [f"--precision={precision}"] * 2)
    assert len(found.digests) == 1
    assert frozenset().union(*found.tried) >= {0, 1, 2}
    assert min(found.peaks) > 20_000_000
