from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType, GGUFEndian, GGUFWriter
from gguf_files import LLAMA, Weights, llama_weights, write_gguf

from plait.errors import CheckpointError, UnsupportedModelError
from plait.models.checkpoint import Checkpoint, open_checkpoint
from plait.models.checkpoint.gguf_config import config_from_gguf
from plait.models.checkpoint.gguf_names import gguf_recipes
from plait.models.checkpoint.gguf_reader import GGUFFiles, read_gguf
from plait.models.checkpoint.gguf_rope import rope_from_gguf, with_frequency_factors
from plait.models.checkpoint.recipes import check_recipe, follow_recipe
from plait.models.config import DecoderConfig, Experts, LatentAttention, Rope
from plait.models.decoder import Decoder
from plait.models.family import build

Q4_0, Q8_0 = GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0
NO_FILES = GGUFFiles(Path("m.gguf"), {})


def decoder_config(checkpoint: Checkpoint) -> DecoderConfig:
    assert isinstance(checkpoint.config, DecoderConfig)
    return checkpoint.config


def assert_holds(checkpoint: Checkpoint, weights: Weights, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert checkpoint.tensor_names == tuple(weights)
    for name, expected in weights.items():
        tensor = checkpoint.read(name)
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous
        np.testing.assert_allclose(tensor, expected, rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", llama_weights())


def test_gives_configuration_tokenizer_and_tensors(gguf_path: Path):
    checkpoint = open_checkpoint(gguf_path)
    assert checkpoint.config == LLAMA
    assert (checkpoint.bos_token, checkpoint.eos_token, checkpoint.eos_token_ids) == ("<user>", "<end>", (0,))
    assert (checkpoint.chat_template, checkpoint.max_sequence) == ("{{ messages[0].content }}", 128)
    assert_holds(checkpoint, llama_weights())


def test_tokenizer_splits_digits_and_knows_control_tokens(gguf_path: Path):
    tokenizer = tokenizers.Tokenizer.from_str(open_checkpoint(gguf_path).tokenizer_json)
    assert tokenizer.encode("ab12<end>").tokens == ["ab", "1", "2", "<end>"]
    assert tokenizer.decode(tokenizer.encode("ab cd é<end>").ids) == "ab cd é"


def test_with_an_output_matrix_is_untied(tmp_path: Path):
    weights = llama_weights() | {"head.weight": np.ones((260, 64), np.float32)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))
    assert not decoder_config(checkpoint).tie_embeddings
    assert checkpoint.read("head.weight").shape == (260, 64)


# Files of llama.cpp's converter, against transformers' logits of the same weights. `tests/oracle` made both.

DECODERS = Path(__file__).parents[1] / "golden" / "decoders"


@pytest.mark.parametrize("path", sorted(DECODERS.glob("*.gguf")), ids=lambda path: path.name)
def test_logits_are_those_of_transformers(path: Path):
    case, kind, _ = path.name.split(".")
    reference, prefix = np.load(DECODERS / f"{case}.npz"), "q8_0_" if kind == "q8_0" else ""
    tokens, positions = reference["tokens_96"][None], reference["positions_96"]
    rows = [*positions, *range(96, tokens.shape[1])]
    checkpoint = open_checkpoint(path)
    config = decoder_config(checkpoint).dense
    cache = [tuple(np.zeros((1, tokens.shape[1], *shape), np.float32) for shape in config.cache_shapes)]

    @jax.jit
    def logits(parameters: dict[str, jax.Array]) -> jax.Array:
        decoder = build(config, np.float32).module(parameters)
        assert isinstance(decoder, Decoder)
        hidden, _ = decoder.hidden_states(tokens, np.zeros(1, np.int32), cache * config.num_layers)  # type: ignore[arg-type]
        return decoder.logits(hidden)

    parameters = {name: jnp.asarray(checkpoint.read(name)) for name in checkpoint.tensor_names}
    found = np.asarray(logits(parameters))[0, rows]
    expected = np.concatenate([reference[f"{prefix}prefill_96"], reference[f"{prefix}decode_96"]])
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4


# Quantization


@pytest.mark.parametrize(
    ("quantization", "tolerance"), [("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 3e-2), ("Q4_1", 0.4)], ids=str
)
def test_tensors_are_dequantized(tmp_path: Path, quantization: str, tolerance: float):
    kind = GGMLQuantizationType[quantization]
    path = write_gguf(tmp_path / "m.gguf", llama_weights(), quantizations=lambda name: kind)
    assert_holds(open_checkpoint(path), llama_weights(), atol=tolerance, rtol=2e-2)


@pytest.mark.parametrize("name", [
    "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4",
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS",
])  # fmt: skip
def test_every_type_that_the_library_dequantizes_is_read(tmp_path: Path, name: str):
    kind = GGMLQuantizationType[name]
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (3, 512 // block_size * block_bytes), np.uint8)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("matrix", raw, raw_dtype=kind)
    write(writer)
    _, files = read_gguf(tmp_path / "m.gguf")
    assert (files.shape("matrix"), files.kind("matrix")) == ((3, 512), "float")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(files.read("matrix"), gguf.dequantize(raw, kind))


def write(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("quantized", "form", "parts"),
    [
        ({"attention": Q8_0, "mlp": Q8_0}, "q8_0", ("mlp", "attention")),
        ({"attention": Q4_0, "mlp": Q4_0}, "q4_0", ("mlp", "attention")),
        ({"mlp": Q4_0}, "q4_0", ("mlp",)),
        ({"attention": Q8_0, "mlp": Q4_0}, "q4_0", ("mlp",)),
        ({"attention.query": Q8_0, "mlp.up": Q8_0}, None, ()),
        ({"embedding": Q8_0}, None, ()),
        ({"attention": GGMLQuantizationType.Q4_1}, None, ()),
    ],
    ids=["all-q8_0", "all-q4_0", "mlp", "one-of-two-forms", "a-part-in-part", "embedding", "no-form-of-plait"],
)
def test_parts_of_one_quantization_have_a_stored_form(
    tmp_path: Path, quantized: dict[str, GGMLQuantizationType], form: str | None, parts: tuple[str, ...]
):
    def kind(name: str) -> GGMLQuantizationType:
        module = name.removeprefix("layers.0.").removeprefix("layers.1.")
        return next((kind for start, kind in quantized.items() if module.startswith(start)), GGMLQuantizationType.F16)

    config = decoder_config(open_checkpoint(write_gguf(tmp_path / "m.gguf", llama_weights(), quantizations=kind)))
    assert (config.stored_form, config.stored_parts) == (form, parts)
    assert config.dense == LLAMA


# Splits


@pytest.fixture
def splits(tmp_path: Path) -> list[Path]:
    """A file in several parts, as the library's writer splits it."""

    def split(writer: GGUFWriter) -> None:
        writer.split_max_tensors = 8

    write_gguf(tmp_path / "m.gguf", llama_weights(), extra=split)
    return sorted(tmp_path.glob("m-*.gguf"))


def test_a_split_file_is_opened_by_its_first_part(splits: list[Path]):
    assert [path.name for path in splits] == [f"m-0000{index}-of-00003.gguf" for index in (1, 2, 3)]
    assert_holds(open_checkpoint(splits[0]), llama_weights())


def test_a_later_part_says_which_is_the_first(splits: list[Path]):
    with pytest.raises(CheckpointError, match=r"a later one of 00003 splits; give the first one, m-00001-of-00003"):
        open_checkpoint(splits[1])


def test_a_missing_part_is_named(splits: list[Path]):
    splits[2].unlink()
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf is not beside it; fetch it too"):
        open_checkpoint(splits[0])


def test_a_renamed_split_says_how_splits_are_named(splits: list[Path]):
    path = splits[0].rename(splits[0].with_name("renamed.gguf"))
    with pytest.raises(CheckpointError, match=r"one of 3 splits; they must be named NAME-00001-of-0000N\.gguf"):
        open_checkpoint(path)


def test_a_part_of_another_split_is_refused(splits: list[Path]):
    splits[2].write_bytes(splits[1].read_bytes())
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf: its tensor '.*' is in another split too"):
        open_checkpoint(splits[0])


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


# Architectures: what metadata and the names of tensors say. Whole files of all are in test_decoders_vs_reference.py.


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


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "mamba"}, "GGUF architecture 'mamba' is not supported; supported: llama, smollm3, qwen2"),
        ({"pre": "viking"}, "pre-tokenizer 'viking' is not supported; supported: 'llama', 'bert', and 'gpt2' with"),
        ({"extra": lambda writer: writer.add_tensor("odd", np.ones(8, np.float32))}, "its tensor 'odd' is none that"),
        (
            {"extra": lambda writer: writer.add_tensor("odd", np.ones(8, np.int32))},
            "quantization I32 not supported; supported: F32, F16, Q4_0",
        ),
    ],
    ids=["architecture", "tokenizer", "tensor", "quantization"],
)
def test_unsupported_says_what_is_supported(tmp_path: Path, options: dict, message: str):
    path = write_gguf(tmp_path / "m.gguf", llama_weights(), **options)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(path)


