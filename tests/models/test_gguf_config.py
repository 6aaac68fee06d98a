"""GGUF metadata without a file: rotary positions, configurations by architecture, recipes of parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from gguf_files import LLAMA

from plait.errors import CheckpointError, UnsupportedModelError
from plait.models.checkpoint.gguf_config import config_from_gguf
from plait.models.checkpoint.gguf_names import gguf_recipes
from plait.models.checkpoint.gguf_reader import GGUFFiles
from plait.models.checkpoint.gguf_rope import rope_from_gguf, with_frequency_factors
from plait.models.checkpoint.recipes import check_recipe, follow_recipe
from plait.models.config import DecoderConfig, Experts, LatentAttention, Rope

# Rotary positions


def rope(**fields: object) -> Rope:
    return rope_from_gguf(Path("m.gguf"), {f"rope.{k}": v for k, v in fields.items()}, head_size=64, max_positions=4096)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Rope()),
        ({"freq_base": float(np.float32(1e6)), "dimension_count": 64}, Rope(theta=1e6)),
        ({"dimension_count": 32}, Rope(size=32)),
        ({"scaling.type": "linear", "scaling.factor": 8.0}, Rope(scaling="linear", factor=8.0)),
        ({"scale_linear": 4.0}, Rope(scaling="linear", factor=4.0)),
        ({"scaling.type": "none", "scaling.factor": 8.0}, Rope()),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 1024},
            Rope(scaling="yarn", factor=4.0, original_positions=1024, magnitude=1 + 0.1 * math.log(4.0)),
        ),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_attn_factor": 1.5},
            Rope(scaling="yarn", factor=4.0, original_positions=4096, magnitude=1.5),
        ),
    ],
    ids=["default", "theta", "part", "linear", "older-linear", "none", "yarn", "yarn-magnitude"],
)
def test_rope_is_read_from_its_fields(fields: dict[str, object], expected: Rope):
    assert rope(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaling.type": "longrope"}, "rope scaling 'longrope' not supported; supported: rope scaling none, linear"),
        ({"scaling.yarn_ext_factor": 0.5}, "extrapolation factor of 0.5 not supported"),
        ({"dimension_sections": [16, 24, 24, 0]}, "positions in several dimensions not supported"),
    ],
    ids=["longrope", "extrapolation", "sections"],
)
def test_other_ropes_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(UnsupportedModelError, match=message):
        rope(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"freq_base": math.nan},
        {"freq_base": -1.0},
        {"dimension_count": 65},
        {"dimension_count": 0},
        {"freq_base": 1e39},
    ],
    ids=["nan", "negative", "more-than-the-head", "zero", "infinite"],
)
def test_absurd_ropes_are_refused(fields: dict[str, object]):
    with pytest.raises(CheckpointError, match=r"m\.gguf: rope\."):
        rope(**fields)


def llama3_factors(theta: float, size: int, factor: float, length: int) -> np.ndarray:
    """By the definition, pair by pair, in the f32 that files have."""
    factors = []
    for pair in range(size // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / size)
        share = (length / wavelength - 1.0) / (4.0 - 1.0)
        between = 1 / ((1 - share) / factor + share)
        factors.append(1.0 if wavelength < length / 4 else factor if wavelength > length else between)
    return np.array(factors, np.float32)


@pytest.mark.parametrize(
    ("theta", "size", "factor", "length"),
    [(5e5, 128, 8.0, 8192), (5e5, 64, 32.0, 8192), (1e4, 16, 4.0, 32), (5e5, 16, 4.0, 32), (1e4, 128, 2.5, 5000)],
    ids=["llama-3.1", "llama-3.2", "tiny", "tiny-without-a-blended-pair", "odd"],
)
def test_frequency_factors_give_llama3_scaling_away(theta: float, size: int, factor: float, length: int):
    scaled = with_frequency_factors(
        Path("m.gguf"), Rope(theta=theta), size, llama3_factors(theta, size, factor, length)
    )
    assert scaled == Rope(theta=theta, scaling="llama3", factor=factor, original_positions=length)


def test_frequency_factors_of_one_scale_nothing():
    assert with_frequency_factors(Path("m.gguf"), Rope(), 16, np.ones(8, np.float32)) == Rope()


@pytest.mark.parametrize(
    "factors",
    [
        llama3_factors(5e5, 64, 8.0, 8192)[::-1],
        llama3_factors(5e5, 64, 8.0, 8192)[:-1],
        llama3_factors(5e5, 64, 8.0, 8192) * 1.01,
        np.full(32, np.nan, np.float32),
        np.full(32, np.inf, np.float32),
        np.full(32, 0.5, np.float32),
        np.zeros(32, np.float32),
    ],
    ids=["reversed", "too-few", "off", "nan", "infinite", "faster", "zero"],
)
def test_other_frequency_factors_are_refused(factors: np.ndarray):
    with pytest.raises(UnsupportedModelError, match="rope frequency factors other than llama3's are not supported"):
        with_frequency_factors(Path("m.gguf"), Rope(theta=5e5), 64, factors)


# Architectures: what metadata and the names of tensors say. Whole files are in test_gguf.py.


def config(architecture: str, *names: str, **fields: object) -> DecoderConfig:
    """The configuration of four layers with these fields and tensors."""
    common: dict[str, object] = {
        "block_count": 4,
        "context_length": 4096,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    own = {f"{architecture}.{name}": value for name, value in (common | fields).items() if value is not None}
    tensors = dict.fromkeys(("a", "b", "c", "d", *names))
    files = GGUFFiles(Path("m.gguf"), tensors)  # type: ignore[arg-type]
    return config_from_gguf(Path("m.gguf"), {"general.architecture": architecture, **own}, files, num_tokens=100)


EXPERTS = {"expert_count": 8, "expert_used_count": 2}
ROUTERS = [f"blk.{layer}.ffn_gate_inp.weight" for layer in (1, 2, 3)]


def test_layers_without_a_router_are_dense():
    found = config("qwen3moe", *ROUTERS, **EXPERTS, expert_feed_forward_length=32)
    assert found.experts == Experts(8, 2, 32, dense_layers=(0,))
    assert (found.architecture, found.intermediate_size) == ("qwen3_moe", 96)


def test_llama_with_experts_is_mixtral():
    found = config("llama", *ROUTERS, **EXPERTS)
    assert found.experts == Experts(8, 2, 96, dense_layers=(0,))
    assert found.architecture == "mixtral"


@pytest.mark.parametrize(
    ("architecture", "fields", "window", "layers"),
    [
        ("gemma2", {}, 4096, (0, 2)),
        ("gemma3", {"attention.sliding_window": 16}, 16, (0, 1, 2, 3)),
        ("gemma3", {"attention.sliding_window": 16, "attention.sliding_window_pattern": 3}, 16, (0, 1, 3)),
        (
            "gemma3",
            {"attention.sliding_window": 16, "attention.sliding_window_pattern": [False, True, False, False]},
            16,
            (1,),
        ),
        ("gemma3", {}, 0, ()),
        ("phi3", {"attention.sliding_window": 16}, 16, (0, 1, 2, 3)),
        ("phi3", {"attention.sliding_window": 0}, 0, ()),
    ],
    ids=["gemma2", "gemma3", "pattern", "list", "gemma3-without", "phi3", "phi4"],
)
def test_layers_slide_by_architecture(architecture: str, fields: dict, window: int, layers: tuple[int, ...]):
    found = config(architecture, **fields)
    assert (found.window, found.sliding_layers) == (window, layers)


@pytest.mark.parametrize(("num_layers", "scale"), [(26, 32**-0.5), (62, 16**-0.5)], ids=["1b", "27b"])
def test_the_largest_gemma_scales_scores_by_its_width(num_layers: int, scale: float):
    names = [str(index) for index in range(num_layers)]
    found = config("gemma3", *names, block_count=num_layers, **{"attention.key_length": 32})
    assert found.score_scale == pytest.approx(scale)


LATENT = {
    "attention.q_lora_rank": 24,
    "attention.kv_lora_rank": 16,
    "attention.head_count_kv": 1,
    "rope.dimension_count": 8,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 2,
    "expert_weights_scale": 2.5,
}
OLDER = {"attention.key_length": 24, "attention.value_length": 12}
NEWER = {"attention.key_length": 24 + 16, "attention.value_length": 16} | {
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 12,
}


@pytest.mark.parametrize("lengths", [OLDER, NEWER], ids=["older", "newer"])
def test_deepseek_has_latent_attention(lengths: dict[str, object]):
    found = config("deepseek2", *ROUTERS, **LATENT, **EXPERTS, **lengths)
    assert found.latent == LatentAttention(24, 16, 8, 16, 12)
    assert (found.head_size, found.num_kv_heads, found.rope) == (24, 4, Rope(is_interleaved=True))
    assert found.experts == Experts(
        8, 2, 32, shared_intermediate_size=64, dense_layers=(0,), normalizes=False, scale=2.5
    )
    assert found.architecture == "deepseek_v2"


def test_a_selection_bias_stands_for_sigmoid_scores():
    names = (*ROUTERS, "blk.1.exp_probs_b.bias")
    found = config("deepseek2", *names, **LATENT, **EXPERTS, **NEWER)
    assert found.experts is not None
    assert (found.experts.score, found.experts.has_selection_bias) == ("sigmoid", True)
    assert found.architecture == "deepseek_v3"


def test_deepseek_stretches_scores_not_rotations_in_yarn():
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 40.0, "rope.scaling.yarn_log_multiplier": 0.1}
    found = config("deepseek2", *ROUTERS, **LATENT, **EXPERTS, **NEWER, **yarn)
    assert found.rope is not None
    assert found.rope.magnitude == 1.0
    assert found.score_scale == pytest.approx(24**-0.5 * (1 + 0.1 * math.log(40.0)) ** 2)


def test_layers_that_draft_further_tokens_are_not_the_models():
    assert config("deepseek2", **LATENT, **NEWER, nextn_predict_layers=1).num_layers == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention.clamp_kqv": 8.0}, r"llama\.attention\.clamp_kqv 8\.0 not supported"),
        ({"attention.value_length": 32}, "keys and values of different sizes not supported"),
        ({"expert_gating_func": 4} | EXPERTS, "expert gating function 4 not supported; supported: softmax and sigmoid"),
    ],
    ids=["clamp", "values", "gating"],
)
def test_fields_that_change_what_is_computed_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(UnsupportedModelError, match=message):
        config("llama", *ROUTERS, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_count": 1_000_000_000}, "1000000000 layers, it has 7 tensors"),
        ({"block_count": None}, "block_count: Field required"),
        ({"embedding_length": -64}, "embedding_length: Input should be greater than 0"),
        ({"attention.head_count": 2**40}, "head_count: Input should be less than 2147483648"),
        ({"attention.head_count_kv": [4, 4, 2, 4]}, "head_count_kv: .* differs from layer to layer"),
        ({"attention.layer_norm_rms_epsilon": math.nan}, "layer_norm_rms_epsilon: Input should be"),
        ({"attention.layer_norm_rms_epsilon": None}, r"llama\.attention\.layer_norm_rms_epsilon: Field required"),
        ({"expert_count": 8}, "expert_used_count: Field required"),
        ({"nextn_predict_layers": 4}, "0 layers"),
    ],
    ids=["layers", "no-layers", "negative", "huge", "uneven", "nan", "epsilon", "experts", "drafting"],
)
def test_absurd_fields_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(CheckpointError, match=message):
        config("llama", *ROUTERS, **fields)


def test_equal_fields_of_all_layers_are_one():
    found = config("llama", **{"attention.head_count_kv": [2, 2, 2, 2]})
    assert found.num_kv_heads == 2


def test_an_unknown_architecture_says_what_is_supported():
    with pytest.raises(UnsupportedModelError, match="architecture 'mamba' is not supported; supported: llama, smollm3"):
        config("mamba")


# Recipes of forms that no file of the converter's has any more


@dataclass(frozen=True)
class Arrays:
    """Tensors in memory."""

    tensors: dict[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def kind(self, name: str) -> str:
        del name
        return "float"

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]


MOE = replace(LLAMA, experts=Experts(3, 2, 8))
RANDOM = np.random.default_rng(0)
STACKED, UP = RANDOM.standard_normal((3, 8, 64), np.float32), RANDOM.standard_normal((3, 8, 64), np.float32)
UP_LATENT = RANDOM.standard_normal((4 * (16 + 12), 16), np.float32)
LATENTS = replace(LLAMA, latent=LatentAttention(None, 16, 8, 16, 12))


@pytest.mark.parametrize(
    ("config", "name", "tensors", "expected"),
    [
        (MOE, "layers.0.mlp.gate.weight", {"blk.0.ffn_gate_exps.weight": STACKED}, STACKED),
        (
            MOE,
            "layers.0.mlp.gate.weight",
            {f"blk.0.ffn_gate.{index}.weight": expert for index, expert in enumerate(STACKED)},
            STACKED,
        ),
        (
            MOE,
            "layers.0.mlp.gate.weight",
            {"blk.0.ffn_gate_up_exps.weight": np.concatenate([STACKED, UP], 1)},
            STACKED,
        ),
        (MOE, "layers.0.mlp.up.weight", {"blk.0.ffn_gate_up_exps.weight": np.concatenate([STACKED, UP], 1)}, UP),
        (LATENTS, "layers.1.attention.kv.weight", {"blk.1.attn_kv_b.weight": UP_LATENT}, UP_LATENT),
        (
            LATENTS,
            "layers.1.attention.kv.weight",
            {
                "blk.1.attn_k_b.weight": UP_LATENT.reshape(4, 28, 16)[:, :16].swapaxes(1, 2),
                "blk.1.attn_v_b.weight": UP_LATENT.reshape(4, 28, 16)[:, 16:],
            },
            UP_LATENT,
        ),
    ],
    ids=["stacked", "one-by-one", "gate-of-both", "up-of-both", "latents", "split-latents"],
)
def test_parameters_are_made_from_whatever_the_file_has(
    config: DecoderConfig, name: str, tensors: dict[str, np.ndarray], expected: np.ndarray
):
    files, path = Arrays(tensors), Path("m.gguf")
    recipe = gguf_recipes(config, files.names)(name, expected.shape)
    check_recipe(path, name, recipe, files)
    np.testing.assert_array_equal(follow_recipe(path, name, recipe, expected.shape, files), expected)
