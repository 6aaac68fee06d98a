"""How each parameter of a decoder is made from the tensors of Hugging Face files.

Comes in: a configuration and the files. Goes out: a recipe for each parameter. Most are a tensor under another name
(`names.py`). The others: query, key and value of one fused product; gate and up of one; experts that are a tensor
each, or stacked as transformers 5 keeps them in memory; gpt-oss's stacks, transposed, gate and up interleaved, dense or
in MXFP4; and weights in FP8 with a scale for each block.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from ..config import DecoderConfig, Experts
from ..quantization import dequantize_values, stored_arrays
from .names import DECODER_NAMES, EXPERT_NAMES, original_name
from .recipes import Recipe, RecipeOf, Source, TensorFiles, plain, stacked

__all__ = ["decoder_recipes"]

_HEADS = ("query", "key", "value")
# What begins otherwise if a name that begins so is in the files, or isn't: models that also see images keep their
# decoder in one of two places, and Bloom's own files leave out the name of the decoder.
_RENAMINGS = (
    ("language_model.", True, "model.", "language_model.model."),
    ("language_model.", True, "lm_head", "language_model.lm_head"),
    ("model.language_model.", True, "model.", "model.language_model."),
    ("transformer.", False, "transformer.", ""),
)


def decoder_recipes(config: DecoderConfig, files: TensorFiles) -> RecipeOf:
    """Returns the recipes of a decoder's parameters.

    Args:
        config: Of the decoder.
        files: Their tensors' names decide which of the forms above they have.
    """
    return functools.partial(_recipe, config, files, _table(config, files))


def _recipe(
    config: DecoderConfig, files: TensorFiles, table: Mapping[str, str], name: str, shape: tuple[int, ...]
) -> Recipe:
    module, _, leaf = name.rpartition(".")
    parent, _, role = module.rpartition(".")
    if parent.endswith("attention") and role in _HEADS and "layers.*.attention.qkv" in table:
        return _fused_heads(config, role, shape, original_name(f"{parent}.qkv.{leaf}", table))
    if parent.endswith("mlp") and role in ("gate", "up") and "layers.*.mlp.gate_up" in table:
        return _half(role, shape, original_name(f"{parent}.gate_up.{leaf}", table))
    is_feed_forward = parent.endswith("mlp") and role in ("gate", "up", "down")
    if is_feed_forward and config.experts is not None and config.has_experts(int(name.split(".")[1])):
        return _experts(config, config.experts, files, name, shape)
    original = original_name(name, table)
    return _maybe_fp8(shape, original, files) if leaf == "weight" and len(shape) == 2 else plain(shape, original)


def _table(config: DecoderConfig, files: TensorFiles) -> Mapping[str, str]:
    """Returns the names of a family's modules; some have others in one of its members, or in some files."""
    table = dict(DECODER_NAMES[config.architecture])
    if config.latent is not None and config.latent.query_rank is not None:
        table["layers.*.attention.query"] = "model.layers.*.self_attn.q_b_proj"
    if config.architecture == "falcon" and config.residual == "parallel":
        table["layers.*.attention_norm"] = "transformer.h.*.ln_attn"
        table["layers.*.mlp_norm"] = "transformer.h.*.ln_mlp"
    if config.architecture == "mixtral" and not any(".block_sparse_moe." in name for name in files.names):
        table["layers.*.mlp.router"] = "model.layers.*.mlp.gate"
    renamings = [(old, new) for sign, is_there, old, new in _RENAMINGS if _has(files, sign) == is_there]
    for module, original in table.items():
        for old, new in renamings:
            if original.startswith(old):
                original = new + original.removeprefix(old)
        table[module] = original
    return table


def _has(files: TensorFiles, start: str) -> bool:
    return any(name.startswith(start) for name in files.names)


def _maybe_fp8(shape: tuple[int, ...], name: str, files: TensorFiles) -> Recipe:
    scales = f"{name}_scale_inv"
    if scales not in files.names:
        return plain(shape, name)
    blocks = stored_arrays("fp8", shape)[1].shape
    return Recipe((Source((name,), shape, "fp8"), Source((scales,), blocks)), _dequantize_fp8, make_fp8=_fp8)


