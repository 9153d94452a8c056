"""Building a bundle: draft every base, fill in prototypes, prove every trainable tensor live, calibrate, seal."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coordinator.build import chain
from coordinator.build.checkpoint import Checkpoint
from coordinator.build.layers import Training
from zo import calibration, quantised
from zo.batches import Batch, collate, encode
from zo.bundle import TRAINABLE, Bundle, file_digest
from zo.disk import made_whole
from zo.engine import Engine
from zo.errors import BundleError, DataError
from zo.examples import Example
from zo.lattice import snap
from zo.manifest import Calibration, Precision, Task
from zo.parameters import Parameters
from zo.planning import kinds

STAGES = 2
DIRECTIONS = 12  # for calibration, a batch
BATCHES = 2
BATCH = 8
CALIBRATION_TOKENS = 32  # longer examples are cut: probe sizes hardly depend on length, seconds do


def build(
    model: Path,
    out: Path,
    task: Task,
    training: Training,
    examples: Sequence[Example],
    stages: int | None = None,
    others: Sequence[Precision] = (),
) -> dict[Precision, list[Calibration]]:
    """Make a bundle at `out` (which must not exist); returns what calibration measured, by base.

    examples: for calibration and the proof that every tensor is live; without any, the label sentences or a
    stretch of vocabulary serve. others: precisions of further bases; that of `training` is the default. BundleError names
    what does not fit.
    """
    checkpoint = Checkpoint(model)
    with made_whole(out) as made:
        wanted: tuple[Precision, ...] = (training.precision, *others)
        bundle = draft(checkpoint, made, task, training, (*wanted, "fp32"), stages, out.name)
        exact = bundle.at("fp32")
        _fill_prototypes(exact)
        batches = calibration_batches(bundle, examples)
        measured = {}
        for each in map(bundle.at, wanted):
            prove_live(each, batches[0])
            measured[each.manifest.precision] = calibrate(each, exact, batches)
        seal(bundle, measured)
    return measured


def calibrate(bundle: Bundle, reference: Bundle, batches: Sequence[Batch]) -> list[Calibration]:
    """Every candidate eps of every kind of group. reference: the same model in float32."""
    engine = Engine(bundle, bundle.parameters())
    exact = engine if reference == bundle else Engine(reference, reference.parameters())
    return [m for kind in kinds(bundle.manifest) for m in calibration.measure(engine, exact, kind, batches, DIRECTIONS)]


def exact_twin(bundle: Bundle, model: Path, folder: Path) -> Bundle:
    """A float32 bundle of the model that `bundle` was built from, for calibration; it has no calibration of its own."""
    manifest, checkpoint = bundle.manifest, Checkpoint(model)
    slices = max(1, len(manifest.ranks))
    trained = min(sum(group.kind == "body" for group in manifest.groups) // slices, _blocks(checkpoint))  # another model may have fewer
    training = Training(manifest.trainable, "fp32", manifest.rank, manifest.alpha, manifest.run_key, trained, manifest.ranks)
    twin = draft(checkpoint, folder, manifest.task, training, ("fp32",), None, manifest.name)
    if [group.tensors for group in twin.manifest.groups] != [group.tensors for group in manifest.groups]:
        raise BundleError(f"{model} is not the model that {bundle.folder} was built from")
    chain.write_trainable(folder, twin.manifest.groups, bundle.initial_tensors())
    return twin


def seal(bundle: Bundle, measured: Mapping[Precision, Sequence[Calibration]]) -> None:
    """Write the manifest with the chosen probe sizes and the digest of every file; a base that was not measured goes."""
    bases = bundle.manifest.bases
    for name in {name for precision, base in bases.items() if precision not in measured for name in base.files}:
        (bundle.folder / name).unlink()
    kept = {precision: dataclasses.replace(bases[precision], calibration=calibration.choose(m)) for precision, m in measured.items()}
    dataclasses.replace(bundle.manifest, bases=kept, files=chain.digests(bundle.folder)).write(bundle.folder)


def calibration_batches(bundle: Bundle, examples: Sequence[Example]) -> list[Batch]:
    """BATCHES batches of examples with every class in them, or of stand-ins where none are given."""
    task, tokenizer = bundle.manifest.task, bundle.tokenizer()
    if not examples:
        examples = _stand_ins(bundle)
    order = np.random.default_rng(0).permutation(len(examples))
    by_class: dict[int | None, list[int]] = {}
    for place in order:
        by_class.setdefault(examples[place].label, []).append(int(place))
    turns = [rows[turn] for turn in range(max(map(len, by_class.values()))) for rows in by_class.values() if turn < len(rows)]
    wanted, short = BATCH * BATCHES, dataclasses.replace(task, max_tokens=min(task.max_tokens, CALIBRATION_TOKENS))
    rows = [row for place in turns[:wanted] for row in encode(examples[place], short, tokenizer)][:wanted]
    if not rows:
        raise DataError("none of the calibration examples has two tokens; give longer texts with --data, or none")
    return [collate(rows[start : start + BATCH], short) for start in range(0, max(1, len(rows) // BATCH * BATCH), BATCH)]


def prove_live(bundle: Bundle, batch: Batch) -> None:
    """BundleError unless a change of every single trainable tensor changes what the model says, at the start.

    A tensor of zeros is a random one there, lest it hides another; a larger part would be changed beyond what attention can tell apart.
    """
    generator = np.random.default_rng(1)
    start = bundle.initial_tensors()
    tensors = {name: values if values.any() else generator.choice([-0.0625, 0.0625], values.shape) for name, values in start.items()}
    parameters = _at(bundle, tensors)
    engine = Engine(bundle, parameters)
    before = engine.forward(batch)[1]
    for name, values in tensors.items():
        live = parameters.tensor(name)
        kept = live.copy()
        live += np.linspace(0.25, 0.5, live.size, dtype=np.float32).reshape(live.shape) * float(np.abs(values).max())
        if np.array_equal(engine.forward(batch)[1], before):
            raise BundleError(
                f"changing trainable tensor {name!r} does not change the logits; this is an error in the architecture's builder"
            )
        live[...] = kept


def _at(bundle: Bundle, tensors: dict[str, np.ndarray]) -> Parameters:
    groups = bundle.manifest.groups
    snapped = {tensor.name: snap(tensors[tensor.name], group.log2_unit) for group in groups for tensor in group.tensors}
    return Parameters(bundle.manifest.run_key, groups, snapped)


def draft(
    checkpoint: Checkpoint,
    folder: Path,
    task: Task,
    training: Training,
    precisions: Sequence[Precision],
    stages: int | None,
    name: str,
) -> Bundle:
    """A bundle with a base in each of some precisions, the first its default; not calibrated yet."""
    folder.mkdir(exist_ok=True)
    blocks, drafts, common = _blocks(checkpoint), [], set()
    few_bits = training.trainable == "full" and any(precision in quantised.BITS for precision in precisions)
    stages = (blocks if few_bits else min(STAGES, blocks)) if stages is None else stages
    if few_bits and stages != blocks:
        raise BundleError(f"inactive blocks in few bits need every block as a stage of its own: {blocks} stages, not {stages}")
    for precision in dict.fromkeys(precisions):
        at = dataclasses.replace(training, precision=precision)
        layers = chain.draft(checkpoint, task, at, stages, few_bits)
        inactive = (
            chain.draft(checkpoint, task, dataclasses.replace(at, top_blocks=0), stages, few_bits)
            if few_bits and precision != "fp32"
            else None
        )
        drafts.append(chain.write(layers, folder, name, task, inactive))
        common.add((drafts[-1].groups, file_digest(folder / TRAINABLE)))
    if len(common) > 1:
        raise BundleError(f"{', '.join(precisions)} have other trainable tensors; this is an error in the architecture's builder")
    bases = {precision: base for each in drafts for precision, base in each.bases.items()}
    return Bundle(folder, dataclasses.replace(drafts[0], bases=bases))


def _blocks(checkpoint: Checkpoint) -> int:
    blocks = checkpoint.config.get("num_hidden_layers", 1)
    return blocks if isinstance(blocks, int) else 1  # `chain.draft` refuses what is no number


def _fill_prototypes(bundle: Bundle) -> None:
    """Start every label's prototype at the model's own embedding of the label's sentence. bundle: at its float32 base."""
    task = bundle.manifest.task
    if task.head != "prototypes":
        return
    tokenizer = bundle.tokenizer()
    rows = [encode(Example(label, 0), dataclasses.replace(task, template="{text}"), tokenizer)[0] for label in task.labels]
    embedded = Engine(bundle, bundle.parameters()).head_input(collate(rows, task))
    if not np.all(np.isfinite(embedded)):
        raise BundleError("the model gives no finite embedding of the label sentences; its weights hold NaN or infinity")
    prototypes = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    tensors = dict(bundle.initial_tensors()) | {"head.prototypes": prototypes}
    chain.write_trainable(bundle.folder, bundle.manifest.groups, tensors)


def _stand_ins(bundle: Bundle) -> list[Example]:
    task = bundle.manifest.task
    if task.labels:
        classes = len(task.labels)  # prototypes start at their sentences: with right labels alone the loss would have no slope
        return [Example(sentence, (place + turn) % classes) for turn in range(BATCH) for place, sentence in enumerate(task.labels)]
    tokenizer = bundle.tokenizer()
    ids = np.random.default_rng(2).integers(0, tokenizer.get_vocab_size(), (BATCH * BATCHES, task.max_tokens))
    return [Example(tokenizer.decode(row.tolist())) for row in ids]
