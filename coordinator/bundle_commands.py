"""The commands under `edge-coordinator bundle`. Heavy imports wait until a command runs."""

import argparse
import dataclasses
import json
import secrets
import tempfile
from pathlib import Path

from zo import bundle as bundle_files
from zo import examples
from zo.consistency import MOST_ALPHA, MOST_RANK
from zo.errors import BundleError, ConfigError
from zo.manifest import PRECISIONS, TRAINABLE_SETS, Manifest, Precision

RANK, ALPHA = 8, 16.0  # of adapters, where nothing is said


def add(commands: argparse._SubParsersAction) -> None:
    """Add their parsers."""
    bundle = commands.add_parser("bundle", help="make and examine bundles").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    _add_build(bundle)
    for name, command, text in (
        ("inspect", inspect, "what a bundle holds"),
        ("verify", verify, "check every file of a bundle against its digest, and that its graphs run"),
        ("calibrate", calibrate, "measure signal, noise and bias of every probe size"),
    ):
        one = bundle.add_parser(name, help=text)
        one.add_argument("bundle", type=Path)
        one.set_defaults(command=command)
        if name == "inspect":
            one.add_argument("--json", action="store_true", help="one JSON object")
        if name == "calibrate":
            one.add_argument("--model", type=Path, help="the model folder it was built from; needed unless it has a base fp32")
            one.add_argument("--data", type=Path, help="labelled JSONL; label sentences serve if left out")
    packing = bundle.add_parser("pack", help="one .tar of a bundle folder")
    packing.add_argument("bundle", type=Path)
    packing.add_argument("archive", type=Path)
    packing.set_defaults(command=pack)
    unpacking = bundle.add_parser("unpack", help="a bundle folder of a .tar")
    unpacking.add_argument("archive", type=Path)
    unpacking.add_argument("folder", type=Path)
    unpacking.set_defaults(command=unpack)


def _add_build(commands: argparse._SubParsersAction) -> None:
    building = commands.add_parser("build", help="turn a Hugging Face folder into a bundle")
    building.add_argument("model", type=Path, help="folder with config.json, *.safetensors and tokenizer.json")
    building.add_argument("out", type=Path, help="folder to make")
    building.add_argument("--task", type=Path, help="task file, or a list of label sentences; without it: language modelling")
    building.add_argument("--max-tokens", type=int, help="cut (or split) texts at this many tokens; overrides the task file")
    building.add_argument("--trainable", choices=TRAINABLE_SETS, default="lora-fa", help="what is trained [lora-fa]")
    building.add_argument(
        "--precision",
        type=precisions,
        default="fp32",
        metavar="NAME[,NAME...]",
        help=f"of what is not trained: {', '.join(PRECISIONS)}; several make as many bases, the first the default [fp32]",
    )
    building.add_argument("--rank", type=int, help=f"of adapters [{RANK}]")
    building.add_argument(
        "--ranks",
        type=ranks,
        default=(),
        metavar="R[,R...]",
        help="of adapters in slices, as 2,4,8,16: each device trains with the rank it can bear (docs/ranks.md); instead of --rank",
    )
    building.add_argument("--alpha", type=float, help=f"adapters are scaled by alpha / rank, the largest rank [{ALPHA:g}]")
    building.add_argument("--adapter", type=Path, help="folder of Hugging Face PEFT that training begins with; for --trainable lora")
    building.add_argument("--top-blocks", type=int, help="train only so many blocks, those nearest the output; 0: the head alone [all]")
    building.add_argument("--stages", type=int, help="parts that the blocks are cut into, the head not counted [2]")
    building.add_argument("--run-key", type=int, help="32 bits from which all directions derive [random]")
    building.add_argument("--data", type=Path, help="labelled JSONL for calibration; label sentences serve if left out")
    building.set_defaults(command=build)


def build(given: argparse.Namespace) -> None:
    """bundle build MODEL OUT"""
    from coordinator import peft
    from coordinator import task as task_file
    from coordinator.build import build as builder
    from coordinator.build.layers import Training
    from zo import calibration

    task = task_file.read(given.task, given.max_tokens)
    _check_adapters(given)
    run_key = secrets.randbits(32) if given.run_key is None else given.run_key
    if not 0 <= run_key < 2**32:
        raise ConfigError(f"--run-key {run_key} must be 32 bits, unsigned")
    precision, *others = given.precision
    adapter = peft.read(given.adapter) if given.adapter else None
    rank, alpha = (adapter.rank, adapter.alpha) if adapter else (given.rank or RANK, given.alpha or ALPHA)
    training = Training(given.trainable, precision, rank, alpha, run_key, given.top_blocks, given.ranks, adapter)
    found = examples.load(given.data, task) if given.data else []
    measured = builder.build(given.model, given.out, task, training, found, given.stages, others)
    print("\n".join(f"{precision}:\n{calibration.told(found)}" for precision, found in measured.items()))
    inspect(argparse.Namespace(bundle=given.out, json=False))


