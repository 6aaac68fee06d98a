from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import models, pre_tokenizers, processors

from plait.errors import CheckpointError, ModelError, UnsupportedModelError
from plait.models.checkpoint import Checkpoint, open_checkpoint
from plait.models.checkpoint.names import BERT, LLAMA, LLAMA_GGUF, original_name
from plait.models.config import DecoderConfig, EncoderConfig
from plait.models.family import build

DECODER = DecoderConfig(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=96,
    vocab_size=260,
    max_positions=128,
    rope_theta=50_000.0,
    norm_epsilon=1e-5,
    tie_embeddings=True,
)
EMBEDDER = EncoderConfig(
    num_layers=2, hidden_size=32, num_heads=4, intermediate_size=48, vocab_size=262, max_positions=64
)
SPARSE = EncoderConfig(
    num_layers=1, hidden_size=32, num_heads=4, intermediate_size=48, vocab_size=262, max_positions=64, head="masked_lm"
)
Weights = dict[str, np.ndarray]


def random_weights(config: DecoderConfig | EncoderConfig) -> Weights:
    """Weights under plait's names."""
    generator = np.random.default_rng(0)
    parameters = build(config, np.float32).parameters
    return {name: generator.standard_normal(p.shape).astype(np.float32) for name, p in parameters.items()}


def byte_tokens() -> list[str]:
    return ["<end>", "<user>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "cd"]


def tokenizer_json() -> str:
    vocab = {token: token_id for token_id, token in enumerate(byte_tokens())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b"), ("c", "d")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<end>", "<user>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 0)])
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(16)
    return tokenizer.to_str()


def assert_holds(checkpoint: Checkpoint, weights: Weights, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert checkpoint.tensor_names == tuple(weights)
    for name, expected in weights.items():
        tensor = checkpoint.read(name)
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous
        np.testing.assert_allclose(tensor, expected, rtol=rtol, atol=atol, err_msg=name)


# GGUF


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """The order of rows in which GGUF stores Q and K: by definition, row by row."""
    size = len(weight) // num_heads
    rows = [
        head * size + pair + half * (size // 2)
        for head in range(num_heads)
        for pair in range(size // 2)
        for half in (0, 1)
    ]
    return weight[rows]


def write_gguf(
    path: Path,
    weights: Weights,
    *,
    architecture: str = "llama",
    quantization: GGMLQuantizationType = GGMLQuantizationType.F32,
    pre: str = "smollm",
    extra: Callable[[GGUFWriter], None] = lambda writer: None,
) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(DECODER.num_layers)
    writer.add_context_length(DECODER.max_positions)
    writer.add_embedding_length(DECODER.hidden_size)
    writer.add_feed_forward_length(DECODER.intermediate_size)
    writer.add_head_count(DECODER.num_heads)
    writer.add_head_count_kv(DECODER.num_kv_heads)
    writer.add_layer_norm_rms_eps(DECODER.norm_epsilon)
    writer.add_rope_freq_base(DECODER.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = byte_tokens()
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if token.startswith("<") and len(token) > 1 else TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}")
    extra(writer)
    heads = {"query": DECODER.num_heads, "key": DECODER.num_kv_heads}
    for name, value in weights.items():
        role = name.split(".")[-2]
        stored = interleaved(value, heads[role]) if role in heads else value
        kind = quantization if value.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(original_name(name, LLAMA_GGUF), gguf.quants.quantize(stored, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", random_weights(DECODER))


def test_gguf_gives_configuration_tokenizer_and_tensors(gguf_path: Path):
    checkpoint = open_checkpoint(gguf_path)
    assert isinstance(checkpoint.config, DecoderConfig)
    assert checkpoint.config.norm_epsilon == pytest.approx(1e-5)
    assert (checkpoint.config.rope_theta, checkpoint.config.tie_embeddings) == (50_000.0, True)
    assert (checkpoint.bos_token, checkpoint.eos_token, checkpoint.eos_token_ids) == ("<user>", "<end>", (0,))
    assert (checkpoint.chat_template, checkpoint.max_sequence) == ("{{ messages[0].content }}", 128)
    assert_holds(checkpoint, random_weights(DECODER))


def test_gguf_tokenizer_splits_digits_and_knows_control_tokens(gguf_path: Path):
    tokenizer = tokenizers.Tokenizer.from_str(open_checkpoint(gguf_path).tokenizer_json)
    assert tokenizer.encode("ab12<end>").tokens == ["ab", "1", "2", "<end>"]
    assert tokenizer.decode(tokenizer.encode("ab cd é<end>").ids) == "ab cd é"


def test_gguf_that_asks_for_it_begins_every_text_with_bos(tmp_path: Path):
    path = write_gguf(tmp_path / "m.gguf", random_weights(DECODER), extra=lambda writer: writer.add_add_bos_token(True))
    tokenizer = tokenizers.Tokenizer.from_str(open_checkpoint(path).tokenizer_json)
    assert tokenizer.encode("ab").tokens == ["<user>", "ab"]
    assert tokenizer.encode("ab", add_special_tokens=False).tokens == ["ab"]


@pytest.mark.parametrize(
    ("quantization", "tolerance"), [("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 3e-2), ("Q4_1", 0.4)], ids=str
)
def test_gguf_tensors_are_dequantized(tmp_path: Path, quantization: str, tolerance: float):
    path = write_gguf(tmp_path / "m.gguf", random_weights(DECODER), quantization=GGMLQuantizationType[quantization])
    assert_holds(open_checkpoint(path), random_weights(DECODER), atol=tolerance, rtol=2e-2)


def test_gguf_with_an_output_matrix_is_untied(tmp_path: Path):
    weights = random_weights(DECODER) | {"head.weight": np.ones((260, 64), np.float32)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))
    assert isinstance(checkpoint.config, DecoderConfig)
    assert not checkpoint.config.tie_embeddings
    assert checkpoint.read("head.weight").shape == (260, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "qwen3"}, "GGUF architecture 'qwen3' is not supported; supported: llama"),
        ({"pre": "tekken"}, "pre-tokenizer 'tekken' is not supported; supported: 'gpt2' with 'smollm'"),
        ({"extra": lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)}, "rope scaling 'yarn'"),
        ({"extra": lambda writer: writer.add_expert_count(8)}, "8 experts not supported"),
        ({"extra": lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(64, np.float32))}, "biases not"),
        (
            {"extra": lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))},
            "rope frequency factors not supported",
        ),
        (
            {"extra": lambda writer: writer.add_tensor("odd", np.ones(8, np.int32))},
            "quantization I32 is not supported; supported: F32",
        ),
    ],
    ids=["architecture", "tokenizer", "rope", "experts", "bias", "frequencies", "quantization"],
)
def test_unsupported_gguf_says_what_is_supported(tmp_path: Path, options: dict, message: str):
    path = write_gguf(tmp_path / "m.gguf", random_weights(DECODER), **options)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(path)


def test_gguf_without_a_tensor_is_refused(tmp_path: Path):
    weights = random_weights(DECODER)
    del weights["layers.1.mlp.up.weight"]
    with pytest.raises(CheckpointError, match=r"has no tensor 'blk\.1\.ffn_up\.weight'.*layers\.1\.mlp\.up\.weight"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))


