"""What the fields of a decoder's config.json mean, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plait.errors import CheckpointError, UnsupportedModelError
from plait.models.checkpoint.hf_config import DECODERS, config_from_huggingface
from plait.models.config import DecoderConfig, Experts, LatentAttention, Rope
from plait.models.family import build

Fields = Mapping[str, object]


def config_of(architecture: str, **fields: object) -> DecoderConfig:
    return config_from_huggingface({"architectures": [architecture], **fields}, Path("config.json"))


LLAMA_31: Fields = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
LLAMA3_ROPE = Rope(theta=500_000.0, scaling="llama3", factor=8.0, original_positions=8192)
DEEPSEEK_YARN: Fields = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
FP8: Fields = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
DEEPSEEK_R1: Fields = {
    "max_position_embeddings": 163840,
    "moe_layer_freq": 1,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "quantization_config": FP8,
    "rope_scaling": DEEPSEEK_YARN,
    "rope_theta": 10000,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}


def test_llama_31_is_read_from_its_published_fields():
    config = config_of("LlamaForCausalLM", **LLAMA_31)
    assert config == DecoderConfig(
        num_layers=32,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=8,
        head_size=128,
        intermediate_size=14336,
        vocab_size=128256,
        max_positions=131072,
        rope=LLAMA3_ROPE,
    )


def test_deepseek_r1_is_read_from_its_published_fields():
    config = config_of("DeepseekV3ForCausalLM", **DEEPSEEK_R1)
    stretch = 0.1 * np.log(40) + 1
    assert config.rope == Rope(is_interleaved=True, scaling="yarn", factor=40.0, original_positions=4096)
    assert config.score_scale == pytest.approx(192**-0.5 * stretch**2)
    assert config.latent == LatentAttention(1536, 512, rope_size=64, nope_size=128, value_size=128)
    assert config.experts == Experts(
        num_experts=256,
        experts_per_token=8,
        intermediate_size=2048,
        shared_intermediate_size=2048,
        dense_layers=(0, 1, 2),
        score="sigmoid",
        scale=2.5,
        num_groups=8,
        groups_per_token=4,
        has_selection_bias=True,
    )
    assert (config.stored_form, config.stored_parts) == ("fp8", ("attention", "mlp", "experts"))
    assert config.dense == replace(config, stored_form=None, stored_parts=())


def test_gpt_oss_is_read_from_its_published_fields():
    config = config_of(
        "GptOssForCausalLM",
        num_hidden_layers=4,
        num_local_experts=32,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_scaling={
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        rope_theta=150000,
        quantization_config={"modules_to_not_convert": ["model.layers.*.self_attn"], "quant_method": "mxfp4"},
    )
    assert config.rope == Rope(
        theta=150_000.0,
        scaling="yarn",
        factor=32.0,
        original_positions=4096,
        truncates=False,
        magnitude=0.1 * np.log(32) + 1,
    )
    assert (config.window, config.sliding_layers) == (128, (0, 2))
    assert (config.stored_form, config.stored_parts) == ("mxfp4", ("experts",))


EVERYWHERE = tuple(range(4))
SIZES: Fields = {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 64}
SMALL_EXPERTS: Fields = {"num_experts_per_tok": 2, "topk_method": "greedy", "n_group": None, "topk_group": None}


@pytest.mark.parametrize(
    ("architecture", "fields", "expected"),
    [
        ("LlamaForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope.scaling": "linear"}),
        ("LlamaForCausalLM", {"attention_bias": True}, {"has_qkv_bias": True, "has_output_bias": True}),
        ("SmolLM3ForCausalLM", {}, {"ropeless_layers": (3,), "rope.theta": 2e6, "tie_embeddings": True}),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0, 1, 0]}, {"ropeless_layers": (1, 3)}),
        ("MistralForCausalLM", {}, {"window": 4096, "sliding_layers": EVERYWHERE, "num_kv_heads": 8}),
        ("MistralForCausalLM", {"sliding_window": None, "head_dim": 128}, {"window": 0, "head_size": 128}),
        ("Qwen2ForCausalLM", {"num_key_value_heads": 2}, {"has_qkv_bias": True, "has_output_bias": False, "window": 0}),
        (
            "Qwen2ForCausalLM",
            {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3},
            {"window": 16, "sliding_layers": (3,)},
        ),
        ("Qwen3ForCausalLM", {"num_key_value_heads": 2}, {"has_qk_norm": True, "head_size": 128}),
        (
            "GemmaForCausalLM",
            {"hidden_act": "gelu", "num_key_value_heads": 1},
            {"activation": "gelu_tanh", "embedding_scale": 8.0, "norm": "rms_unit_offset"},
        ),
        (
            "Gemma2ForCausalLM",
            {"query_pre_attn_scalar": 64},
            {"score_scale": 0.125, "score_cap": 50.0, "logit_cap": 30.0, "sliding_layers": (0, 2)},
        ),
        (
            "Gemma3ForCausalLM",
            {"sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {"rope.theta": 1e6, "rope.factor": 8.0, "sliding_rope.theta": 1e4, "sliding_rope.scaling": "none"},
        ),
        (
            "Gemma3ForCausalLM",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
                }
            },
            {"rope.theta": 5e5, "rope.factor": 8.0, "sliding_rope.theta": 2e4, "sliding_layers": EVERYWHERE},
        ),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 0.5}, {"rope.size": 4, "norm_epsilon": 1e-5}),
        ("Phi3ForCausalLM", {"sliding_window": 2047}, {"rope.size": 0, "window": 2047, "sliding_layers": EVERYWHERE}),
        ("MixtralForCausalLM", {}, {"experts.num_experts": 8, "experts.normalizes": True, "rope.theta": 1e6}),
        (
            "Qwen3MoeForCausalLM",
            {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
            {"experts.dense_layers": (0, 2, 3), "experts.normalizes": False},
        ),
        ("GptOssForCausalLM", {}, {"sliding_layers": (0, 2), "rope.truncates": False, "rope.factor": 32.0}),
        ("DeepseekV2ForCausalLM", SMALL_EXPERTS, {"experts.score": "softmax", "experts.num_groups": 1}),
        ("DeepseekV2ForCausalLM", {**SMALL_EXPERTS, "q_lora_rank": None}, {"latent.query_rank": None}),
        (
            "BloomForCausalLM",
            {"n_embed": 128},
            {"hidden_size": 128, "has_alibi": True, "rope": None, "is_gated": False},
        ),
        ("FalconForCausalLM", {}, {"num_kv_heads": 1, "residual": "parallel_shared_norm"}),
        (
            "FalconForCausalLM",
            {"new_decoder_architecture": True, "num_kv_heads": 2},
            {"num_kv_heads": 2, "residual": "parallel"},
        ),
        (
            "FalconForCausalLM",
            {"parallel_attn": False, "multi_query": False, "bias": True},
            {"num_kv_heads": 8, "residual": "sequential", "has_mlp_bias": True},
        ),
    ],
    ids=lambda value: value.removesuffix("ForCausalLM") if isinstance(value, str) else "",
)
def test_fields_mean_what_the_family_makes_of_them(architecture: str, fields: Fields, expected: Fields):
    config = config_of(architecture, **{**SIZES, **fields})
    for path, value in expected.items():
        found: object = config
        for name in path.split("."):
            found = getattr(found, name)
        assert found == value, path


def test_older_and_newer_files_say_the_same():
    older = config_of("LlamaForCausalLM", **LLAMA_31)
    newer = {key: value for key, value in LLAMA_31.items() if key not in ("rope_scaling", "rope_theta")}
    scaling = LLAMA_31["rope_scaling"]
    assert isinstance(scaling, dict)
    assert config_of("LlamaForCausalLM", **newer, rope_parameters=scaling | {"rope_theta": 5e5}) == older


def test_fields_that_are_missing_have_the_defaults_of_their_architecture():
    text = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32064}
    config = config_from_huggingface(
        {"architectures": ["LlavaForConditionalGeneration"], "text_config": text}, Path("config.json")
    )
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (32, 4096, 11008)
    assert (config.vocab_size, config.max_positions, config.norm_epsilon) == (32064, 4096, 1e-5)


def test_yi_is_llama_by_its_first_name():
    assert config_of("YiForCausalLM", **SIZES) == config_of("LlamaForCausalLM", **SIZES)


def test_parts_that_were_not_converted_are_not_stored():
    fields = {
        **FP8,
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "model.layers.0.self_attn.q_proj"],
    }
    config = config_of("Qwen3MoeForCausalLM", **SIZES, quantization_config=fields)
    assert (config.stored_form, config.stored_parts) == ("fp8", ("mlp", "experts"))


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'.*llama3, yarn"),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "longrope"}}, "rope type 'longrope' not supported"),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "rotary positions over 0.5 of each head not supported"),
        ("LlamaForCausalLM", {"hidden_act": "mish"}, "activation 'mish' not supported; supported: silu"),
        ("MistralForCausalLM", {"attention_bias": True}, "biases not supported"),
        ("Qwen3ForCausalLM", {"layer_types": ["chunked_attention"] * 4}, "layers of type 'chunked_attention' not"),
        ("GemmaForCausalLM", {"use_bidirectional_attention": True}, "bidirectional attention not supported"),
        ("GptOssForCausalLM", {"swiglu_limit": 5.0}, r"swiglu_limit 5\.0 not supported"),
        ("DeepseekV3ForCausalLM", {"moe_layer_freq": 2}, "moe_layer_freq 2 not supported"),
        ("DeepseekV3ForCausalLM", {"scoring_func": "softmax"}, "scores by 'softmax' not supported"),
        ("DeepseekV3ForCausalLM", {"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05 not supported"),
        ("DeepseekV2ForCausalLM", {**SMALL_EXPERTS, "norm_topk_prob": True}, "normalized weights of experts not"),
        ("BloomForCausalLM", {"apply_residual_connection_post_layernorm": True}, "a residual stream of normed values"),
        ("FalconForCausalLM", {"alibi": True}, "alibi not supported; supported: Falcon with rotary positions"),
        ("FalconForCausalLM", {"num_ln_in_parallel_attn": 2}, "2 norms before parallel attention not supported"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "gptq"}}, "'gptq' not supported.*fp8.*mxfp4"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "awq"}}, "quantization 'awq' not supported"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "fbgemm_fp8"}}, "quantization 'fbgemm_fp8' not"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "compressed-tensors"}}, "'compressed-tensors'"),
        ("LlamaForCausalLM", {"quantization_config": {"load_in_4bit": True}}, "quantization 'none' not supported"),
        (
            "LlamaForCausalLM",
            {"quantization_config": {**FP8, "weight_block_size": [64, 64]}},
            r"fp8 in blocks of \[64, 64\] not supported",
        ),
        ("MambaForCausalLM", {}, "'MambaForCausalLM' is not supported; supported: LlamaForCausalLM, .*, Gemma3ForCond"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_models_code_does_otherwise_is_refused(architecture: str, fields: Fields, message: str):
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        config_of(architecture, **{**SIZES, **fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("LlamaForCausalLM", {"hidden_size": 10**12}, "hidden_size: Input should be less than or equal to 16777216"),
        ("LlamaForCausalLM", {"num_hidden_layers": 10**9}, "num_hidden_layers: Input should be less than or equal to"),
        ("LlamaForCausalLM", {"num_hidden_layers": -1}, "num_hidden_layers: Input should be greater than 0"),
        ("LlamaForCausalLM", {"rms_norm_eps": float("nan")}, "rms_norm_eps: Input should be"),
        ("LlamaForCausalLM", {"hidden_size": "wide"}, "hidden_size: Input should be a valid integer"),
        ("LlamaForCausalLM", {"num_attention_heads": 7}, "its 7 heads do not divide evenly: hidden_size is 64"),
        ("LlamaForCausalLM", {"num_key_value_heads": 3}, "heads do not divide evenly: 8 heads over 3"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "yarn"}}, "rope type 'yarn' needs factor"),
        (
            "LlamaForCausalLM",
            {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            r"low_freq_factor is 4\.0, it must be below high_freq_factor, 1\.0",
        ),
        ("Qwen2ForCausalLM", {"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers is 4"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1]}, "no_rope_layers names 1 layers, there are 4"),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 0.4}, "leaves 3 values of a head to turn"),
        ("MixtralForCausalLM", {"num_experts_per_tok": 9}, "9 experts a token are not among 8"),
        ("DeepseekV3ForCausalLM", {"n_group": 7}, "256 experts in 7 groups, 4 of them a token, do not divide"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_absurd_fields_are_refused(architecture: str, fields: Fields, message: str):
    with pytest.raises(CheckpointError, match=message):
        config_of(architecture, **{**SIZES, **fields})


@pytest.mark.parametrize("architecture", DECODERS)
def test_every_architecture_can_be_planned(architecture: str):
    config = config_of(architecture, **SIZES, num_key_value_heads=4, num_experts_per_tok=4)
    assert build(replace(config, num_layers=1), "bfloat16").parameters
