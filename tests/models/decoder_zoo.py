"""Tiny decoders of all families: their config.json, as transformers 5 saves it and as older files were published.

Sizes are such that what tells families apart shows: windows of 16 tokens and original contexts of 32 against prompts
of 96, head sizes that are not hidden size / heads, blocks that do not divide. `decoder_files` writes the directories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from decoder_weights import Config, Json, Shapes

__all__ = ["CASES", "NUM_DECODE_TOKENS", "PROMPT_LENGTHS", "DecoderCase"]

PROMPT_LENGTHS = (5, 64, 96)  # tokens
NUM_DECODE_TOKENS = 8  # given, one a step, after each prompt
VOCAB_SIZE = 128


@dataclass(frozen=True)
class DecoderCase:
    """A tiny decoder."""

    name: str
    config: Config  # config.json as transformers 5 saves it
    published: Config  # config.json of the same model as its publisher wrote it for transformers 4
    draw: int = 0  # number of the draw of the weights; mixtures of experts need one without near-ties
    norm_mean: float = 1.0  # of the norms' weights: 0 where the model adds 1
    quantization: Literal["none", "fp8", "mxfp4"] = "none"  # of the published weights
    num_shards: int = 1  # of the published weights
    published_prefix: str = ""  # of the saved names that the published ones lack
    published_extra: Shapes = field(default_factory=dict)  # tensors that are in the published file and are not used
    gguf_types: tuple[str, ...] = ()  # what llama.cpp's converter writes: "f16" holds the same weights, "q8_0" does not

    @property
    def family(self) -> str:
        """Name of the family in transformers, e.g. "qwen3_moe"."""
        return str(self.config["model_type"])


def _config(architecture: str, model_type: str, **fields: Json) -> Config:
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


def _llama_like(architecture: str, model_type: str, theta: float = 10_000.0, **fields: Json) -> Config:
    sizes: Config = {
        "hidden_act": "silu",
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _rope(theta),
    }
    return _config(architecture, model_type, **(sizes | fields))


def _rope(theta: float, rope_type: str = "default", **fields: Json) -> Config:
    return {"rope_theta": theta, "rope_type": rope_type, **fields}


def _older(config: Config, *dropped: str, type_key: str = "rope_type", **replaced: Json) -> Config:
    """Returns a configuration with the keys that files for transformers 4 have."""
    older = {key: value for key, value in config.items() if key not in dropped and key != "dtype"}
    rope = older.pop("rope_parameters", None)
    if isinstance(rope, dict) and "rope_theta" in rope:
        older["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
        older["rope_scaling"] = None if rope["rope_type"] == "default" else scaling | {type_key: rope["rope_type"]}
    return older | {"torch_dtype": "bfloat16", "transformers_version": "4.44.0"} | replaced


def _llama(name: str, *, type_key: str = "rope_type", **fields: Json) -> tuple[Config, Config]:
    biases: Config = {"attention_bias": False, "mlp_bias": False, "head_dim": 16, "pretraining_tp": 1}
    config = _llama_like("LlamaForCausalLM", "llama", **(biases | fields))
    return config, _older(config, "head_dim", type_key=type_key)


_LLAMA3 = _rope(
    500_000.0,
    "llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def _llama_cases() -> list[DecoderCase]:
    llama2 = _llama("llama2", num_key_value_heads=4)
    inverse_frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (8,) for layer in range(2)}
    llama3 = _llama("llama3", rope_parameters=_LLAMA3)
    linear = _llama("linear", type_key="type", rope_parameters=_rope(10_000.0, "linear", factor=4.0))
    biased = _llama("biased", attention_bias=True, mlp_bias=True)
    smollm = _llama("smollm", tie_word_embeddings=True, rope_parameters=_rope(100_000.0))
    return [
        DecoderCase("llama2", *llama2, published_extra=inverse_frequencies, gguf_types=("f16", "q8_0")),
        DecoderCase("llama3_rope", *llama3, num_shards=3, gguf_types=("f16",)),
        DecoderCase("llama_linear_rope", *linear, gguf_types=("f16",)),
        DecoderCase("llama_biased", *biased),
        DecoderCase("smollm", *smollm, gguf_types=("f16",)),
    ]


def _smollm3() -> DecoderCase:
    config = _llama_like(
        "SmolLM3ForCausalLM",
        "smollm3",
        2_000_000.0,
        attention_bias=False,
        layer_types=["full_attention"] * 4,
        mlp_bias=False,
        no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0],
        num_hidden_layers=4,
        sliding_window=None,
        tie_word_embeddings=True,
        use_sliding_window=False,
    )
    return DecoderCase("smollm3", config, _older(config), gguf_types=("f16",))


def _mistral_cases() -> list[DecoderCase]:
    window = _llama_like("MistralForCausalLM", "mistral", head_dim=16, sliding_window=16)
    nemo = _llama_like("MistralForCausalLM", "mistral", 1_000_000.0, head_dim=32, sliding_window=None)
    return [
        DecoderCase("mistral_window", window, _older(window, "head_dim")),
        DecoderCase("mistral_nemo", nemo, _older(nemo), gguf_types=("f16",)),
    ]


_FULL, _SLIDING = "full_attention", "sliding_attention"


def _qwen_cases() -> list[DecoderCase]:
    qwen2 = _llama_like(
        "Qwen2ForCausalLM",
        "qwen2",
        1_000_000.0,
        layer_types=[_FULL] * 2,
        max_window_layers=2,
        rms_norm_eps=1e-6,
        sliding_window=None,
        use_sliding_window=False,
    )
    window = qwen2 | {
        "layer_types": [_FULL, _FULL, _SLIDING, _SLIDING],
        "num_hidden_layers": 4,
        "sliding_window": 16,
        "use_sliding_window": True,
    }
    qwen3 = qwen2 | {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 32,
        "model_type": "qwen3",
        "tie_word_embeddings": True,
    }
    return [  # published files name a window even where it is switched off
        DecoderCase("qwen2", qwen2, _older(qwen2, "layer_types", sliding_window=16), gguf_types=("f16",)),
        DecoderCase("qwen2_window", window, _older(window, "layer_types")),
        DecoderCase("qwen3", qwen3, _older(qwen3, "layer_types"), gguf_types=("f16",)),
    ]


def _gemma_config(architecture: str, model_type: str, **fields: Json) -> Config:
    base: Config = {
        "attention_bias": False,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }
    config = _llama_like(architecture, model_type, **(base | fields))
    if model_type != "gemma":
        config["hidden_activation"] = config.pop("hidden_act")
    return config


def _gemma_cases() -> list[DecoderCase]:
    tanh: Config = {"hidden_act": "gelu_pytorch_tanh"}
    gemma = _gemma_config("GemmaForCausalLM", "gemma", use_bidirectional_attention=None, **tanh)
    gemma2 = _gemma_config(
        "Gemma2ForCausalLM",
        "gemma2",
        attn_logit_softcapping=5.0,
        final_logit_softcapping=8.0,
        head_dim=16,
        layer_types=[_SLIDING, _FULL],
        query_pre_attn_scalar=16,
        sliding_window=16,
        use_bidirectional_attention=None,
        **tanh,
    )
    gemma3 = _gemma_config(
        "Gemma3ForCausalLM",
        "gemma3_text",
        _sliding_window_pattern=6,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        head_dim=16,
        intermediate_size=64,
        layer_types=[_SLIDING] * 5 + [_FULL, _SLIDING],
        num_hidden_layers=7,
        query_pre_attn_scalar=16,
        rope_parameters={_FULL: _rope(1_000_000.0, "linear", factor=8.0), _SLIDING: _rope(10_000.0)},
        sliding_window=16,
        use_bidirectional_attention=False,
        **tanh,
    )
    scaled = gemma2 | {"head_dim": 32}  # as in the largest Gemma 2, scores are not divided by the root of a head's size
    old = ("layer_types", "tie_word_embeddings", "use_bidirectional_attention", "_sliding_window_pattern")
    return [
        DecoderCase(
            "gemma", gemma, _older(gemma, *old, hidden_act="gelu"), norm_mean=0.0, gguf_types=("f16",)
        ),  # "gelu" there has always meant the approximation by tanh
        *(
            DecoderCase(
                name,
                config,
                _older(config, *old, **tanh, cache_implementation="hybrid"),
                norm_mean=0.0,
                gguf_types=gguf_types,
            )
            for name, config, gguf_types in (("gemma2", gemma2, ("f16",)), ("gemma2_scaled", scaled, ()))
        ),
        DecoderCase(
            "gemma3",
            gemma3,
            _older(
                gemma3,
                *old,
                rope_theta=1_000_000,
                rope_local_base_freq=10_000,
                rope_scaling={"factor": 8.0, "rope_type": "linear"},
                sliding_window_pattern=6,
            ),
            norm_mean=0.0,
            gguf_types=("f16",),
        ),
    ]


def _phi3_cases() -> list[DecoderCase]:
    phi3 = _llama_like(
        "Phi3ForCausalLM",
        "phi3",
        embd_pdrop=0.0,
        original_max_position_embeddings=128,
        resid_pdrop=0.0,
        rope_parameters=_rope(10_000.0, partial_rotary_factor=1.0),
        sliding_window=None,
    )
    window = phi3 | {"sliding_window": 16, "num_key_value_heads": 4}
    return [
        DecoderCase("phi3", phi3, _older(phi3), gguf_types=("f16",)),
        DecoderCase("phi3_window", window, _older(window)),
    ]


def _mixtral() -> DecoderCase:
    config = _llama_like(
        "MixtralForCausalLM",
        "mixtral",
        1_000_000.0,
        head_dim=None,
        intermediate_size=16,
        num_experts_per_tok=2,
        num_local_experts=8,
        output_router_logits=False,
        router_aux_loss_coef=0.001,
        router_jitter_noise=0.0,
        sliding_window=None,
    )
    return DecoderCase("mixtral", config, _older(config, "head_dim"), draw=3, gguf_types=("f16",))


def _qwen3_moe_cases() -> list[DecoderCase]:
    normalized = _llama_like(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        1_000_000.0,
        attention_bias=False,
        decoder_sparse_step=1,
        head_dim=32,
        mlp_only_layers=[],
        moe_intermediate_size=16,
        norm_topk_prob=True,
        num_experts_per_tok=2,
        num_local_experts=8,
        output_router_logits=False,
        rms_norm_eps=1e-6,
        router_aux_loss_coef=0.001,
        sliding_window=None,
        use_sliding_window=False,
    )
    mixed = normalized | {
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "norm_topk_prob": False,
        "num_hidden_layers": 4,
    }  # only layer 1 is a mixture
    return [
        DecoderCase(
            name,
            config,
            _older(config, "num_local_experts", num_experts=8, max_window_layers=2),
            draw=draw,
            gguf_types=gguf_types,
        )
        for name, config, draw, gguf_types in (
            ("qwen3_moe", normalized, 1, ("f16",)),
            ("qwen3_moe_mixed", mixed, 7, ()),
        )
    ]


def _gpt_oss() -> DecoderCase:
    config = _llama_like(
        "GptOssForCausalLM",
        "gpt_oss",
        attention_bias=True,
        head_dim=32,
        intermediate_size=64,
        layer_types=[_SLIDING, _FULL, _SLIDING],
        max_position_embeddings=1024,
        num_experts_per_tok=2,
        num_hidden_layers=3,
        num_local_experts=4,
        output_router_logits=False,
        rope_parameters=_rope(
            150_000.0,
            "yarn",
            factor=32.0,
            beta_fast=32.0,
            beta_slow=1.0,
            original_max_position_embeddings=32,
            truncate=False,
        ),
        router_aux_loss_coef=0.9,
        sliding_window=16,
        swiglu_alpha=1.702,
        swiglu_limit=7.0,
    )
    published = _older(
        config,
        "swiglu_alpha",
        experts_per_token=2,
        initial_context_length=32,
        quantization_config={
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
    )
    return DecoderCase("gpt_oss", config, published, draw=2, quantization="mxfp4", gguf_types=("f16",))


def _deepseek_config(**fields: Json) -> Config:
    base: Config = {
        "attention_bias": False,
        "first_k_dense_replace": 1,
        "head_dim": 16,
        "kv_lora_rank": 32,
        "max_position_embeddings": 1280,
        "moe_intermediate_size": 16,
        "n_group": 4,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "num_nextn_predict_layers": 1,
        "output_router_logits": False,
        "pretraining_tp": 1,
        "q_lora_rank": 48,
        "qk_head_dim": 40,
        "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_interleave": True,
        "rope_parameters": _rope(
            10_000.0,
            "yarn",
            beta_fast=32,
            beta_slow=1,
            factor=40,
            mscale=1.0,
            mscale_all_dim=1.0,
            original_max_position_embeddings=32,
        ),
        "routed_scaling_factor": 2.5,
        "topk_group": 2,
        "v_head_dim": 32,
    }
    return _llama_like("DeepseekV3ForCausalLM", "deepseek_v3", **(base | fields))


def _older_deepseek(config: Config, **replaced: Json) -> Config:
    return _older(
        config,
        "head_dim",
        "qk_head_dim",
        "rope_interleave",
        type_key="type",
        ep_size=1,
        moe_layer_freq=1,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        **replaced,
    )


def _deepseek_cases() -> list[DecoderCase]:
    v3 = _deepseek_config()
    unequal = v3["rope_parameters"]
    assert isinstance(unequal, dict)
    lite = _deepseek_config(
        n_group=1,
        n_shared_experts=2,
        norm_topk_prob=False,
        q_lora_rank=None,
        rope_parameters=unequal | {"mscale_all_dim": 0.707},
        routed_scaling_factor=1.0,
        topk_group=1,
    )
    fp8 = _deepseek_config(hidden_size=256, intermediate_size=160, moe_intermediate_size=96, q_lora_rank=136)
    quantization: Config = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    next_token: Shapes = {  # a few of the layer for predicting two tokens ahead
        "model.layers.2.enorm.weight": (256,),
        "model.layers.2.hnorm.weight": (256,),
        "model.layers.2.shared_head.norm.weight": (256,),
        "model.layers.2.eh_proj.weight": (256, 512),
    }
    return [
        DecoderCase("deepseek_v3", v3, _older_deepseek(v3), draw=7, gguf_types=("f16",)),
        DecoderCase("deepseek_full_query", lite, _older_deepseek(lite), draw=6),
        DecoderCase(
            "deepseek_fp8",
            fp8,
            _older_deepseek(fp8, quantization_config=quantization),
            draw=24,
            quantization="fp8",
            num_shards=2,
            published_extra=next_token,
        ),
    ]


def _bloom() -> DecoderCase:
    config = _config(
        "BloomForCausalLM",
        "bloom",
        apply_residual_connection_post_layernorm=False,
        hidden_dropout=0.0,
        layer_norm_epsilon=1e-5,
        n_head=4,
        n_layer=2,
        pretraining_tp=1,
        slow_but_exact=False,
        tie_word_embeddings=True,
    )
    published = _older(
        config,
        *("hidden_size", "n_head", "tie_word_embeddings"),
        attention_softmax_in_fp32=True,
        masked_softmax_fusion=True,
        n_embed=64,
        num_attention_heads=4,
        seq_length=2048,
    )
    return DecoderCase("bloom", config, published, published_prefix="transformer.", gguf_types=("f16",))


def _falcon_cases() -> list[DecoderCase]:
    new = _config(
        "FalconForCausalLM",
        "falcon",
        activation="gelu",
        alibi=False,
        bias=False,
        ffn_hidden_size=256,
        hidden_dropout=0.0,
        layer_norm_epsilon=1e-5,
        max_position_embeddings=128,
        multi_query=True,
        new_decoder_architecture=True,
        num_attention_heads=4,
        num_hidden_layers=2,
        num_kv_heads=2,
        num_ln_in_parallel_attn=2,
        parallel_attn=True,
        rope_parameters=_rope(10_000.0),
        tie_word_embeddings=True,
    )
    old = new | {"new_decoder_architecture": False, "num_kv_heads": 4, "num_ln_in_parallel_attn": None}
    later = (
        "activation",
        "ffn_hidden_size",
        "max_position_embeddings",
        "num_ln_in_parallel_attn",
        "tie_word_embeddings",
    )
    return [
        DecoderCase(
            name,
            config,
            _older(config, *later, *dropped),
            published_extra={"lm_head.weight": (128, 64)},
            gguf_types=gguf_types,
        )
        for name, config, dropped, gguf_types in (
            ("falcon_new", new, (), ("f16",)),
            ("falcon_multi_query", old, ("num_kv_heads",), ()),  # the converter takes it for one of many key heads
        )
    ]


CASES: Mapping[str, DecoderCase] = {
    case.name: case
    for case in (
        *_llama_cases(),
        _smollm3(),
        *_mistral_cases(),
        *_qwen_cases(),
        *_gemma_cases(),
        *_phi3_cases(),
        _mixtral(),
        *_qwen3_moe_cases(),
        _gpt_oss(),
        *_deepseek_cases(),
        _bloom(),
        *_falcon_cases(),
    )
}