def test_gguf_with_a_tensor_of_another_shape_is_refused(tmp_path: Path):
    weights = random_weights(DECODER) | {"layers.1.mlp.up.weight": np.ones((95, 64), np.float32)}
    with pytest.raises(CheckpointError, match=r"'layers\.1\.mlp\.up\.weight' is \[95, 64\].*wants \[96, 64\]"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 0.3, 0.6, 0.999], ids=str)
def test_truncated_gguf_is_refused(gguf_path: Path, tmp_path: Path, share: float):
    data = gguf_path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.gguf is no GGUF file that can be read: .*fetch it again"):
        open_checkpoint(tmp_path / "cut.gguf")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 9000), junk=st.binary(min_size=1, max_size=8))
def test_overwritten_gguf_header_never_fails_otherwise(gguf_path: Path, tmp_path: Path, position: int, junk: bytes):
    data = bytearray(gguf_path.read_bytes())
    data[position : position + len(junk)] = junk
    (tmp_path / "junk.gguf").write_bytes(data)
    with suppress(ModelError):
        assert open_checkpoint(tmp_path / "junk.gguf").tensor_names


# Hugging Face directories


def llama_json(**changes: object) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 260,
        "max_position_embeddings": 128,
        "rope_theta": 50_000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    } | changes


def bert_json(architecture: str, num_layers: int, **changes: object) -> dict[str, object]:
    return {
        "architectures": [architecture],
        "num_hidden_layers": num_layers,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 262,
        "max_position_embeddings": 64,
    } | changes


def write_directory(directory: Path, config: dict[str, object], tensors: Weights | None) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(tokenizer_json())
    if tensors is not None:
        save_file(tensors, directory / "model.safetensors")
    return directory


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def llama_tensors() -> Weights:
    return {original_name(name, LLAMA): value for name, value in random_weights(DECODER).items()}


