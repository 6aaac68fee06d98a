"""Hugging Face directories of decoders: parameters made of whatever tensors there are; configurations alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import BERT_CONFIG, LLAMA_CONFIG, write_tiny_bert, write_tiny_llama

from plait.errors import CheckpointError, UnsupportedModelError
from plait.models.checkpoint import open_checkpoint, read_config
from plait.models.checkpoint.hf_config import config_from_huggingface
from plait.models.config import DecoderConfig
from plait.models.family import build

Fields = Mapping[str, object]
Weights = dict[str, np.ndarray]


def config_of(architecture: str, **fields: object) -> DecoderConfig:
    return config_from_huggingface({"architectures": [architecture], **fields}, Path("config.json"))


BASE: Fields = {
    "vocab_size": LLAMA_CONFIG.vocab_size,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = range(4)
LAYER = "model.layers.0"
OURS = "layers.0"


def write_directory(directory: Path, config: Fields, tensors: Weights) -> Path:
    write_tiny_llama(directory)  # for its tokenizer
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, directory / "model.safetensors")
    return directory


def random_parameters(config: DecoderConfig) -> Weights:
    generator = np.random.default_rng(0)
    parameters = build(config.dense, "float32").parameters
    return {name: generator.standard_normal(p.shape).astype(np.float32) for name, p in parameters.items()}


def plain_names(parameters: Weights, **modules: str) -> Weights:
    """Returns the tensors that every family has alike; the others are added by the test."""
    renamed = {
        "embedding.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
        f"{OURS}.attention_norm.weight": f"{LAYER}.input_layernorm.weight",
        f"{OURS}.mlp_norm.weight": f"{LAYER}.post_attention_layernorm.weight",
    }
    for module, original in {"query": "q", "key": "k", "value": "v", "output": "o"}.items():
        for leaf in ("weight", "bias"):
            renamed[f"{OURS}.attention.{module}.{leaf}"] = f"{LAYER}.self_attn.{original}_proj.{leaf}"
    renamed |= {f"{OURS}.{ours}.weight".replace("__", "."): f"{LAYER}.{name}.weight" for ours, name in modules.items()}
    return {renamed[name]: values for name, values in parameters.items() if name in renamed}


def phi3(p: Weights) -> Weights:
    tensors = plain_names(p, mlp__down="mlp.down_proj")
    heads = [tensors.pop(f"{LAYER}.self_attn.{name}_proj.weight") for name in "qkv"]
    tensors[f"{LAYER}.self_attn.qkv_proj.weight"] = np.concatenate(heads)
    halves = [p[f"{OURS}.mlp.{name}.weight"] for name in ("gate", "up")]
    return tensors | {f"{LAYER}.mlp.gate_up_proj.weight": np.concatenate(halves)}


def interleaved_heads(p: Weights, leaf: str, num_kv_heads: int) -> np.ndarray:
    """The rows of each key's head after those of its queries, then those of its value: row by row."""
    size, rows = 16, []
    query, key, value = (p[f"{OURS}.attention.{name}.{leaf}"] for name in ("query", "key", "value"))
    group = len(query) // len(key)
    for head in range(num_kv_heads):
        rows += [query[i] for i in range(head * group * size, (head + 1) * group * size)]
        rows += [key[i] for i in range(head * size, (head + 1) * size)]
        rows += [value[i] for i in range(head * size, (head + 1) * size)]
    return np.stack(rows)


def with_h(p: Weights, num_kv_heads: int, *, has_norm: bool, norms: tuple[str, ...], prefix: str) -> Weights:
    """Bloom's and Falcon's names."""
    modules = {
        "attention.output": "self_attention.dense",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
    }
    modules |= dict(zip(("attention_norm", "mlp_norm"), norms, strict=False))
    tensors = {
        f"{prefix}h.0.{modules[module]}.{leaf}": values
        for name, values in p.items()
        for module, _, leaf in [name.removeprefix(f"{OURS}.").rpartition(".")]
        if name.startswith(OURS) and module in modules
    }
    for leaf in ("weight", "bias"):
        if f"{OURS}.attention.query.{leaf}" in p:
            tensors[f"{prefix}h.0.self_attention.query_key_value.{leaf}"] = interleaved_heads(p, leaf, num_kv_heads)
        tensors[f"{prefix}ln_f.{leaf}"] = p[f"norm.{leaf}"]
        if has_norm:
            tensors[f"{prefix}word_embeddings_layernorm.{leaf}"] = p[f"embedding_norm.{leaf}"]
    return tensors | {f"{prefix}word_embeddings.weight": p["embedding.weight"]}


