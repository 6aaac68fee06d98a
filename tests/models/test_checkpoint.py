from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, pre_tokenizers, processors

from plait.errors import CheckpointError, UnsupportedModelError
from plait.models.checkpoint import Checkpoint, open_checkpoint
from plait.models.checkpoint.bert import BERT
from plait.models.checkpoint.names import LLAMA, original_name
from plait.models.config import DecoderConfig, EncoderConfig, Rope
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
    rope=Rope(theta=50_000.0),
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
        (llama_json(architectures=["GPT2LMHeadModel"]), "architecture 'GPT2LMHeadModel'.*LlamaForCausalLM.*BertModel"),
        (llama_json(architectures=[]), "architecture 'none' is not supported"),
        (
            bert_json("BertModel", 2, quantization_config={"quant_method": "gptq"}),
            "quantized encoders are not supported; supported: F32, F16, BF16",
        ),
        (bert_json("BertModel", 2, position_embedding_type="relative_key"), "'relative_key' positions not supported"),
        (bert_json("BertForMaskedLM", 1, tie_word_embeddings=False), "an untied masked-LM head not supported"),
    ],
    ids=["architecture", "none", "quantized", "positions", "untied"],
)
def test_unsupported_directory_says_what_is_supported(tmp_path: Path, config: dict[str, object], message: str):
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(write_directory(tmp_path, config, llama_tensors()))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode_max_tokens": True},
            "pooling by max is not supported; supported: mean, cls",
        ),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "module 'Dense' is not supported"),
    ],
    ids=["pooling", "module"],
)
def test_other_pooling_is_refused(tmp_path: Path, file: str, content: object, message: str):
    write_directory(tmp_path, bert_json("BertModel", 2), bert_tensors(EMBEDDER))
    write_json(tmp_path / file, content)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", r"config\.json: its contents: Invalid JSON"),
        ("config.json", b"\xff\xfe", r"config\.json cannot be read: "),
        ("config.json", b'{"architectures": ["BertModel"]}', r"config\.json: num_hidden_layers: Field required"),
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
        ({"num_hidden_layers": 1000}, "has 1000 layers, it has 20 tensors"),
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


def test_reading_an_unknown_tensor_is_refused(tmp_path: Path):
    checkpoint = open_checkpoint(write_directory(tmp_path, llama_json(), llama_tensors()))
    with pytest.raises(CheckpointError, match=r"no tensor 'layers\.9\.norm'; it has embedding\.weight"):
        checkpoint.read("layers.9.norm")


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
