"""What several benchmarks train: a model, a data set, a bundle; by the options that name them."""

import argparse
from pathlib import Path

from coordinator.build.build import build
from coordinator.build.layers import Training
from coordinator.demo import household
from coordinator.demo.packaged import packaged_model
from zo import examples
from zo.bundle import Bundle, open_bundle
from zo.manifest import Task


def add_data(parser: argparse.ArgumentParser, text: str = "folder with train, validation .jsonl and labels.json") -> None:
    """Add --data."""
    parser.add_argument("--data", type=Path, required=True, help=text)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add --model, which `model` reads."""
    parser.add_argument("--model", type=Path, help="Hugging Face folder [all-MiniLM-L6-v2 from a package]")


def model(given: argparse.Namespace) -> Path:
    """The folder of the model asked for. ConfigError where none is named and the package is not installed."""
    return given.model or packaged_model()


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add --bundle, which `bundle` reads."""
    parser.add_argument("--bundle", type=Path, help="folder of a bundle [all-MiniLM-L6-v2, lora]")


def bundle(given: argparse.Namespace, folder: Path) -> Path:
    """The folder of the bundle asked for; where none is named, all-MiniLM-L6-v2 with A and B of its adapters trained, in `folder`."""
    if given.bundle:
        return given.bundle
    task = Task("classification", 32, "prototypes", tuple(household.generate(0, 1).labels))
    build(packaged_model(), folder / "bundle", task, Training("lora", "fp32", run_key=0), [])
    return folder / "bundle"


def build_bundle(model: Path, folder: Path, data: Path, task: Task, training: Training, stages: int | None = None) -> Bundle:
    """A bundle calibrated on the validation file. stages: that the blocks are cut into."""
    build(model, folder, task, training, examples.read(data / "validation.jsonl", task).examples, stages)
    return open_bundle(folder)