def bert_tensors(config: EncoderConfig, *, prefix: str = "", is_old: bool = False) -> Weights:
    def stored(name: str) -> str:
        original = original_name(name, BERT)
        if is_old and "LayerNorm" in original:
            original = original.replace(".weight", ".gamma").replace(".bias", ".beta")
        return original if original.startswith("cls.") else prefix + original

    return {stored(name): value for name, value in random_weights(config).items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 50_000.0, "rope_type": "default"}, "head_dim": 16},
    ],
    ids=["older", "newer"],
)
def test_llama_directory_gives_configuration_and_tensors(tmp_path: Path, changes: dict[str, object]):
    checkpoint = open_checkpoint(write_directory(tmp_path, llama_json(**changes), llama_tensors()))
    assert checkpoint.config == DECODER
    assert (checkpoint.eos_token_ids, checkpoint.max_sequence, checkpoint.chat_template) == ((0,), 128, None)
    assert_holds(checkpoint, random_weights(DECODER))


def test_padding_and_truncation_of_the_tokenizer_are_switched_off(tmp_path: Path):
    checkpoint = open_checkpoint(write_directory(tmp_path, llama_json(), llama_tensors()))
    tokenizer = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json)
    assert (tokenizer.padding, tokenizer.truncation) == (None, None)
    assert len(tokenizer.encode("a" * 20).ids) == 21


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=["f16", "bf16", "f64"])
def test_other_floats_are_widened_to_f32(tmp_path: Path, dtype: type):
    tensors = {name: value.astype(dtype) for name, value in llama_tensors().items()}
    checkpoint = open_checkpoint(write_directory(tmp_path, llama_json(), tensors))
    assert_holds(checkpoint, random_weights(DECODER), rtol=1e-2)


def test_shards_are_read_through_their_index(tmp_path: Path):
    tensors = llama_tensors()
    files = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
    write_directory(tmp_path, llama_json(), None)
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, tmp_path / file)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": files})
    assert_holds(open_checkpoint(tmp_path), random_weights(DECODER))


def test_a_shard_outside_the_directory_is_refused(tmp_path: Path):
    write_directory(tmp_path / "model", llama_json(), None)
    write_json(tmp_path / "model" / "model.safetensors.index.json", {"weight_map": {"a": "../b.safetensors"}})
    with pytest.raises(CheckpointError, match=r"points outside its directory: '\.\./b\.safetensors'"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    ("template", "file"),
    [("T", None), ([{"name": "tools", "template": "X"}, {"name": "default", "template": "T"}], None), ("old", "T")],
    ids=["text", "list", "file"],
)
def test_template_and_tokens_come_from_the_tokenizer_configuration(tmp_path: Path, template: object, file: str | None):
    write_directory(tmp_path, llama_json(), llama_tensors())
    tokens = {"chat_template": template, "bos_token": {"content": "<user>"}, "eos_token": "<end>"}
    write_json(tmp_path / "tokenizer_config.json", tokens)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [0, 1]})
    if file is not None:
        (tmp_path / "chat_template.jinja").write_text(file)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.chat_template, checkpoint.bos_token, checkpoint.eos_token) == ("T", "<user>", "<end>")
    assert checkpoint.eos_token_ids == (0, 1)


@pytest.mark.parametrize(("prefix", "is_old"), [("", False), ("bert.", True)], ids=["plain", "prefixed and old"])
def test_bert_directory_is_an_embedder(tmp_path: Path, prefix: str, is_old: bool):
    tensors = bert_tensors(EMBEDDER, prefix=prefix, is_old=is_old)
    write_directory(tmp_path, bert_json("BertModel", 2), tensors)
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 48})
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 1e30})
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.config, checkpoint.max_sequence, checkpoint.eos_token_ids) == (EMBEDDER, 48, ())
    assert_holds(checkpoint, random_weights(EMBEDDER))


