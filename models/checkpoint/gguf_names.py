"""How each parameter of a decoder is made from the tensors of a GGUF file, as llama.cpp's converter writes them.

Comes in: a configuration and the names of the file's tensors. Goes out: recipes. Three hazards: the rows of Q and K
of some architectures are stored for a rotation of interleaved pairs and are brought to the half-split order that
`layers.rope` rotates; fused tensors are Q above K above V, gate above up; and the up-projection of latent attention
is split into K, transposed per head, and V.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float

from ..config import DecoderConfig
from .recipes import Make, Recipe, RecipeOf, Source, plain, stacked

__all__ = ["gguf_recipes"]

# plait's module: name in the file; within layers without "layers.N" and "blk.N"
_MODULES = {
    "embedding": "token_embd",
    "embedding_norm": "token_embd_norm",
    "norm": "output_norm",
    "head": "output",
}
_LAYER_MODULES = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp.shared.gate": "ffn_gate_shexp",
    "mlp.shared.up": "ffn_up_shexp",
    "mlp.shared.down": "ffn_down_shexp",
    "mlp.router": "ffn_gate_inp",
    "mlp_post_norm": "post_ffw_norm",
}
_LATENT_MODULES = {
    "attention.query_down": "attn_q_a",
    "attention.query_norm": "attn_q_a_norm",
    "attention.kv_down": "attn_kv_a_mqa",
    "attention.kv_norm": "attn_kv_a_norm",
    "attention.kv": "attn_kv_b",
}
_TENSORS = {"attention.sinks": "attn_sinks.weight", "mlp.router.selection_bias": "exp_probs_b.bias"}

_INTERLEAVED = ("llama", "mixtral", "smollm3")  # architectures whose rows of Q and K are stored so
_LAYER = re.compile(r"layers\.(\d+)\.(.*)")


def gguf_recipes(config: DecoderConfig, names: Collection[str]) -> RecipeOf:
    """Returns how each parameter is made.

    Args:
        config: As `config_from_gguf` gives it.
        names: Of all tensors in the file.
    """
    modules = _LAYER_MODULES | _renamed(config)
    return functools.partial(_recipe, config, modules, names)


def _renamed(config: DecoderConfig) -> dict[str, str]:
    """Returns the names of modules that are not those of other architectures."""
    if config.latent is not None:
        rank = config.latent.query_rank
        return _LATENT_MODULES | {"attention.query": "attn_q_b" if rank else "attn_q"}
    if config.architecture == "gpt_oss":
        return {"mlp_norm": "post_attention_norm"}
    if config.residual == "parallel":
        return {"attention_norm": "attn_norm_2", "mlp_norm": "attn_norm"}
    return {}


def _recipe(
    config: DecoderConfig, modules: dict[str, str], names: Collection[str], name: str, shape: tuple[int, ...]
) -> Recipe:
    layer = _LAYER.fullmatch(name)
    if layer is None:
        module, _, leaf = name.rpartition(".")
        return plain(shape, f"{_MODULES[module]}.{leaf}")
    block, rest = f"blk.{layer[1]}.", layer[2]
    module, _, leaf = rest.rpartition(".")
    if rest in _TENSORS:
        return plain(shape, block + _TENSORS[rest])
    if config.has_experts(int(layer[1])) and module in ("mlp.gate", "mlp.up", "mlp.down"):
        return _of_experts(f"{block}{modules[module]}", leaf, shape, names)
    if module in _FUSED and (fused := f"{block}attn_qkv.{leaf}") in names:
        return _of_fused_attention(config, fused, module, shape)
    original = f"{block}{modules[module]}.{leaf}"
    if module in ("mlp.gate", "mlp.up") and config.is_gated and f"{block}ffn_gate.weight" not in names:
        return _half(f"{block}ffn_up.{leaf}", shape, 0, is_first=module == "mlp.gate")
    if module == "attention.kv" and original not in names:
        return _of_split_latents(config, block)
    if module in _FUSED[:2] and config.architecture in _INTERLEAVED:
        heads = config.num_heads if module == "attention.query" else config.num_kv_heads
        return Recipe((Source((original,), shape),), functools.partial(_half_split, heads))
    return plain(shape, original)


_FUSED = ("attention.query", "attention.key", "attention.value")


def _half_split(num_heads: int, arrays: Sequence[np.ndarray]) -> Float[np.ndarray, "rows ..."]:
    """Brings the rows of each head from the order of interleaved pairs to the half-split order."""
    rows = arrays[0]
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _rows(first: int, last: int, axis: int = 0) -> Make:
    return lambda arrays: arrays[0][(slice(None),) * axis + (slice(first, last),)]


def _half(name: str, shape: tuple[int, ...], axis: int, *, is_first: bool) -> Recipe:
    """Returns the recipe of one half of a tensor, gate above up."""
    size = shape[axis]
    first = 0 if is_first else size
    fused = (*shape[:axis], 2 * size, *shape[axis + 1 :])
    return Recipe((Source((name,), fused),), _rows(first, first + size, axis))


def _of_fused_attention(config: DecoderConfig, name: str, module: str, shape: tuple[int, ...]) -> Recipe:
    query, key = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    first = {"attention.query": 0, "attention.key": query, "attention.value": query + key}[module]
    return Recipe((Source((name,), (query + 2 * key, *shape[1:])),), _rows(first, first + shape[0]))


def _of_experts(original: str, leaf: str, shape: tuple[int, ...], names: Collection[str]) -> Recipe:
    """Returns the recipe of all experts' weights: stacked, gate and up stacked in one, or in older files one by one."""
    block, _, part = original.rpartition(".")
    if part != "ffn_down" and (fused := f"{block}.ffn_gate_up_exps.{leaf}") in names:
        return _half(fused, shape, 1, is_first=part == "ffn_gate")
    if f"{original}.0.{leaf}" in names:
        return stacked(shape, [plain(shape[1:], f"{original}.{expert}.{leaf}") for expert in range(shape[0])])
    return plain(shape, f"{original}_exps.{leaf}")


def _of_split_latents(config: DecoderConfig, block: str) -> Recipe:
    latent, heads = config.latent, config.num_heads
    assert latent is not None
    keys = Source((f"{block}attn_k_b.weight",), (heads, latent.latent_size, latent.nope_size))
    values = Source((f"{block}attn_v_b.weight",), (heads, latent.value_size, latent.latent_size))
    return Recipe((keys, values), _joined_latents)


def _joined_latents(arrays: Sequence[np.ndarray]) -> Float[np.ndarray, "rows latent"]:
    keys, values = arrays[0].swapaxes(1, 2), arrays[1]
    return np.concatenate([keys, values], axis=1).reshape(-1, values.shape[-1])
