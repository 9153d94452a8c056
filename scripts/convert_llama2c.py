#!/usr/bin/env python3
"""Convert a llama2.c checkpoint and tokenizer to a Hugging Face folder that `edge-coordinator bundle build` reads.

usage: scripts/convert_llama2c.py MODEL.bin TOKENIZER.bin OUT

Layout of MODEL.bin: seven int32 (width, feed-forward width, blocks, heads, key/value heads, vocabulary, positions; a
negative vocabulary means an untied head), then float32 tensors, all blocks of one kind together. Query and key rows
are reordered, because llama2.c rotates neighbouring values and Hugging Face the two halves of a head.
"""

import argparse
import json
import math
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers


def read_weights(path: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Header fields and tensors by Hugging Face name."""
    raw = path.read_bytes()
    names = ("width", "ffn", "blocks", "heads", "kv_heads", "vocabulary", "positions")
    header = dict(zip(names, struct.unpack("<7i", raw[:28]), strict=True))
    tied, header["vocabulary"] = header["vocabulary"] > 0, abs(header["vocabulary"])
    if min(header.values()) < 1 or header["width"] % header["heads"]:
        raise ValueError(f"its header says {header}")
    values, place = np.frombuffer(raw, "<f4", offset=28), 0

    def take(*shape: int) -> np.ndarray:
        nonlocal place
        count = math.prod(shape)
        place += count
        if place > values.size:
            raise ValueError(f"it ends before {count} values of shape {shape}")
        return values[place - count : place].reshape(shape).copy()

    blocks, d, f = header["blocks"], header["width"], header["ffn"]
    head = d // header["heads"]
    kv = head * header["kv_heads"]
    tensors = {"model.embed_tokens.weight": take(header["vocabulary"], d)}
    kinds = [
        ("input_layernorm", (d,)),
        ("self_attn.q_proj", (d, d)),
        ("self_attn.k_proj", (kv, d)),
        ("self_attn.v_proj", (kv, d)),
        ("self_attn.o_proj", (d, d)),
        ("post_attention_layernorm", (d,)),
        ("mlp.gate_proj", (f, d)),
        ("mlp.down_proj", (d, f)),
        ("mlp.up_proj", (f, d)),
    ]
    for kind, shape in kinds:
        for number, tensor in enumerate(take(blocks, *shape)):
            if kind in ("self_attn.q_proj", "self_attn.k_proj"):
                tensor = tensor.reshape(-1, head // 2, 2, d).swapaxes(1, 2).reshape(-1, d).copy()
            tensors[f"model.layers.{number}.{kind}.weight"] = tensor
    tensors["model.norm.weight"] = take(d)
    take(header["positions"] * head)  # rotary tables
    if not tied:
        tensors["lm_head.weight"] = take(header["vocabulary"], d)
    return header | {"tied": tied}, tensors


def read_tokenizer(path: Path) -> Tokenizer:
    """A byte-fallback BPE; merges are ranked by the score of what they make."""
    raw, place, scores, pieces = path.read_bytes(), 4, [], []
    while place < len(raw):
        score, length = struct.unpack_from("<fi", raw, place)
        if not 0 <= length <= len(raw) - place - 8:
            raise ValueError(f"a token of {length} bytes at {place}")
        pieces.append(raw[place + 8 : place + 8 + length].decode().strip("\n"))
        scores.append(score)
        place += 8 + length
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    pieces = [piece if number < 3 else piece.replace(" ", "▁") for number, piece in enumerate(pieces)]
    ids = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        (-scores[ids[piece]], piece[:cut], piece[cut:])
        for piece in pieces[3:]
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids and not piece.startswith("<0x")
    ]
    tokenizer = Tokenizer(models.BPE(ids, [(a, b) for _, a, b in sorted(merges)], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:3]])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def read(reader: Callable[[Path], Any], path: Path) -> Any:
    """What the reader makes of the file; where it makes nothing of it, one line and exit code 1."""
    try:
        return reader(path)
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    except (ValueError, struct.error) as error:
        why = f"is not of llama2.c ({error})"
    sys.exit(f"scripts/convert_llama2c.py: {path} {why}; give MODEL.bin TOKENIZER.bin OUT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "tokenizer", "out"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    header, tensors = read(read_weights, given.model)
    tokenizer = read(read_tokenizer, given.tokenizer)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": header["width"],
        "intermediate_size": header["ffn"],
        "num_hidden_layers": header["blocks"],
        "num_attention_heads": header["heads"],
        "num_key_value_heads": header["kv_heads"],
        "vocab_size": header["vocabulary"],
        "max_position_embeddings": header["positions"],
        "tie_word_embeddings": header["tied"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(tensors, given.out / "model.safetensors")
    tokenizer.save(str(given.out / "tokenizer.json"))
    print(f"{given.out}: {sum(t.size for t in tensors.values()):,} parameters, {header['vocabulary']} tokens")


if __name__ == "__main__":
    main()