def test_bert_with_a_masked_lm_head_is_splade(tmp_path: Path):
    tensors = bert_tensors(SPARSE, prefix="bert.", is_old=True)
    checkpoint = open_checkpoint(write_directory(tmp_path, bert_json("BertForMaskedLM", 1), tensors))
    assert (checkpoint.config, checkpoint.max_sequence) == (SPARSE, 64)
    assert_holds(checkpoint, random_weights(SPARSE))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (llama_json(architectures=["GPT2LMHeadModel"]), "architecture 'GPT2LMHeadModel'.*supported: LlamaForCausalLM"),
        (llama_json(architectures=[]), "architecture 'none' is not supported"),
        (llama_json(quantization_config={"quant_method": "gptq"}), "quantized weights are not supported"),
        (llama_json(rope_scaling={"type": "linear", "factor": 2.0}), "rope type 'linear' not supported"),
        (llama_json(attention_bias=True, hidden_act="gelu"), "biases and activation 'gelu' not supported"),
        (bert_json("BertModel", 2, position_embedding_type="relative_key"), "'relative_key' positions not supported"),
        (bert_json("BertForMaskedLM", 1, tie_word_embeddings=False), "an untied masked-LM head not supported"),
    ],
    ids=["architecture", "none", "quantized", "rope", "biases", "positions", "untied"],
)
def test_unsupported_directory_says_what_is_supported(tmp_path: Path, config: dict[str, object], message: str):
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(write_directory(tmp_path, config, llama_tensors()))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True},
            "pooling_mode_cls_token is not supported; supported",
        ),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "module 'Dense' is not supported"),
    ],
    ids=["pooling", "module"],
)
def test_other_pooling_than_the_mean_is_refused(tmp_path: Path, file: str, content: object, message: str):
    write_directory(tmp_path, bert_json("BertModel", 2), bert_tensors(EMBEDDER))
    write_json(tmp_path / file, content)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", r"config\.json: its contents: Invalid JSON"),
        ("config.json", b"\xff\xfe", r"config\.json cannot be read: "),
        ("config.json", b'{"architectures": ["LlamaForCausalLM"]}', r"config\.json: num_hidden_layers: Field required"),
        ("tokenizer.json", b"{}", r"tokenizer\.json is no tokenizer\.json that can be read"),
        ("model.safetensors", b"", r"model\.safetensors cannot be read: .*fetch it again"),
        ("model.safetensors", b"\x20\0\0\0\0\0\0\0{}", r"model\.safetensors cannot be read: .*fetch it again"),
        ("config.json", None, r"config\.json does not exist; a Hugging Face directory needs it"),
        ("tokenizer.json", None, r"tokenizer\.json does not exist"),
        ("model.safetensors", None, r"model\.safetensors cannot be read: it does not exist"),
    ],
    ids=["json", "utf8", "fields", "tokenizer", "empty", "header", "no config", "no tokenizer", "no weights"],
)
def test_damaged_or_missing_files_are_named(tmp_path: Path, file: str, content: bytes | None, message: str):
    write_directory(tmp_path, llama_json(), llama_tensors())
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999], ids=str)
def test_truncated_safetensors_are_refused(tmp_path: Path, share: float):
    write_directory(tmp_path, llama_json(), llama_tensors())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        open_checkpoint(tmp_path)


def test_directory_without_a_tensor_is_refused(tmp_path: Path):
    tensors = bert_tensors(EMBEDDER)
    del tensors["encoder.layer.1.output.LayerNorm.bias"]
    with pytest.raises(CheckpointError, match=r"no tensor encoder\.layer\.1\.output\.LayerNorm\.bias or .*beta"):
        open_checkpoint(write_directory(tmp_path, bert_json("BertModel", 2), tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2_000_000_000}, "has 2000000000 layers, it has 20 tensors"),
        ({"num_key_value_heads": 3}, "heads do not divide evenly"),
        ({"head_dim": 15}, "heads do not divide evenly"),
    ],
    ids=["layers", "heads", "head size"],
)
def test_sizes_that_contradict_each_other_are_refused(tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_directory(tmp_path, llama_json(**changes), llama_tensors()))


def test_directory_with_integer_weights_is_refused(tmp_path: Path):
    tensors = llama_tensors() | {"model.norm.weight": np.ones(64, np.int8)}
    with pytest.raises(UnsupportedModelError, match=r"'model\.norm\.weight' is of type I8"):
        open_checkpoint(write_directory(tmp_path, llama_json(), tensors))


def test_tokenizer_with_ids_past_the_vocabulary_is_refused(tmp_path: Path):
    weights = llama_tensors() | {"model.embed_tokens.weight": np.ones((100, 64), np.float32)}
    with pytest.raises(CheckpointError, match="ids up to 259, its vocabulary only 100 entries"):
        open_checkpoint(write_directory(tmp_path, llama_json(vocab_size=100), weights))


def test_reading_an_unknown_tensor_is_refused(gguf_path: Path):
    with pytest.raises(CheckpointError, match=r"no tensor 'layers\.9\.norm'; it has embedding\.weight"):
        open_checkpoint(gguf_path).read("layers.9.norm")


def test_other_paths_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"does not exist; give a \.gguf file"):
        open_checkpoint(tmp_path / "none.gguf")
    (tmp_path / "model.pt").write_text("")
    with pytest.raises(UnsupportedModelError, match=r"files of this kind are not supported; supported: \.gguf"):
        open_checkpoint(tmp_path / "model.pt")


@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "max_sequence", "head"),
    [("smollm2", 8192, None), ("minilm", 256, "embedding"), ("splade", 512, "masked_lm")],
    ids=lambda value: str(value),
)
def test_named_models_are_opened(request: pytest.FixtureRequest, name: str, max_sequence: int, head: str | None):
    checkpoint = open_checkpoint(request.getfixturevalue(name))
    assert checkpoint.max_sequence == max_sequence
    assert getattr(checkpoint.config, "head", None) == head
    parameters = build(checkpoint.config, np.float32).parameters
    for tensor in checkpoint.tensor_names[:8]:
        assert checkpoint.read(tensor).shape == parameters[tensor].shape
