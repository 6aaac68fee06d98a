"""The name of each tensor in plait and in Hugging Face files.

plait's name is the dotted Flax path, `layers.3.mlp.up.weight`. The tables give the original name of the module, `*`
being the number of the layer; the last part, `weight` or `bias`, is the same everywhere. A parameter that is called
otherwise has an entry of its own. The tables of the encoders are in `bert.py`, those of GGUF in `gguf_names.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["DECODER_NAMES", "EXPERT_NAMES", "LLAMA", "original_name"]

LLAMA = {
    "embedding": "model.embed_tokens",
    "layers.*.attention_norm": "model.layers.*.input_layernorm",
    "layers.*.attention.query": "model.layers.*.self_attn.q_proj",
    "layers.*.attention.key": "model.layers.*.self_attn.k_proj",
    "layers.*.attention.value": "model.layers.*.self_attn.v_proj",
    "layers.*.attention.output": "model.layers.*.self_attn.o_proj",
    "layers.*.mlp_norm": "model.layers.*.post_attention_layernorm",
    "layers.*.mlp.gate": "model.layers.*.mlp.gate_proj",
    "layers.*.mlp.up": "model.layers.*.mlp.up_proj",
    "layers.*.mlp.down": "model.layers.*.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
_QK_NORM = LLAMA | {
    "layers.*.attention.query_norm": "model.layers.*.self_attn.q_norm",
    "layers.*.attention.key_norm": "model.layers.*.self_attn.k_norm",
}
_POST_NORMS = _QK_NORM | {
    "layers.*.attention_post_norm": "model.layers.*.post_attention_layernorm",
    "layers.*.mlp_norm": "model.layers.*.pre_feedforward_layernorm",
    "layers.*.mlp_post_norm": "model.layers.*.post_feedforward_layernorm",
}
_DEEPSEEK = LLAMA | {
    "layers.*.attention.query_down": "model.layers.*.self_attn.q_a_proj",
    "layers.*.attention.query_norm": "model.layers.*.self_attn.q_a_layernorm",
    "layers.*.attention.kv_down": "model.layers.*.self_attn.kv_a_proj_with_mqa",
    "layers.*.attention.kv_norm": "model.layers.*.self_attn.kv_a_layernorm",
    "layers.*.attention.kv": "model.layers.*.self_attn.kv_b_proj",
    "layers.*.mlp.router": "model.layers.*.mlp.gate",
    "layers.*.mlp.router.selection_bias": "model.layers.*.mlp.gate.e_score_correction_bias",
    "layers.*.mlp.shared.gate": "model.layers.*.mlp.shared_experts.gate_proj",
    "layers.*.mlp.shared.up": "model.layers.*.mlp.shared_experts.up_proj",
    "layers.*.mlp.shared.down": "model.layers.*.mlp.shared_experts.down_proj",
}
# Products that the files have fused and plait has apart are under names of their own: qkv, gate_up.
_PHI3 = LLAMA | {
    "layers.*.attention.qkv": "model.layers.*.self_attn.qkv_proj",
    "layers.*.mlp.gate_up": "model.layers.*.mlp.gate_up_proj",
}
_BLOOM = {
    "layers.*.attention.qkv": "transformer.h.*.self_attention.query_key_value",
    "embedding": "transformer.word_embeddings",
    "embedding_norm": "transformer.word_embeddings_layernorm",
    "layers.*.attention_norm": "transformer.h.*.input_layernorm",
    "layers.*.attention.output": "transformer.h.*.self_attention.dense",
    "layers.*.mlp_norm": "transformer.h.*.post_attention_layernorm",
    "layers.*.mlp.up": "transformer.h.*.mlp.dense_h_to_4h",
    "layers.*.mlp.down": "transformer.h.*.mlp.dense_4h_to_h",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}

DECODER_NAMES: dict[str, Mapping[str, str]] = {
    "llama": LLAMA,
    "smollm3": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": _QK_NORM,
    "gemma": LLAMA,
    "gemma2": _POST_NORMS,
    "gemma3": _POST_NORMS,
    "phi3": _PHI3,
    "mixtral": LLAMA | {"layers.*.mlp.router": "model.layers.*.block_sparse_moe.gate"},
    "qwen3_moe": _QK_NORM | {"layers.*.mlp.router": "model.layers.*.mlp.gate"},
    "gpt_oss": LLAMA
    | {
        "layers.*.attention.sinks": "model.layers.*.self_attn.sinks",
        "layers.*.mlp.router": "model.layers.*.mlp.router",
    },
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "bloom": _BLOOM,
    "falcon": _BLOOM,
}
"""By architecture; the experts' own weights are in the table below."""

EXPERT_NAMES: dict[str, Mapping[str, str]] = {
    "mixtral": {
        "gate": "block_sparse_moe.experts.*.w1.weight",
        "up": "block_sparse_moe.experts.*.w3.weight",
        "down": "block_sparse_moe.experts.*.w2.weight",
    },
    "": {
        "gate": "mlp.experts.*.gate_proj.weight",
        "up": "mlp.experts.*.up_proj.weight",
        "down": "mlp.experts.*.down_proj.weight",
    },
}
"""Of a tensor of one expert, `*` being its number, within a layer, by architecture; "" for all others."""

_LAYER = re.compile(r"\.(\d+)\.")


def original_name(name: str, modules: Mapping[str, str]) -> str:
    """Returns the name in the file of the tensor that plait calls `name`.

    Args:
        name: Dotted Flax path of a parameter, e.g. "layers.3.mlp.up.weight".
        modules: One of the tables above.
    """
    layer = _LAYER.search(name)
    general = name if layer is None else _LAYER.sub(".*.", name, count=1)
    module, _, leaf = general.rpartition(".")
    original = modules[general] if general in modules else f"{modules[module]}.{leaf}"
    return original if layer is None else original.replace("*", layer[1], 1)