def mixtral(p: Weights) -> Weights:
    tensors = plain_names(p, mlp__router="block_sparse_moe.gate")
    for ours, name in {"gate": "w1", "down": "w2", "up": "w3"}.items():
        for expert in EXPERTS:
            values = p[f"{OURS}.mlp.{ours}.weight"][expert]
            tensors[f"{LAYER}.block_sparse_moe.experts.{expert}.{name}.weight"] = values
    return tensors


def stacked_mixtral(p: Weights) -> Weights:
    halves = [p[f"{OURS}.mlp.{name}.weight"] for name in ("gate", "up")]
    return plain_names(p, mlp__router="mlp.gate") | {
        f"{LAYER}.mlp.experts.gate_up_proj": np.concatenate(halves, axis=1),
        f"{LAYER}.mlp.experts.down_proj": p[f"{OURS}.mlp.down.weight"],
    }


def gpt_oss(p: Weights) -> Weights:
    """All but the weights of gate, up and down."""
    tensors = plain_names(p, mlp__router="mlp.router")
    tensors[f"{LAYER}.mlp.router.bias"] = p[f"{OURS}.mlp.router.bias"]
    tensors[f"{LAYER}.self_attn.sinks"] = p[f"{OURS}.attention.sinks"]
    tensors[f"{LAYER}.mlp.experts.gate_up_proj_bias"] = alternating(p, "bias")
    tensors[f"{LAYER}.mlp.experts.down_proj_bias"] = p[f"{OURS}.mlp.down.bias"]
    return tensors


def alternating(p: Weights, leaf: str) -> np.ndarray:
    gate, up = (p[f"{OURS}.mlp.{name}.{leaf}"] for name in ("gate", "up"))
    return np.stack([part[:, row] for row in range(gate.shape[1]) for part in (gate, up)], axis=1)


def dense_gpt_oss(p: Weights) -> Weights:
    return gpt_oss(p) | {
        f"{LAYER}.mlp.experts.gate_up_proj": alternating(p, "weight").swapaxes(1, 2),
        f"{LAYER}.mlp.experts.down_proj": p[f"{OURS}.mlp.down.weight"].swapaxes(1, 2),
    }


def nested(prefix: str, head: str) -> Callable[[Weights], Weights]:
    def tensors(p: Weights) -> Weights:
        flat = plain_names(p, mlp__gate="mlp.gate_proj", mlp__up="mlp.up_proj", mlp__down="mlp.down_proj")
        moved = {prefix + name.removeprefix("model."): values for name, values in flat.items() if "lm_head" not in name}
        return moved | {f"{head}lm_head.weight": flat["lm_head.weight"], "vision_tower.a": np.ones(3, np.float32)}

    return tensors


def llava(**text: object) -> Fields:
    return {"text_config": {"model_type": "llama", **BASE, **text}}


