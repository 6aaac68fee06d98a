"""What a tiny decoder is, and the fields that the config.json of all families share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from decoder_weights import Config, Shapes

__all__ = [
    "FULL",
    "NUM_DECODE_TOKENS",
    "PROMPT_LENGTHS",
    "SLIDING",
    "VOCAB_SIZE",
    "DecoderCase",
    "base_config",
    "llama_like_config",
    "older",
    "rope",
]

PROMPT_LENGTHS = (5, 64, 96)  # tokens
NUM_DECODE_TOKENS = 8  # given, one a step, after each prompt
VOCAB_SIZE = 128
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class DecoderCase:
    """A tiny decoder."""

    name: str
    config: Config  # config.json as transformers 5 saves it
    published: Config  # config.json of the same model as its publisher wrote it for transformers 4
    draw: int = 0  # number of the draw of the weights; mixtures of experts need one without near-ties
    norm_mean: float = 1.0  # of the norms' weights: 0 where the model adds 1
    down_gain: float = 1.0  # of the feed-forward's last product: large enough to tell GELU from its approximation
    quantization: Literal["none", "fp8", "mxfp4"] = "none"  # of the published weights
    num_shards: int = 1  # of the published weights
    published_prefix: str = ""  # of the saved names that the published ones lack
    published_extra: Shapes = field(default_factory=dict)  # tensors that are in the published file and are not used
    gguf_types: tuple[str, ...] = ()  # what llama.cpp's converter writes: "f16" holds the same weights, "q8_0" does not

    @property
    def family(self) -> str:
        """Name of the family in transformers, e.g. "qwen3_moe"."""
        return str(self.config["model_type"])


def base_config(architecture: str, model_type: str, /, **fields: object) -> Config:
    base: Config = {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dtype": "float32",
        "eos_token_id": 2,
        "hidden_size": 64,
        "initializer_range": 0.02,
        "model_type": model_type,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "transformers_version": "5.23.0",
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }
    return base | fields


def llama_like_config(architecture: str, model_type: str, theta: float = 10_000.0, /, **fields: object) -> Config:
    sizes: Config = {
        "hidden_act": "silu",
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope(theta),
    }
    return base_config(architecture, model_type, **(sizes | fields))


def rope(theta: float, rope_type: str = "default", /, **fields: object) -> Config:
    return {"rope_theta": theta, "rope_type": rope_type, **fields}


def older(config: Config, *dropped: str, **replaced: object) -> Config:
    """Returns a configuration with the keys that files for transformers 4 have."""
    older = {key: value for key, value in config.items() if key not in dropped and key != "dtype"}
    rope = older.pop("rope_parameters", None)
    if isinstance(rope, dict) and "rope_theta" in rope:
        older["rope_theta"] = rope["rope_theta"]
        is_early = rope["rope_type"] == "linear" or str(config["model_type"]).startswith("deepseek")
        type_key = "type" if is_early else "rope_type"  # the key was renamed with Llama 3.1
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
        older["rope_scaling"] = None if rope["rope_type"] == "default" else scaling | {type_key: rope["rope_type"]}
    return older | {"torch_dtype": "bfloat16", "transformers_version": "4.44.0"} | replaced
