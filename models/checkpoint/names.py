"""The name of each tensor in plait, in GGUF files and in Hugging Face files.

plait's name is the dotted Flax path, `layers.3.mlp.up.weight`. The tables give the original name of the module, `*`
being the number of the layer; the last part, `weight` or `bias`, is the same everywhere but in old BERT norms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["BERT", "LLAMA", "LLAMA_GGUF", "original_name"]

LLAMA_GGUF = {
    "embedding": "token_embd",
    "layers.*.attention_norm": "blk.*.attn_norm",
    "layers.*.attention.query": "blk.*.attn_q",
    "layers.*.attention.key": "blk.*.attn_k",
    "layers.*.attention.value": "blk.*.attn_v",
    "layers.*.attention.output": "blk.*.attn_output",
    "layers.*.mlp_norm": "blk.*.ffn_norm",
    "layers.*.mlp.gate": "blk.*.ffn_gate",
    "layers.*.mlp.up": "blk.*.ffn_up",
    "layers.*.mlp.down": "blk.*.ffn_down",
    "norm": "output_norm",
    "head": "output",
}

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

BERT = {  # without the prefix "bert." that models with a head carry
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.*.query": "encoder.layer.*.attention.self.query",
    "layers.*.key": "encoder.layer.*.attention.self.key",
    "layers.*.value": "encoder.layer.*.attention.self.value",
    "layers.*.attention_output": "encoder.layer.*.attention.output.dense",
    "layers.*.attention_norm": "encoder.layer.*.attention.output.LayerNorm",
    "layers.*.up": "encoder.layer.*.intermediate.dense",
    "layers.*.down": "encoder.layer.*.output.dense",
    "layers.*.output_norm": "encoder.layer.*.output.LayerNorm",
    "head.transform": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions",
}

_LAYER = re.compile(r"\.(\d+)\.")


def original_name(name: str, modules: Mapping[str, str]) -> str:
    """Returns the name in the file of the tensor that plait calls `name`.

    Args:
        name: Dotted Flax path of a parameter, e.g. "layers.3.mlp.up.weight".
        modules: One of the tables above.
    """
    module, _, leaf = name.rpartition(".")
    layer = _LAYER.search(module)
    if layer is None:
        return f"{modules[module]}.{leaf}"
    return f"{modules[_LAYER.sub('.*.', module, count=1)].replace('*', layer[1])}.{leaf}"
