"""Tiny Llamas in GGUF files, written with the library's writer from names and orders that are written down here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from tokenizers import pre_tokenizers

from plait.models.config import DecoderConfig
from plait.models.family import build

__all__ = ["LLAMA", "Weights", "byte_tokens", "llama_weights", "stored_name", "write_gguf"]

Weights = dict[str, np.ndarray]

LLAMA = DecoderConfig(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=96,
    vocab_size=260,
    max_positions=128,
    norm_epsilon=1e-5,
    tie_embeddings=True,
)

_NAMES = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


def llama_weights(config: DecoderConfig = LLAMA) -> Weights:
    """Random weights under plait's names."""
    generator = np.random.default_rng(0)
    parameters = build(config, np.float32).parameters
    return {name: generator.standard_normal(p.shape).astype(np.float32) for name, p in parameters.items()}


def byte_tokens() -> list[str]:
    """The tokens of the files: two control tokens, all bytes and two merges."""
    return ["<end>", "<user>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "cd"]


def stored_name(name: str) -> str:
    """The name that a parameter has in the file."""
    module, _, leaf = name.rpartition(".")
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    return f"{_NAMES[module]}.{leaf}" if layer is None else f"blk.{layer[1]}.{_NAMES[layer[2]]}.{leaf}"


def write_gguf(
    path: Path,
    weights: Weights,
    *,
    architecture: str = "llama",
    quantizations: Callable[[str], GGMLQuantizationType] = lambda name: GGMLQuantizationType.F32,
    pre: str = "smollm",
    extra: Callable[[GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Writes a file and returns its path.

    Args:
        path: Of the file.
        weights: By plait's names.
        architecture: By GGUF's.
        quantizations: The type of a matrix by plait's name.
        pre: Name of the pre-tokenizer.
        extra: Adds more metadata and tensors.
    """
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LLAMA.num_layers)
    writer.add_context_length(LLAMA.max_positions)
    writer.add_embedding_length(LLAMA.hidden_size)
    writer.add_feed_forward_length(LLAMA.intermediate_size)
    writer.add_head_count(LLAMA.num_heads)
    writer.add_head_count_kv(LLAMA.num_kv_heads)
    writer.add_layer_norm_rms_eps(LLAMA.norm_epsilon)
    _add_tokenizer(writer, pre)
    extra(writer)
    for name, value in weights.items():
        kind = quantizations(name) if value.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(stored_name(name), gguf.quants.quantize(_stored(name, value), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, pre: str) -> None:
    tokens = byte_tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    is_control = [token.startswith("<") and len(token) > 1 for token in tokens]
    writer.add_token_types([TokenType.CONTROL if control else TokenType.NORMAL for control in is_control])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}")


def _stored(name: str, weight: np.ndarray) -> np.ndarray:
    """Brings the rows of Q and K into the order in which GGUF stores them: pairs beside each other, row by row."""
    heads = {"query": LLAMA.num_heads, "key": LLAMA.num_kv_heads}.get(name.split(".")[-2], 0)
    if not heads:
        return weight
    size = len(weight) // heads
    pairs = [(head * size + pair, head * size + pair + size // 2) for head in range(heads) for pair in range(size // 2)]
    return weight[[row for pair in pairs for row in pair]]