def _check_adapters(given: argparse.Namespace) -> None:
    """ConfigError where the flags of adapters are impossible, or some would not count beside the others."""
    stated = {f"--{name}": value for name in ("rank", "ranks", "alpha") if (value := getattr(given, name)) not in (None, ())}
    if stated and given.trainable not in ("lora", "lora-fa"):
        raise ConfigError(
            f"{', '.join(stated)}: trainable {given.trainable!r} has no adapters; leave that out, or train 'lora-fa' or 'lora'"
        )
    if given.ranks and given.rank is not None:
        raise ConfigError(f"--rank {given.rank}: --ranks stands instead of it; leave one of them out")
    if given.adapter and (given.rank is not None or given.alpha is not None):
        raise ConfigError("--adapter has a rank and an alpha of its own; leave --rank and --alpha out")
    if given.rank is not None and not 1 <= given.rank <= MOST_RANK:
        raise ConfigError(f"--rank {given.rank} must be from 1 to {MOST_RANK}")
    if given.alpha is not None and not 0 < given.alpha <= MOST_ALPHA:
        raise ConfigError(f"--alpha {given.alpha:g} must be more than 0, and at most {MOST_ALPHA:g}")


def precisions(text: str) -> tuple[Precision, ...]:
    """Names of precisions between commas, as a flag gives them; for argparse."""
    found = tuple(known for name in text.split(",") for known in PRECISIONS if known == name.strip())
    if len(found) != text.count(",") + 1 or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"{text!r} must be one or several of {', '.join(PRECISIONS)}, each once, with commas between")
    return found


def ranks(text: str) -> tuple[int, ...]:
    """Ranks between commas, as a flag gives them; for argparse."""
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers with commas between, as 2,4,8,16") from None


def inspect(given: argparse.Namespace) -> None:
    """bundle inspect BUNDLE"""
    bundle = bundle_files.open_whole(given.bundle)
    print(json.dumps(dataclasses.asdict(bundle.manifest)) if given.json else _described(bundle.manifest, bundle.folder))


def verify(given: argparse.Namespace) -> None:
    """bundle verify BUNDLE"""
    from coordinator.build.build import calibration_batches
    from zo.engine import Engine

    bundle = bundle_files.open_whole(given.bundle)
    batch, parameters = calibration_batches(bundle, [])[0], bundle.parameters()
    losses = {precision: Engine(bundle.at(precision), parameters).forward(batch)[0] for precision in bundle.manifest.bases}
    told = ", ".join(f"{precision} {loss:.3f}" for precision, loss in losses.items())
    print(f"{given.bundle}: {len(bundle.manifest.files)} files have the digests stated; the model runs (loss on stand-in text: {told})")


def calibrate(given: argparse.Namespace) -> None:
    """bundle calibrate BUNDLE"""
    from coordinator.build import build as builder
    from coordinator.build.checkpoint import Checkpoint
    from zo import calibration

    bundle = bundle_files.open_whole(given.bundle)
    bases = bundle.manifest.bases
    if "fp32" not in bases and given.model is None:
        raise ConfigError(f"{given.bundle} has no base fp32, only {', '.join(bases)}; give the float32 model with --model FOLDER")
    if given.model is not None:
        Checkpoint(given.model)  # it is not needed beside a base fp32, and yet no other may be meant
    found = examples.load(given.data, bundle.manifest.task) if given.data else []
    batches = builder.calibration_batches(bundle, found)
    with tempfile.TemporaryDirectory() as scratch:
        exact = bundle.at("fp32") if "fp32" in bases else builder.exact_twin(bundle, given.model, Path(scratch) / "exact")
        for precision in bases:
            print(f"{precision}:\n{calibration.told(builder.calibrate(bundle.at(precision), exact, batches))}", flush=True)


def pack(given: argparse.Namespace) -> None:
    """bundle pack BUNDLE ARCHIVE"""
    if given.archive.exists():
        raise BundleError(f"{given.archive} exists already; choose another name, or remove it")
    bundle_files.pack(bundle_files.open_whole(given.bundle), given.archive)


def unpack(given: argparse.Namespace) -> None:
    """bundle unpack ARCHIVE FOLDER"""
    bundle_files.unpack(given.archive, given.folder)


def _described(manifest: Manifest, folder: Path) -> str:
    values = sum(group.size for group in manifest.groups)
    size = sum((folder / name).stat().st_size for name in manifest.files)
    lines = [
        f"{manifest.name}: {manifest.architecture}, trainable {manifest.trainable} ({values:,} values)",
        *([f"ranks: {', '.join(map(str, manifest.ranks))}, scale {manifest.alpha / manifest.rank:g}"] if manifest.ranks else []),
        f"task: {manifest.task.kind}, head {manifest.task.head}, at most {manifest.task.max_tokens} tokens",
        *(f"  label {number}: {label}" for number, label in enumerate(manifest.task.labels[:12])),
        *([f"  ... {len(manifest.task.labels)} labels"] if len(manifest.task.labels) > 12 else []),
        *(f"group {g.id} ({g.kind}): {len(g.tensors)} tensors, {g.size:,} values, unit 2**{g.log2_unit}" for g in manifest.groups),
        *(line for precision in manifest.bases for line in _base(manifest.at(precision))),
        f"run key {manifest.run_key}; {len(manifest.files)} files, {size / 1e6:.1f} MB",
    ]
    return "\n".join(lines)


def _base(manifest: Manifest) -> list[str]:
    """The base that a manifest is looked at through."""
    base = manifest.base
    return [
        f"base {manifest.precision}: {base.file}, {base.size / 1e6:.1f} MB",
        *(f"  {stage.file}: {', '.join(stage.inputs)} -> {', '.join(stage.outputs)}; groups {list(stage.groups)}" for stage in base.stages),
        *(f"  probe size of the {c.kind}: 2**{c.log2_eps} (correlation {c.correlation:.3f})" for c in base.calibration),
    ]