@pytest.mark.parametrize(
    ("architecture", "fields", "tensors"),
    [
        ("Phi3ForCausalLM", BASE, phi3),
        (
            "BloomForCausalLM",
            BASE,
            lambda p: with_h(
                p, 4, has_norm=True, norms=("input_layernorm", "post_attention_layernorm"), prefix="transformer."
            ),
        ),
        (
            "BloomForCausalLM",
            BASE,
            lambda p: with_h(p, 4, has_norm=True, norms=("input_layernorm", "post_attention_layernorm"), prefix=""),
        ),
        (
            "FalconForCausalLM",
            {**BASE, "new_decoder_architecture": True, "num_kv_heads": 2},
            lambda p: with_h(p, 2, has_norm=False, norms=("ln_attn", "ln_mlp"), prefix="transformer."),
        ),
        (
            "FalconForCausalLM",
            BASE,
            lambda p: with_h(p, 1, has_norm=False, norms=("input_layernorm",), prefix="transformer."),
        ),
        ("MixtralForCausalLM", {**BASE, "num_local_experts": 4}, mixtral),
        ("MixtralForCausalLM", {**BASE, "num_local_experts": 4}, stacked_mixtral),
        ("GptOssForCausalLM", {**BASE, "num_local_experts": 4, "head_dim": 16}, dense_gpt_oss),
        ("LlavaForConditionalGeneration", llava(), nested("language_model.model.", "language_model.")),
        ("LlavaForConditionalGeneration", llava(), nested("model.language_model.", "")),
        (
            "Mistral3ForConditionalGeneration",
            llava(model_type="mistral", head_dim=24, sliding_window=None),
            nested("language_model.model.", "language_model."),
        ),
    ],
    ids=[
        "phi3",
        "bloom",
        "bloom without prefix",
        "falcon",
        "falcon multi-query",
        "mixtral",
        "mixtral stacked",
        "gpt-oss",
        "llava",
        "llava newer",
        "mistral 3 with images",
    ],
)
def test_parameters_are_made_of_whatever_tensors_there_are(
    tmp_path: Path, architecture: str, fields: Fields, tensors: Callable[[Weights], Weights]
):
    config = config_of(architecture, **fields)
    parameters = random_parameters(config)
    data = {"architectures": [architecture], **fields}
    checkpoint = open_checkpoint(write_directory(tmp_path, data, tensors(parameters)))
    assert checkpoint.config == config
    assert checkpoint.tensor_names == tuple(parameters)
    for name, expected in parameters.items():
        np.testing.assert_array_equal(checkpoint.read(name), expected, err_msg=name)


FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def mxfp4_value(tensors: Weights, name: str, expert: int, row: int, column: int) -> float:
    byte = int(tensors[f"{name}_blocks"][expert, row, column // 32, column % 32 // 2])
    scale = int(tensors[f"{name}_scales"][expert, row, column // 32])
    return FP4[byte >> 4 if column % 2 else byte & 15] * 2.0 ** (scale - 127)


def test_mxfp4_experts_are_read_dense_low_halves_first(tmp_path: Path):
    fields = {**BASE, "num_local_experts": 4, "head_dim": 16, "quantization_config": {"quant_method": "mxfp4"}}
    config = config_of("GptOssForCausalLM", **fields)
    generator = np.random.default_rng(1)
    tensors = gpt_oss(random_parameters(config))
    for name, rows, columns in (("gate_up_proj", 2 * 96, 64), ("down_proj", 64, 96)):
        shape = (4, rows, columns // 32)
        tensors[f"{LAYER}.mlp.experts.{name}_blocks"] = generator.integers(0, 256, (*shape, 16), np.uint8)
        tensors[f"{LAYER}.mlp.experts.{name}_scales"] = generator.integers(110, 130, shape, np.uint8)
    path = write_directory(tmp_path, {"architectures": ["GptOssForCausalLM"], **fields}, tensors)
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint.config, DecoderConfig)
    assert (checkpoint.config.stored_form, checkpoint.config.stored_parts) == ("mxfp4", ("experts",))
    up, down = (checkpoint.read(f"{OURS}.mlp.{name}.weight") for name in ("up", "down"))
    experts = f"{LAYER}.mlp.experts"
    for expert, row, column in [(0, 0, 0), (0, 0, 1), (1, 95, 63), (3, 50, 33), (2, 7, 32)]:
        expected = mxfp4_value(tensors, f"{experts}.gate_up_proj", expert, 2 * row + 1, column)
        assert up[expert, row, column] == expected
    for expert, row, column in [(0, 0, 0), (1, 63, 95), (2, 31, 64)]:
        assert down[expert, row, column] == mxfp4_value(tensors, f"{experts}.down_proj", expert, row, column)


def test_fp8_weights_are_read_dense_with_ragged_blocks(tmp_path: Path):
    fields = {
        **BASE,
        "intermediate_size": 200,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }
    config = config_of("LlamaForCausalLM", **fields)
    parameters = random_parameters(config)
    modules = {"mlp__gate": "mlp.gate_proj", "mlp__up": "mlp.up_proj", "mlp__down": "mlp.down_proj"}
    tensors = plain_names(parameters, **modules)
    expected = tensors[f"{LAYER}.mlp.up_proj.weight"].astype(ml_dtypes.float8_e4m3fn)
    tensors[f"{LAYER}.mlp.up_proj.weight"] = expected
    tensors[f"{LAYER}.mlp.up_proj.weight_scale_inv"] = np.array([[0.5], [3.0]], np.float32)
    checkpoint = open_checkpoint(write_directory(tmp_path, {"architectures": ["LlamaForCausalLM"], **fields}, tensors))
    assert checkpoint.config == config
    assert (config.stored_form, config.stored_parts) == ("fp8", ("attention", "mlp"))
    scales = np.repeat(np.array([[0.5], [3.0]], np.float32), [128, 72], axis=0)
    np.testing.assert_array_equal(checkpoint.read(f"{OURS}.mlp.up.weight"), expected.astype(np.float32) * scales)
    np.testing.assert_array_equal(checkpoint.read(f"{OURS}.mlp.gate.weight"), parameters[f"{OURS}.mlp.gate.weight"])


@pytest.mark.parametrize(
    ("name", "values", "error", "message"),
    [
        ("mlp.experts.2.up_proj.weight", None, CheckpointError, r"no tensor .*experts\.2\.up_proj\.weight, which"),
        ("mlp.experts.3.down_proj.weight", np.ones((9, 64)), CheckpointError, r"3\.down_proj\.weight' is \[9, 64\]"),
        (
            "self_attn.q_norm.weight",
            np.ones(16, np.int32),
            UnsupportedModelError,
            r"type I32.*supported: F64, F32, F16",
        ),
        ("self_attn.o_proj.weight", np.ones((64, 64), ml_dtypes.float8_e4m3fn), UnsupportedModelError, "type F8_E4M3"),
    ],
    ids=["missing expert", "shape of an expert", "integers", "fp8 without scales"],
)
def test_every_source_is_checked_before_any_is_read(
    tmp_path: Path, name: str, values: np.ndarray | None, error: type[Exception], message: str
):
    fields = {**BASE, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    parameters = random_parameters(config_of("Qwen3MoeForCausalLM", **fields))
    norms = {"attention__query_norm": "self_attn.q_norm", "attention__key_norm": "self_attn.k_norm"}
    tensors = plain_names(parameters, mlp__router="mlp.gate", **norms)
    for role in ("gate", "up", "down"):
        for expert in EXPERTS:
            own = parameters[f"{OURS}.mlp.{role}.weight"][expert]
            tensors[f"{LAYER}.mlp.experts.{expert}.{role}_proj.weight"] = own
    data = {"architectures": ["Qwen3MoeForCausalLM"], **fields}
    assert open_checkpoint(write_directory(tmp_path / "whole", data, tensors)).tensor_names
    del tensors[f"{LAYER}.{name}"]
    if values is not None:
        tensors[f"{LAYER}.{name}"] = values
    with pytest.raises(error, match=message):
        open_checkpoint(write_directory(tmp_path / "damaged", data, tensors))


# The configuration alone.


def test_a_configuration_needs_no_weights(tmp_path: Path):
    directory = write_tiny_llama(tmp_path)
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (directory / file).unlink()
    assert read_config(directory) == read_config(directory / "config.json")
    assert read_config(directory) == replace(LLAMA_CONFIG, norm_epsilon=1e-5)


def test_the_configuration_of_an_encoder_is_read_from_its_directory(tmp_path: Path):
    assert read_config(write_tiny_bert(tmp_path)) == BERT_CONFIG


def test_the_configuration_of_an_encoder_needs_no_tokenizer_and_no_certain_name(tmp_path: Path):
    directory = write_tiny_bert(tmp_path)
    for file in ("model.safetensors", "tokenizer.json"):
        (directory / file).unlink()
    (directory / "config.json").rename(directory / "mine.json")
    assert read_config(directory / "mine.json") == BERT_CONFIG


def test_a_missing_configuration_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        read_config(tmp_path)
