"""Tiny decoders with mixtures of experts: Mixtral, Qwen3-MoE, gpt-oss, DeepSeek."""

from __future__ import annotations

from decoder_case import FULL, SLIDING, DecoderCase, llama_like_config, older, rope
from decoder_weights import Config, Shapes

__all__ = ["expert_cases"]


def expert_cases() -> list[DecoderCase]:
    """Returns the cases; each has a draw of weights that keeps its routers far from ties."""
    return [_mixtral(), *_qwen3_moe_cases(), _gpt_oss(), _deepseek_v2(), *_deepseek_cases()]


def _mixtral() -> DecoderCase:
    config = llama_like_config(
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
    return DecoderCase("mixtral", config, older(config, "head_dim"), draw=3, gguf_types=("f16",))


def _qwen3_moe_cases() -> list[DecoderCase]:
    normalized = llama_like_config(
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
            older(config, "num_local_experts", num_experts=8, max_window_layers=2),
            draw=draw,
            gguf_types=gguf_types,
        )
        for name, config, draw, gguf_types in (
            ("qwen3_moe", normalized, 1, ("f16",)),
            ("qwen3_moe_mixed", mixed, 7, ()),
        )
    ]


def _gpt_oss() -> DecoderCase:
    config = llama_like_config(
        "GptOssForCausalLM",
        "gpt_oss",
        attention_bias=True,
        head_dim=32,
        intermediate_size=64,
        layer_types=[SLIDING, FULL, SLIDING],
        max_position_embeddings=1024,
        num_experts_per_tok=2,
        num_hidden_layers=3,
        num_local_experts=4,
        output_router_logits=False,
        rope_parameters=rope(
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
    published = older(
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


def _deepseek_config(**fields: object) -> Config:
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
        "rope_parameters": rope(
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
    return llama_like_config("DeepseekV3ForCausalLM", "deepseek_v3", **(base | fields))


def _older_deepseek(config: Config, **replaced: object) -> Config:
    return older(
        config,
        "head_dim",
        "qk_head_dim",
        "rope_interleave",
        ep_size=1,
        moe_layer_freq=1,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        **replaced,
    )


def _deepseek_v2() -> DecoderCase:
    config = _deepseek_config(n_shared_experts=2, norm_topk_prob=False, routed_scaling_factor=16.0)
    for key in ("num_nextn_predict_layers", "rope_interleave"):
        del config[key]
    config |= {
        "architectures": ["DeepseekV2ForCausalLM"],
        "mlp_bias": False,
        "model_type": "deepseek_v2",
        "topk_method": "group_limited_greedy",
    }
    published = older(config, "head_dim", "qk_head_dim", "mlp_bias", moe_layer_freq=1, scoring_func="softmax")
    return DecoderCase("deepseek_v2", config, published, draw=12, gguf_types=("f16",))


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
