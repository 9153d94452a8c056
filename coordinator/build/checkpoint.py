"""Reading a Hugging Face model folder: config.json, *.safetensors, tokenizer.json. No torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from zo.bundle import TOKENIZER
from zo.errors import BundleError

# safetensors' numpy reader knows no bfloat16; such tensors are widened by hand.
_READABLE = {"F32", "F16", "F64", "BF16"}


class Checkpoint:
    """Config and weights of a model folder; weights are read when asked for, as float32."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = _config(folder)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise BundleError(f"{folder} holds no *.safetensors; convert the model with transformers' save_pretrained() first")
        if not (folder / TOKENIZER).is_file():
            raise BundleError(f"{folder} holds no {TOKENIZER}; save the fast tokenizer of the model there")
        self._place = {name: file for file in files for name in _names(file)}
        bare = [_modern(name.removeprefix(self.prefix)) for name in self._place]
        self._full = dict(zip(bare, self._place, strict=True))

    @property
    def prefix(self) -> str:
        """What a model with a task head puts before the names of its encoder ("bert.", "model.")."""
        for prefix in ("bert.", "model."):
            if any(name.startswith(prefix) for name in self._place):
                return prefix
        return ""

    def tokenizer(self) -> Tokenizer:
        """The model's own, with its padding and truncation switched off. BundleError where the file is none."""
        file = self.folder / TOKENIZER
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001  tokenizers raises bare Exception
            raise BundleError(f"{file} is not a tokenizer ({error}); put the model's own there") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def __contains__(self, name: str) -> bool:
        return name in self._full

    def optional(self, name: str) -> np.ndarray | None:
        """The tensor, or None where the model has none of that name."""
        return self[name] if name in self else None  # noqa: SIM401  a Checkpoint has no other get

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, from its file's header."""
        full = self._found(name)
        with safe_open(self._place[full], "numpy") as file:
            return tuple(file.get_slice(full).get_shape())

    def __getitem__(self, name: str) -> np.ndarray:
        full = self._found(name)
        with safe_open(self._place[full], "numpy") as file:
            kind = file.get_slice(full).get_dtype()
            if kind not in _READABLE:
                raise BundleError(f"tensor {name!r} in {self._place[full]} has type {kind}; convert the model to float32 or float16")
            if kind == "BF16":
                return _widened(self._place[full], full)
            return file.get_tensor(full).astype(np.float32)

    def _found(self, name: str) -> str:
        """What the file calls it."""
        if name not in self._full:
            raise BundleError(f"{self.folder} holds no tensor {name!r}, which a {self.config.get('model_type')} model needs")
        return self._full[name]


def _modern(name: str) -> str:
    """Early BERT checkpoints call gain and bias of a LayerNorm gamma and beta."""
    stem, _, last = name.rpartition(".")
    return f"{stem}.{ {'gamma': 'weight', 'beta': 'bias'}[last] }" if stem.endswith("LayerNorm") and last in ("gamma", "beta") else name


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BundleError(f"{folder} is no Hugging Face model folder: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({error}); download the model again") from None
    if not isinstance(config, dict):
        raise BundleError(f"{path} is not a JSON object")
    return config


def _names(file: Path) -> list[str]:
    try:
        file.open("rb").close()  # safetensors says of a file that may not be read that it does not exist
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}; check its permissions") from None
    try:
        with safe_open(file, "numpy") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise BundleError(f"{file} is not a readable safetensors file ({error}); download it again") from None


def _widened(file: Path, name: str) -> np.ndarray:
    """A bfloat16 tensor as float32: its 16 bits are the upper half."""
    raw = np.memmap(file, np.uint8, "r")
    length = int.from_bytes(raw[:8].tobytes(), "little")
    entry = json.loads(raw[8 : 8 + length].tobytes())[name]
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    halves = raw[begin:end].view("<u2").astype(np.uint32) << 16
    return halves.view(np.float32).reshape(entry["shape"])
