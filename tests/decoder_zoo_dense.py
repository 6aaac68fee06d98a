"""Tiny decoders with plain feed-forwards: Llama and its kin, Gemma, Phi-3, Bloom, Falcon."""

from __future__ import annotations

from decoder_case import FULL, SLIDING, DecoderCase, base_config, llama_like_config, older, rope
from decoder_weights import Config

__all__ = ["dense_cases"]


def dense_cases() -> list[DecoderCase]:
    """Returns the cases."""
    return [
        *_llama_cases(),
        _smollm3(),
        *_mistral_cases(),
        *_qwen_cases(),
        *_gemma_cases(),
        *_phi3_cases(),
        _bloom(),
        *_falcon_cases(),
    ]


def _llama(**fields: object) -> tuple[Config, Config]:
    biases: Config = {"attention_bias": False, "mlp_bias": False, "head_dim": 16, "pretraining_tp": 1}
    config = llama_like_config("LlamaForCausalLM", "llama", **(biases | fields))
    return config, older(config, "head_dim")


_LLAMA3 = rope(
    500_000.0,
    "llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def _llama_cases() -> list[DecoderCase]:
    llama2 = _llama(num_key_value_heads=4)
    inverse_frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (8,) for layer in range(2)}
    llama3 = _llama(rope_parameters=_LLAMA3)
    linear = _llama(rope_parameters=rope(10_000.0, "linear", factor=4.0))
    biased = _llama(attention_bias=True, mlp_bias=True)
    smollm = _llama(tie_word_embeddings=True, rope_parameters=rope(100_000.0))
    return [
        DecoderCase("llama2", *llama2, published_extra=inverse_frequencies, gguf_types=("f16", "q8_0")),
        DecoderCase("llama3_rope", *llama3, num_shards=3, gguf_types=("f16",)),
        DecoderCase("llama_linear_rope", *linear, gguf_types=("f16",)),
        DecoderCase("llama_biased", *biased),
        DecoderCase("smollm", *smollm, gguf_types=("f16",)),
    ]


def _smollm3() -> DecoderCase:
    config = llama_like_config(
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
    return DecoderCase("smollm3", config, older(config), gguf_types=("f16",))


def _mistral_cases() -> list[DecoderCase]:
    window = llama_like_config("MistralForCausalLM", "mistral", head_dim=16, sliding_window=16)
    nemo = llama_like_config("MistralForCausalLM", "mistral", 1_000_000.0, head_dim=32, sliding_window=None)
    return [
        DecoderCase("mistral_window", window, older(window, "head_dim")),
        DecoderCase("mistral_nemo", nemo, older(nemo), gguf_types=("f16",)),
    ]


def _qwen_cases() -> list[DecoderCase]:
    qwen2 = llama_like_config(
        "Qwen2ForCausalLM",
        "qwen2",
        1_000_000.0,
        layer_types=[FULL] * 2,
        max_window_layers=2,
        rms_norm_eps=1e-6,
        sliding_window=None,
        use_sliding_window=False,
    )
    window = qwen2 | {
        "layer_types": [FULL, FULL, SLIDING, SLIDING],
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
        DecoderCase("qwen2", qwen2, older(qwen2, "layer_types", sliding_window=16), gguf_types=("f16",)),
        DecoderCase("qwen2_window", window, older(window, "layer_types")),
        DecoderCase("qwen3", qwen3, older(qwen3, "layer_types"), gguf_types=("f16",)),
    ]


def _gemma_config(architecture: str, model_type: str, **fields: object) -> Config:
    base: Config = {
        "attention_bias": False,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }
    config = llama_like_config(architecture, model_type, **(base | fields))
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
        layer_types=[SLIDING, FULL],
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
        layer_types=[SLIDING] * 5 + [FULL, SLIDING],
        num_hidden_layers=7,
        query_pre_attn_scalar=16,
        rope_parameters={FULL: rope(1_000_000.0, "linear", factor=8.0), SLIDING: rope(10_000.0)},
        sliding_window=16,
        use_bidirectional_attention=False,
        **tanh,
    )
    scaled = gemma2 | {"head_dim": 32}  # as in the largest Gemma 2, scores are not divided by the root of a head's size
    old = ("layer_types", "tie_word_embeddings", "use_bidirectional_attention", "_sliding_window_pattern")
    return [
        DecoderCase(
            "gemma", gemma, older(gemma, *old, hidden_act="gelu"), norm_mean=0.0, down_gain=8.0, gguf_types=("f16",)
        ),  # "gelu" there has always meant the approximation by tanh
        *(
            DecoderCase(
                name,
                config,
                older(config, *old, **tanh, cache_implementation="hybrid"),
                norm_mean=0.0,
                gguf_types=gguf_types,
            )
            for name, config, gguf_types in (("gemma2", gemma2, ("f16",)), ("gemma2_scaled", scaled, ()))
        ),
        DecoderCase(
            "gemma3",
            gemma3,
            older(
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
    phi3 = llama_like_config(
        "Phi3ForCausalLM",
        "phi3",
        embd_pdrop=0.0,
        original_max_position_embeddings=128,
        resid_pdrop=0.0,
        rope_parameters=rope(10_000.0, partial_rotary_factor=1.0),
        sliding_window=None,
    )
    window = phi3 | {"sliding_window": 16, "num_key_value_heads": 4}
    return [
        DecoderCase("phi3", phi3, older(phi3), gguf_types=("f16",)),
        DecoderCase("phi3_window", window, older(window)),
    ]


def _bloom() -> DecoderCase:
    config = base_config(
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
    published = older(
        config,
        *("hidden_size", "n_head", "tie_word_embeddings"),
        attention_softmax_in_fp32=True,
        masked_softmax_fusion=True,
        n_embed=64,
        num_attention_heads=4,
        seq_length=2048,
    )
    return DecoderCase("bloom", config, published, down_gain=8.0, published_prefix="transformer.", gguf_types=("f16",))


def _falcon_cases() -> list[DecoderCase]:
    new = base_config(
        "FalconForCausalLM",
        "falcon",
        activation="gelu",
        alibi=False,
        bias=False,
        ffn_hidden_size=256,
        hidden_dropout=0.0,
        layer_norm_epsilon=1e-5,
        max_position_embeddings=2048,
        multi_query=True,
        new_decoder_architecture=True,
        num_attention_heads=4,
        num_hidden_layers=2,
        num_kv_heads=2,
        num_ln_in_parallel_attn=2,
        parallel_attn=True,
        rope_parameters=rope(10_000.0),
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
            older(config, *later, *dropped),
            down_gain=8.0,
            published_extra={"lm_head.weight": (128, 64)},
            gguf_types=gguf_types,
        )
        for name, config, dropped, gguf_types in (
            ("falcon_new", new, (), ("f16",)),
            ("falcon_multi_query", old, ("num_kv_heads",), ()),  # the converter takes it for one of many key heads
        )
    ]
