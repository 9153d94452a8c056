"""Adapters as a folder of Hugging Face PEFT, and back: adapter_config.json and adapter_model.safetensors.

PEFT adds lora_alpha / r * B A to a layer's weight [out, in], with A [r, in] and B [out, r].
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from zo import ranks
from zo.bundle import Bundle, save_tensors
from zo.disk import made_whole
from zo.errors import BundleError
from zo.manifest import Manifest
from zo.replica import Replica

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
MODULES = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}
UNREADABLE = {"use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none", "fan_in_fan_out": False}  # and what they must be


@dataclass(frozen=True)
class Adapter:
    """What was read. layers: A [in, rank] and B [rank, out] by layer. alpha: over the rank it is the scale. head: weight and bias."""

    folder: Path
    rank: int
    alpha: float
    layers: dict[str, tuple[np.ndarray, np.ndarray]]
    head: tuple[np.ndarray, np.ndarray] | None = None


def export(bundle: Bundle, replica: Replica, run_name: str, out: Path, rank: int = 0) -> None:
    """Write the adapters of a replica to `out`, which must not exist; with a linear head, that too. rank: 0 is the largest.

    Label prototypes have no place there: they are written beside it, as `head.safetensors`.
    """
    manifest = bundle.manifest
    if manifest.trainable not in ("lora", "lora-fa"):
        raise BundleError(f"bundle {manifest.name!r} trains {manifest.trainable!r}, no adapters; export it without --peft")
    tensors = ranks.joined(manifest, replica.parameters.tensors(), rank)
    rank, scale, root = rank or manifest.rank, manifest.alpha / manifest.rank, ROOT + _prefix(manifest)
    found, frozen = {}, {} if manifest.trainable == "lora" else load_file(bundle.folder / manifest.base.file)
    for name in [name.removesuffix(".lora_B") for name in tensors if name.endswith(".lora_B")]:
        if manifest.trainable == "lora-fa":
            a = frozen[f"{name}.lora_A"][:, :rank].T / np.float32(scale)
        else:
            a = tensors[f"{name}.lora_A"] if manifest.ranks else tensors[f"{name}.lora_A"].T
        found[f"{root}{name}.lora_A.weight"] = a
        found[f"{root}{name}.lora_B.weight"] = tensors[f"{name}.lora_B"].T
    head = {name: values for name, values in tensors.items() if name.startswith("head.")}
    linear = manifest.task.head == "linear" and bool(head)
    if linear:
        found |= {f"{ROOT}classifier.weight": head["head.weight"].T, f"{ROOT}classifier.bias": head["head.bias"]}
    details = {"run": run_name, "entry": str(replica.entry), "digest": replica.parameters.digest().hex()}
    adapters = {name: np.ascontiguousarray(values) for name, values in found.items()}
    with made_whole(out) as made:
        save_tensors(adapters, made / WEIGHTS, metadata={"format": "pt"} | details)
        if head and not linear:
            save_tensors(head, made / "head.safetensors", metadata=details)
        (made / CONFIG).write_text(json.dumps(_config(manifest, rank, scale, linear), indent=1) + "\n", encoding="utf-8")


def _config(manifest: Manifest, rank: int, scale: float, linear: bool) -> dict[str, Any]:
    alpha = scale * rank
    kind = "CAUSAL_LM" if manifest.architecture == "llama" else "SEQ_CLS" if linear else "FEATURE_EXTRACTION"
    plain = {"peft_type": "LORA", "task_type": kind, "r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha}
    plain |= {"target_modules": MODULES[manifest.architecture], "lora_dropout": 0.0, "inference_mode": True, "use_rslora": False}
    return plain | UNREADABLE | {"modules_to_save": ["classifier"] if linear else None, "base_model_name_or_path": None}


def _prefix(manifest: Manifest) -> str:
    """What the model that PEFT wraps puts before the names of its layers: a language model or classifier, but not a bare encoder."""
    return "model." if manifest.architecture == "llama" else "bert." if manifest.task.head == "linear" else ""


def read(folder: Path) -> Adapter:
    """An adapter of query and value, as PEFT has it. BundleError where it holds what could not be trained on."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
        tensors = load_file(folder / WEIGHTS)
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, SafetensorError) as error:
        raise BundleError(f"{folder} is no adapter folder of PEFT: {CONFIG} and {WEIGHTS} cannot be read ({error})") from None
    for key, must in UNREADABLE.items():
        if config.get(key) not in (must, None):
            raise BundleError(f"{folder / CONFIG}: {key} = {config[key]!r} is not known; only {must!r} is")
    if config.get("use_rslora"):
        alpha *= rank**0.5
    pairs: dict[str, dict[str, np.ndarray]] = {}
    head: dict[str, np.ndarray] = {}
    for full, values in tensors.items():
        name = full.removeprefix(ROOT)
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if part in ("lora_A", "lora_B") and name.endswith(".weight"):
            pairs.setdefault(layer.removeprefix("model.").removeprefix("bert."), {})[part] = values.astype(np.float32)
        elif name in ("classifier.weight", "classifier.bias"):
            head[name] = values.astype(np.float32)
        else:
            raise BundleError(f"{folder / WEIGHTS} holds {full!r}, which has no place in a bundle")
    layers = {layer: (pair["lora_A"].T, pair["lora_B"].T) for layer, pair in pairs.items() if len(pair) == 2}
    if len(layers) < len(pairs) or any(a.shape[1] != rank or b.shape[0] != rank for a, b in layers.values()):
        raise BundleError(f"{folder / WEIGHTS} does not hold an A and a B of rank {rank} for every layer")
    return Adapter(folder, rank, alpha, layers, (head["classifier.weight"].T, head["classifier.bias"]) if len(head) == 2 else None)