def test_without_a_tensor_is_refused(tmp_path: Path):
    weights = llama_weights()
    del weights["layers.1.mlp.up.weight"]
    with pytest.raises(CheckpointError, match=r"has no tensor blk\.1\.ffn_up\.weight.*layers\.1\.mlp\.up\.weight"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))


def test_with_a_tensor_of_another_shape_is_refused(tmp_path: Path):
    weights = llama_weights() | {"layers.1.mlp.up.weight": np.ones((95, 64), np.float32)}
    with pytest.raises(CheckpointError, match=r"'blk\.1\.ffn_up\.weight' is \[95, 64\].*wants \[96, 64\]"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 0.3, 0.6, 0.999], ids=str)
def test_truncated_is_refused(gguf_path: Path, tmp_path: Path, share: float):
    data = gguf_path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.gguf is no GGUF file that can be read: .*fetch it again"):
        open_checkpoint(tmp_path / "cut.gguf")


def with_count(offset: int, count: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + struct.pack("<Q", count) + data[offset + 8 :]


def with_array(kind: int, count: int) -> Callable[[bytes], bytes]:
    """Puts an array of that many values of a kind in the place of the first field, which is a string."""
    value = 24 + 8 + len("general.architecture")
    return lambda data: data[:value] + struct.pack("<IIQ", 9, kind, count) + data[value + 16 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_count(8, 2**60), "1152921504606846976 tensors, the limit is 1048576"),
        (with_count(16, 2**60), "1152921504606846976 metadata fields, the limit is 65536"),
        (with_count(24, 2**63), "the file ends at byte"),
        (with_array(8, 2**60), "1152921504606846976 values in an array, the limit is 16777216"),
        (with_array(8, 2**24), "the file ends at byte"),
        (with_array(4, 2**24), "the file ends at byte"),
        (with_array(9, 1), "an array of arrays, which is not supported"),
    ],
    ids=["tensors", "fields", "string", "array", "strings", "numbers", "arrays"],
)
def test_hostile_counts_are_refused(gguf_path: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str):
    (tmp_path / "m.gguf").write_bytes(damage(gguf_path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"no GGUF file that can be read: .*{message}.*; fetch it again"):
        open_checkpoint(tmp_path / "m.gguf")


def test_the_other_byte_order_is_refused(tmp_path: Path):
    write(GGUFWriter(tmp_path / "m.gguf", "llama", endianess=GGUFEndian.BIG))
    with pytest.raises(CheckpointError, match="it is of the other byte order, which is not supported"):
        open_checkpoint(tmp_path / "m.gguf")