def _dequantize_fp8(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(dequantize_values(jnp.asarray(arrays[0]), jnp.asarray(arrays[1]), "fp8", jnp.float32))


def _fp8(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return arrays[0].astype(jnp.float8_e4m3fn), arrays[1]  # they were read into f32, which holds them all


def _fused_heads(config: DecoderConfig, role: str, shape: tuple[int, ...], name: str) -> Recipe:
    """Rows of a fused product: [query; key; value] in Phi-3, else [kv heads, queries of the head, key, value]."""
    num_heads, num_kv_heads, size = config.num_heads, config.num_kv_heads, config.head_size
    group = num_heads // num_kv_heads
    num_rows = (num_heads + 2 * num_kv_heads) * size

    def make(arrays: Sequence[np.ndarray]) -> np.ndarray:
        if config.architecture == "phi3":
            parts = np.split(arrays[0], [num_heads * size, (num_heads + num_kv_heads) * size])
            return parts[_HEADS.index(role)]
        by_head = arrays[0].reshape(num_kv_heads, group + 2, size, *shape[1:])
        part = {"query": slice(0, group), "key": slice(group, group + 1), "value": slice(group + 1, None)}[role]
        return by_head[:, part].reshape(shape)

    return Recipe((Source((name,), (num_rows, *shape[1:])),), make)


def _half(role: str, shape: tuple[int, ...], name: str) -> Recipe:
    first = 0 if role == "gate" else shape[0]
    source = Source((name,), (2 * shape[0], *shape[1:]))
    return Recipe((source,), lambda arrays: arrays[0][first : first + shape[0]])


def _experts(config: DecoderConfig, experts: Experts, files: TensorFiles, name: str, shape: tuple[int, ...]) -> Recipe:
    """The recipe of a weight [experts, out, in] or bias [experts, out] of all experts."""
    module, _, leaf = name.rpartition(".")
    role = module.rpartition(".")[2]
    layer = f"model.layers.{name.split('.')[1]}"
    product = f"{layer}.mlp.experts.{'down_proj' if role == 'down' else 'gate_up_proj'}"
    if config.architecture == "gpt_oss":
        return _interleaved(role, leaf, shape, product, files)
    if product in files.names:
        return plain(shape, product) if role == "down" else _stacked_half(role, shape, product)
    one = EXPERT_NAMES.get(config.architecture, EXPERT_NAMES[""])[role]
    names = [f"{layer}.{one.replace('*', str(expert))}" for expert in range(experts.num_experts)]
    return stacked(shape, [_maybe_fp8(shape[1:], expert, files) for expert in names])


def _stacked_half(role: str, shape: tuple[int, ...], name: str) -> Recipe:
    """Gate or up of a stack [experts, 2 * inner, hidden]."""
    num_experts, inner, hidden = shape
    first = 0 if role == "gate" else inner
    return Recipe(
        (Source((name,), (num_experts, 2 * inner, hidden)),), lambda arrays: arrays[0][:, first : first + inner]
    )


def _interleaved(role: str, leaf: str, shape: tuple[int, ...], name: str, files: TensorFiles) -> Recipe:
    """gpt-oss: rows of gate and up alternate, dense weights are [experts, in, out]."""
    step = slice(None) if role == "down" else slice(0 if role == "gate" else 1, None, 2)
    num_experts, num_rows = shape[0], shape[1] * (1 if role == "down" else 2)
    if leaf == "bias":
        return Recipe((Source((f"{name}_bias",), (num_experts, num_rows)),), lambda arrays: arrays[0][:, step])
    if f"{name}_blocks" not in files.names:
        source = Source((name,), (num_experts, shape[2], num_rows))
        return Recipe((source,), lambda arrays: arrays[0][:, :, step].swapaxes(1, 2))
    num_blocks = shape[2] // 32
    blocks = Source((f"{name}_blocks",), (num_experts, num_rows, num_blocks, 16), "uint8")
    scales = Source((f"{name}_scales",), (num_experts, num_rows, num_blocks), "uint8")

    def make(arrays: Sequence[np.ndarray]) -> np.ndarray:
        values, exponents = arrays[0][:, step], arrays[1][:, step]
        out = np.empty(shape, np.float32)
        for expert in range(num_experts):  # the codes of one at a time are unpacked
            packed = jnp.asarray(values[expert].reshape(shape[1], -1))
            out[expert] = dequantize_values(packed, jnp.asarray(exponents[expert]), "mxfp4", jnp.float32)
        return out

    return Recipe((blocks, scales), make)
