"""Hugging Face folders of tiny random models, from a numpy seed: numpy, tokenizers and safetensors are all they need."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from zo.examples import Example
from zo.manifest import Task

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = tuple(first + last for first in "bdfgklmn" for last in ("a", "ee", "i", "o", "u", "ay", "ow"))
VOCABULARY = len(SPECIAL) + len(WORDS)  # 60

BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 48,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}

LABELS = ("ba bee bi", "la lee li", "na nee ni")
CLASSIFICATION = Task("classification", 32, "prototypes", LABELS)
LINEAR = Task("classification", 32, "linear", LABELS)
LANGUAGE = Task("language-modelling", 16, "vocabulary")


class _Draw:
    """Random tensors by name, drawn in the order asked for; large enough that every one matters."""

    def __init__(self, seed: int) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self._generator = np.random.default_rng(seed)

    def _normal(self, name: str, scale: float, *shape: int) -> None:
        self.tensors[name] = (self._generator.standard_normal(shape) * scale).astype(np.float32)

    def table(self, name: str, rows: int, width: int) -> None:
        self._normal(f"{name}.weight", 0.5, rows, width)

    def linear(self, name: str, inner: int, outer: int, biased: bool = True) -> None:
        self._normal(f"{name}.weight", 1 / np.sqrt(inner), outer, inner)
        if biased:
            self._normal(f"{name}.bias", 0.1, outer)

    def norm(self, name: str, width: int, biased: bool = True) -> None:
        self._normal(f"{name}.weight", 0.2, width)
        self.tensors[f"{name}.weight"] += np.float32(1)
        if biased:
            self._normal(f"{name}.bias", 0.1, width)


def bert_weights(classes: int = 0, seed: int = 0, config: dict[str, Any] = BERT) -> dict[str, np.ndarray]:
    """A bare BERT; with classes, one with pooler and classifier, named as BertForSequenceClassification names it."""
    draw, width, wide = _Draw(seed), config["hidden_size"], config["intermediate_size"]
    draw.table("embeddings.word_embeddings", config["vocab_size"], width)
    draw.table("embeddings.position_embeddings", config["max_position_embeddings"], width)
    draw.table("embeddings.token_type_embeddings", config["type_vocab_size"], width)
    draw.norm("embeddings.LayerNorm", width)
    for number in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            draw.linear(f"{name}.attention.{part}", width, width)
        draw.norm(f"{name}.attention.output.LayerNorm", width)
        draw.linear(f"{name}.intermediate.dense", width, wide)
        draw.linear(f"{name}.output.dense", wide, width)
        draw.norm(f"{name}.output.LayerNorm", width)
    if not classes:
        return draw.tensors
    draw.linear("pooler.dense", width, width)
    encoder = {f"bert.{name}": values for name, values in draw.tensors.items()}
    draw.tensors = {}
    draw.linear("classifier", width, classes)
    return encoder | draw.tensors


def llama_weights(tied: bool, seed: int = 1, head_width: int = 8) -> dict[str, np.ndarray]:
    """A Llama with grouped queries, named as LlamaForCausalLM names it."""
    draw, width, wide = _Draw(seed), LLAMA["hidden_size"], LLAMA["intermediate_size"]
    queries, narrow = (head_width * LLAMA[f"num_{heads}_heads"] for heads in ("attention", "key_value"))
    draw.table("model.embed_tokens", VOCABULARY, width)
    for number in range(LLAMA["num_hidden_layers"]):
        name = f"model.layers.{number}"
        for part, inner, outer in (("q", width, queries), ("k", width, narrow), ("v", width, narrow), ("o", queries, width)):
            draw.linear(f"{name}.self_attn.{part}_proj", inner, outer, biased=False)
        for part, inner, outer in (("gate", width, wide), ("up", width, wide), ("down", wide, width)):
            draw.linear(f"{name}.mlp.{part}_proj", inner, outer, biased=False)
        draw.norm(f"{name}.input_layernorm", width, biased=False)
        draw.norm(f"{name}.post_attention_layernorm", width, biased=False)
    draw.norm("model.norm", width, biased=False)
    if not tied:
        draw.linear("lm_head", width, VOCABULARY, biased=False)
    return draw.tensors


def tokenizer(words: Sequence[str] = WORDS) -> Tokenizer:
    """Of whole words; [CLS] a [SEP], and [CLS] a [SEP] b [SEP] for pairs."""
    ids = {word: place for place, word in enumerate((*SPECIAL, *words))}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.add_special_tokens(list(SPECIAL))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def save(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray], words: Sequence[str] = WORDS) -> Path:
    """Write a model folder: config.json, model.safetensors, tokenizer.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")
    tokenizer(words).save(str(folder / "tokenizer.json"))
    return folder


MODELS: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], Task]] = {
    "bert": (BERT, bert_weights(), CLASSIFICATION),
    "bert-classifier": (BERT, bert_weights(len(LABELS)), LINEAR),
    "llama-tied": (LLAMA, llama_weights(tied=True), LANGUAGE),
    "llama": (LLAMA | {"tie_word_embeddings": False}, llama_weights(tied=False), LANGUAGE),
}


def sentences(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Texts of 3 to `longest` words."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(3, longest, endpoint=True))) for _ in range(count)]


def examples(task: Task, count: int = 16, seed: int = 0) -> list[Example]:
    """Examples of the task; every class in turn, each with some words of its own."""
    if not task.labels:
        return [Example(text) for text in sentences(count, seed)]
    return [Example(f"{text} {task.labels[place % 3]}", place % 3) for place, text in enumerate(sentences(count, seed))]
