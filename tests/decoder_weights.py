"""Random weights for tiny decoders: names and shapes as transformers has them, values drawn from case and name.

Comes in: a config.json as a dictionary. Goes out: f32 arrays whose values are bfloat16's and float16's too (multiples
of 2**-14 with eight significant bits), so that a checkpoint or a GGUF of either type holds them without loss.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import ml_dtypes
import numpy as np

__all__ = ["Config", "Shapes", "block_fp8", "block_mxfp4", "draw", "shapes_of"]

Config: TypeAlias = dict[str, object]  # a config.json
Shapes: TypeAlias = dict[str, tuple[int, ...]]

_GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
FP8_BLOCK = 128  # rows and columns that share a scale
MXFP4_BLOCK = 32  # values that share an exponent
FP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4_CODES = np.concatenate([FP4_VALUES, -FP4_VALUES])  # the fourth bit is the sign


def shapes_of(config: Config) -> Shapes:
    """Returns the shape of each tensor of a model, by its name in model.safetensors."""
    family = str(config["model_type"])
    if family in ("bloom", "falcon"):
        return _bloom(config) if family == "bloom" else _falcon(config)
    hidden, vocab = _int(config, "hidden_size"), _int(config, "vocab_size")
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for index in range(_int(config, "num_hidden_layers")):
        layer = _norms(config) | _ATTENTION.get(family, _attention)(config) | _FEED_FORWARD.get(family, _dense)(config)
        if family in _HAS_DENSE_LAYERS and _is_dense(config, index):
            layer = _norms(config) | _ATTENTION.get(family, _attention)(config) | _dense(config)
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _int(config: Config, key: str) -> int:
    value = config[key]
    assert isinstance(value, int), key
    return value


def _linear(name: str, rows: int, columns: int, has_bias: object = False) -> Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if has_bias else {})


def _norms(config: Config) -> Shapes:
    names = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] in ("gemma2", "gemma3_text"):
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    return {f"{name}.weight": (_int(config, "hidden_size"),) for name in names}


def _head_sizes(config: Config) -> tuple[int, int, int]:
    """Returns the number of query heads, of key and value heads, and the size of a head."""
    heads = _int(config, "num_attention_heads")
    size = config.get("head_dim") or _int(config, "hidden_size") // heads
    assert isinstance(size, int)
    return heads, _int(config, "num_key_value_heads"), size


def _attention(config: Config) -> Shapes:
    hidden, (heads, kv_heads, size) = _int(config, "hidden_size"), _head_sizes(config)
    is_biased = config["model_type"] == "qwen2" or config.get("attention_bias")
    shapes = _linear("self_attn.q_proj", heads * size, hidden, is_biased)
    shapes |= _linear("self_attn.k_proj", kv_heads * size, hidden, is_biased)
    shapes |= _linear("self_attn.v_proj", kv_heads * size, hidden, is_biased)
    shapes |= _linear("self_attn.o_proj", hidden, heads * size, config.get("attention_bias"))
    if config["model_type"] in ("qwen3", "qwen3_moe", "gemma3_text"):
        shapes |= {f"self_attn.{name}.weight": (size,) for name in ("q_norm", "k_norm")}
    if config["model_type"] == "gpt_oss":
        shapes["self_attn.sinks"] = (heads,)
    return shapes


def _fused_attention(config: Config) -> Shapes:
    hidden, (heads, kv_heads, size) = _int(config, "hidden_size"), _head_sizes(config)
    rows = (heads + 2 * kv_heads) * size
    return _linear("self_attn.qkv_proj", rows, hidden) | _linear("self_attn.o_proj", hidden, heads * size)


def _latent_attention(config: Config) -> Shapes:
    hidden, heads = _int(config, "hidden_size"), _int(config, "num_attention_heads")
    nope, rope, value = (_int(config, key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    latent, rank = _int(config, "kv_lora_rank"), config["q_lora_rank"]
    if isinstance(rank, int):
        shapes = _linear("self_attn.q_a_proj", rank, hidden) | {"self_attn.q_a_layernorm.weight": (rank,)}
        shapes |= _linear("self_attn.q_b_proj", heads * (nope + rope), rank)
    else:
        shapes = _linear("self_attn.q_proj", heads * (nope + rope), hidden)
    shapes |= _linear("self_attn.kv_a_proj_with_mqa", latent + rope, hidden)
    shapes |= {"self_attn.kv_a_layernorm.weight": (latent,)}
    shapes |= _linear("self_attn.kv_b_proj", heads * (nope + value), latent)
    return shapes | _linear("self_attn.o_proj", hidden, heads * value)


def _gated(
    prefix: str, hidden: int, size: int, has_bias: object = False, names: tuple[str, str, str] = _GATE_UP_DOWN
) -> Shapes:
    gate, up, down = (f"{prefix}.{name}" for name in names)
    shapes = _linear(gate, size, hidden, has_bias) | _linear(up, size, hidden, has_bias)
    return shapes | _linear(down, hidden, size, has_bias)


def _dense(config: Config) -> Shapes:
    return _gated("mlp", _int(config, "hidden_size"), _int(config, "intermediate_size"), config.get("mlp_bias"))


def _fused_dense(config: Config) -> Shapes:
    hidden, size = _int(config, "hidden_size"), _int(config, "intermediate_size")
    return _linear("mlp.gate_up_proj", 2 * size, hidden) | _linear("mlp.down_proj", hidden, size)


def _mixtral(config: Config) -> Shapes:
    hidden, size, experts = (_int(config, key) for key in ("hidden_size", "intermediate_size", "num_local_experts"))
    shapes = _linear("block_sparse_moe.gate", experts, hidden)
    for index in range(experts):
        shapes |= _gated(f"block_sparse_moe.experts.{index}", hidden, size, names=("w1", "w3", "w2"))
    return shapes


def _qwen3_moe(config: Config) -> Shapes:
    hidden, experts = _int(config, "hidden_size"), _int(config, "num_local_experts")
    shapes = _linear("mlp.gate", experts, hidden)
    for index in range(experts):
        shapes |= _gated(f"mlp.experts.{index}", hidden, _int(config, "moe_intermediate_size"))
    return shapes


def _gpt_oss(config: Config) -> Shapes:
    hidden, size, experts = (_int(config, key) for key in ("hidden_size", "intermediate_size", "num_local_experts"))
    return _linear("mlp.router", experts, hidden, has_bias=True) | {
        "mlp.experts.gate_up_proj": (experts, hidden, 2 * size),
        "mlp.experts.gate_up_proj_bias": (experts, 2 * size),
        "mlp.experts.down_proj": (experts, size, hidden),
        "mlp.experts.down_proj_bias": (experts, hidden),
    }


def _deepseek(config: Config) -> Shapes:
    hidden, experts = _int(config, "hidden_size"), _int(config, "n_routed_experts")
    size = _int(config, "moe_intermediate_size")
    shapes = _linear("mlp.gate", experts, hidden)
    if config["model_type"] == "deepseek_v3":
        shapes["mlp.gate.e_score_correction_bias"] = (experts,)
    for index in range(experts):
        shapes |= _gated(f"mlp.experts.{index}", hidden, size)
    return shapes | _gated("mlp.shared_experts", hidden, size * _int(config, "n_shared_experts"))


def _is_dense(config: Config, index: int) -> bool:
    """Tells whether a layer of a mixture of experts has a plain feed-forward."""
    if "first_k_dense_replace" in config:
        return index < _int(config, "first_k_dense_replace")
    dense = config["mlp_only_layers"]
    assert isinstance(dense, list)
    return index in dense or (index + 1) % _int(config, "decoder_sparse_step") != 0


_HAS_DENSE_LAYERS = ("qwen3_moe", "deepseek_v2", "deepseek_v3")
_ATTENTION: dict[str, Callable[[Config], Shapes]] = {
    "phi3": _fused_attention,
    "deepseek_v2": _latent_attention,
    "deepseek_v3": _latent_attention,
}
_FEED_FORWARD: dict[str, Callable[[Config], Shapes]] = {
    "phi3": _fused_dense,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
}


def _layer_norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _bloom(config: Config) -> Shapes:
    hidden = _int(config, "hidden_size")
    shapes: Shapes = {"transformer.word_embeddings.weight": (_int(config, "vocab_size"), hidden)}
    shapes |= _layer_norm("transformer.word_embeddings_layernorm", hidden) | _layer_norm("transformer.ln_f", hidden)
    for index in range(_int(config, "n_layer")):
        prefix = f"transformer.h.{index}"
        shapes |= _layer_norm(f"{prefix}.input_layernorm", hidden)
        shapes |= _linear(f"{prefix}.self_attention.query_key_value", 3 * hidden, hidden, has_bias=True)
        shapes |= _linear(f"{prefix}.self_attention.dense", hidden, hidden, has_bias=True)
        shapes |= _layer_norm(f"{prefix}.post_attention_layernorm", hidden)
        shapes |= _linear(f"{prefix}.mlp.dense_h_to_4h", 4 * hidden, hidden, has_bias=True)
        shapes |= _linear(f"{prefix}.mlp.dense_4h_to_h", hidden, 4 * hidden, has_bias=True)
    return shapes


def _falcon(config: Config) -> Shapes:
    hidden, heads = _int(config, "hidden_size"), _int(config, "num_attention_heads")
    is_new = bool(config["new_decoder_architecture"])
    kv_heads = _int(config, "num_kv_heads") if is_new else 1
    shapes: Shapes = {"transformer.word_embeddings.weight": (_int(config, "vocab_size"), hidden)}
    shapes |= _layer_norm("transformer.ln_f", hidden)
    for index in range(_int(config, "num_hidden_layers")):
        prefix = f"transformer.h.{index}"
        for norm in ("ln_attn", "ln_mlp") if is_new else ("input_layernorm",):
            shapes |= _layer_norm(f"{prefix}.{norm}", hidden)
        rows = (heads + 2 * kv_heads) * (hidden // heads)
        shapes |= _linear(f"{prefix}.self_attention.query_key_value", rows, hidden)
        shapes |= _linear(f"{prefix}.self_attention.dense", hidden, hidden)
        shapes |= _linear(f"{prefix}.mlp.dense_h_to_4h", 4 * hidden, hidden)
        shapes |= _linear(f"{prefix}.mlp.dense_4h_to_h", hidden, 4 * hidden)
    return shapes


# Deviations by name, the first pattern that matches. A gain is divided by the square root of the number of inputs.
# Attention and routers are far from uniform, and gpt-oss's experts reach their clamp.
_NORM = re.compile(r"(norm|ln_f|ln_attn|ln_mlp)\.weight$")
_DOWN = re.compile(r"mlp\.(down_proj|dense_4h_to_h)\.weight$")
_FIXED = (
    (re.compile(r"sinks$"), 1.0),
    (re.compile(r"bias$"), 0.3),
    (re.compile(r"(embed_tokens|word_embeddings)\.weight$"), 0.4),
    (re.compile(r"lm_head\.weight$"), 0.3),
)
_GAINS = (
    (re.compile(r"(q_proj|k_proj|q_b_proj|kv_b_proj|qkv_proj|query_key_value)\.weight$"), 1.5),
    (re.compile(r"(mlp\.gate|router|block_sparse_moe\.gate)\.weight$"), 2.0),
    (re.compile(r"experts\.gate_up_proj$"), 4.0),
    (re.compile(r"experts\.down_proj$"), 0.25),
)


def draw(
    key: str, shapes: Mapping[str, tuple[int, ...]], *, norm_mean: float = 1.0, down_gain: float = 1.0
) -> dict[str, np.ndarray]:
    """Returns values for all tensors: each from a generator of its own, seeded with key and name.

    Args:
        key: The case, and the number of the draw.
        shapes: Shapes by name.
        norm_mean: Mean of the norms' weights: 1, or 0 where the model adds 1 to them.
        down_gain: Gain of the last product of feed-forwards.
    """
    drawn = {}
    for name, shape in shapes.items():
        values = _values(f"{key}/{name}", name, shape, norm_mean)
        drawn[name] = _round(values * down_gain if _DOWN.search(name) else values)
    return drawn


def _values(seed: str, name: str, shape: tuple[int, ...], norm_mean: float) -> np.ndarray:
    generator = np.random.RandomState(zlib.crc32(seed.encode()))  # the old generator: its stream is never changed
    noise = generator.standard_normal(shape)
    if _NORM.search(name):
        return norm_mean + 0.2 * noise
    if (deviation := _first(_FIXED, name)) is not None:
        return deviation * noise
    num_inputs = shape[1] if len(shape) > 1 else 1  # experts of gpt-oss are [experts, inputs, outputs]
    return (_first(_GAINS, name) or 1.0) * num_inputs**-0.5 * noise


def _first(rules: Iterable[tuple[re.Pattern[str], float]], name: str) -> float | None:
    return next((value for pattern, value in rules if pattern.search(name)), None)


def _round(values: np.ndarray) -> np.ndarray:
    return (np.round(values * 2**14) / 2**14).astype(ml_dtypes.bfloat16).astype(np.float32)


def block_fp8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a matrix in float8 e4m3, the scale of each block of 128 x 128, and the f32 matrix that they mean.

    Scales have four significant bits, so that the products are exact in bfloat16.
    """
    rows, columns = (-(-size // FP8_BLOCK) for size in weight.shape)
    scales = np.zeros((rows, columns), np.float32)
    for row, column in np.ndindex(rows, columns):
        block = weight[row * FP8_BLOCK : (row + 1) * FP8_BLOCK, column * FP8_BLOCK : (column + 1) * FP8_BLOCK]
        mantissa, exponent = np.frexp(np.abs(block).max() / 448.0)
        scales[row, column] = np.ldexp(np.ceil(mantissa * 16) / 16, exponent)
    spread = scales.repeat(FP8_BLOCK, 0)[: weight.shape[0]].repeat(FP8_BLOCK, 1)[:, : weight.shape[1]]
    quantized = (weight / spread).astype(ml_dtypes.float8_e4m3fn)
    return quantized, scales, quantized.astype(np.float32) * spread


def block_mxfp4(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns experts [experts, in, out] as MXFP4 blocks and scales, and the f32 values that they mean.

    Blocks are [experts, out, in / 32, 16], two values a byte, the first in the low half; scales [experts, out, in / 32]
    are exponents of two plus 127.
    """
    experts, num_inputs, num_outputs = weight.shape
    grouped = np.ascontiguousarray(weight.swapaxes(1, 2)).reshape(
        experts, num_outputs, num_inputs // MXFP4_BLOCK, MXFP4_BLOCK
    )
    exponents = np.floor(np.log2(np.abs(grouped).max(-1))).astype(np.int32) - 2
    scaled = np.ldexp(grouped, -exponents[..., None])
    codes = np.abs(scaled[..., None] - FP4_CODES).argmin(-1).astype(np.uint8)
    values = np.ldexp(FP4_CODES[codes], exponents[..., None]).reshape(experts, num_outputs, num_inputs)
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4
    scales = (exponents + 127).astype(np.uint8)
    return blocks, scales, np.ascontiguousarray(values.swapaxes(1, 2))
