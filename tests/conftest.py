"""Tiny models and the bundles made of them: each is built once a session, when a test first asks for it."""

import dataclasses
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from coordinator.bench import tiny_models
from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.demo import shares
from zo.bundle import Bundle, open_bundle, open_whole
from zo.examples import Example

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore, and their processes with them

pytest_plugins = ["made_rounds"]  # fixtures of rounds told by hand

RANK, ALPHA, RUN_KEY = 4, 8.0, 7

Bundles = Callable[..., Bundle]


def base_tensors(bundle: Bundle) -> dict[str, np.ndarray]:
    """The frozen weights of the base that a bundle is looked at through."""
    return load_file(bundle.folder / bundle.manifest.base.file)


def recalibrated(bundle: Bundle, folder: Path, precision: str, **changed: Any) -> Bundle:
    """A copy of a bundle with several bases, in which calibration says otherwise of one of them."""
    shutil.copytree(bundle.folder, folder)
    base = bundle.at(precision).manifest.base
    base = dataclasses.replace(base, calibration=tuple(dataclasses.replace(each, **changed) for each in base.calibration))
    dataclasses.replace(bundle.manifest, bases=bundle.manifest.bases | {precision: base}).write(folder)
    return open_whole(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folders(model): a Hugging Face folder of one of `tiny_models.MODELS`; tests must not change it."""

    @cache
    def folder(model: str) -> Path:
        config, weights, _ = tiny_models.MODELS[model]
        return tiny_models.save(tmp_path_factory.mktemp("models") / model, config, weights)

    return folder


@pytest.fixture(scope="session")
def bundles(folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """bundles(model, trainable="lora-fa", precision="fp32", ...): built and calibrated; tests must not change it.

    precision: of one base, or "int8,fp32". stages: of the blocks; the usual two if left out. ranks: of adapters in slices, at the
    same scale as others.
    """

    @cache
    def bundle(
        model: str,
        trainable: str = "lora-fa",
        precision: str = "fp32",
        top_blocks: int | None = None,
        stages: int | None = None,
        ranks: tuple[int, ...] = (),
    ) -> Bundle:
        out, task = tmp_path_factory.mktemp("bundles") / f"{model}-{trainable}-{precision}", tiny_models.MODELS[model][2]
        first, *others = precision.split(",")
        alpha = ALPHA / RANK * ranks[-1] if ranks else ALPHA
        training = Training(trainable, first, RANK, alpha, RUN_KEY, top_blocks, ranks)
        build(folders(model), out, task, training, tiny_models.examples(task), stages, others)
        return open_bundle(out)

    return bundle


@pytest.fixture(scope="session")
def bert_bundle(bundles: Bundles) -> Bundle:
    """BERT with prototypes, `lora-fa`, fp32."""
    return bundles("bert")


@pytest.fixture(scope="session")
def llama_bundle(bundles: Bundles) -> Bundle:
    """Tied Llama, `lora-fa`, fp32."""
    return bundles("llama-tied")


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    """A file of thirty examples, of which one label in ten is not 0."""
    path = tmp_path / "validation.jsonl"
    shares.write(path, [Example(text, int(number % 10 == 0)) for number, text in enumerate(tiny_models.sentences(30))])
    return path
