"""Tiny models with random weights in Hugging Face directories, and a bundle of three of them, made in seconds.

What they say is noise, but the same noise for the same seed. A decoder never ends a greedy answer by itself, for the
logit of its end-of-text token is always 0: an answer has as many tokens as were asked for.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tokenizers
from encoder_zoo import write_variant
from safetensors.numpy import save_file
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models

from plait.compiler.bundle.build import build_bundle
from plait.compiler.bundle.spec import BundleSpec
from plait.models.checkpoint.bert import BERT
from plait.models.checkpoint.names import LLAMA, original_name
from plait.models.config import DecoderConfig, EncoderConfig, ModelConfig
from plait.models.family import build

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_TOKEN_ID = 2  # <|im_end|>
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("a", "n"), ("an", "d"), ("Ġ", "a"))

LLAMA_CONFIG = DecoderConfig(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=128,
    vocab_size=288,
    max_positions=512,
)
BERT_CONFIG = EncoderConfig(
    num_layers=2, hidden_size=64, num_heads=4, intermediate_size=128, vocab_size=96, max_positions=128
)


def write_tiny_llama(directory: Path, *, seed: int = 0, noise: float = 0.0) -> Path:
    """Writes a Llama of two layers with a byte-level tokenizer and a ChatML template; returns the directory.

    With some noise on its weights it says much of what it says without.
    """
    config = LLAMA_CONFIG
    directory.mkdir(parents=True, exist_ok=True)
    tensors = _random_tensors(config, seed, lambda name: original_name(name, LLAMA))
    generator = np.random.default_rng(seed)
    for name, values in tensors.items() if noise else ():
        tensors[name] = values + noise * values.std() * generator.standard_normal(values.shape).astype(np.float32)
    tensors["lm_head.weight"][END_TOKEN_ID] = 0.0
    save_file(tensors, directory / "model.safetensors")
    _write_json(
        directory / "config.json",
        architectures=["LlamaForCausalLM"],
        num_hidden_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.norm_epsilon,
        eos_token_id=END_TOKEN_ID,
    )
    _write_json(
        directory / "tokenizer_config.json",
        chat_template=CHAT_TEMPLATE,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    (directory / "tokenizer.json").write_text(_byte_level_tokenizer().to_str(), encoding="utf-8")
    return directory


def write_tiny_bert(directory: Path, *, seed: int = 0) -> Path:
    """Writes a BERT of two layers with mean pooling and a tokenizer of letters; returns the directory."""
    config = BERT_CONFIG
    directory.mkdir(parents=True, exist_ok=True)
    save_file(_random_tensors(config, seed, lambda name: original_name(name, BERT)), directory / "model.safetensors")
    _write_json(
        directory / "config.json",
        architectures=["BertModel"],
        num_hidden_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_positions,
    )
    (directory / "1_Pooling").mkdir(exist_ok=True)
    _write_json(directory / "1_Pooling" / "config.json", pooling_mode_mean_tokens=True)
    (directory / "tokenizer.json").write_text(_letter_tokenizer().to_str(), encoding="utf-8")
    return directory


def build_tiny_bundle(directory: Path, *, target: str = "cpu-tiered", hbm: str | None = None) -> Path:
    """Builds `tiny.plait` in a directory and returns its path.

    It has the models "chat" (alias "assistant") and "other", two Llamas of the same sizes, and "embed", a BERT.

    Args:
        directory: Where the models' directories and the bundle are written.
        target: Name of a target, or the path of a TOML file.
        hbm: Budget, e.g. "2MiB"; the target's capacity by default.
    """
    write_tiny_llama(directory / "llama-0", seed=0)
    write_tiny_llama(directory / "llama-1", seed=1)
    write_tiny_bert(directory / "bert")
    decoder = {"sequence": 128, "batch": 4, "kv_tokens": 256}
    spec = {
        "bundle": "tiny",
        "target": target,
        "budget": {} if hbm is None else {"hbm": hbm},
        "models": {
            "chat": {"source": "llama-0", "aliases": ["assistant"], **decoder},
            "other": {"source": "llama-1", **decoder},
            "embed": {"source": "bert", "sequence": 64, "batch": 4},
        },
    }
    return build_bundle(BundleSpec.model_validate(spec), directory / "tiny.plait", base=directory).path


def build_classifiers(directory: Path, models: Mapping[str, str], *, batch: int) -> Path:
    """Builds a bundle of encoders, variants of `encoder_zoo`, and returns its path.

    Args:
        directory: Where the variants, each under its own name, and the bundle are written.
        models: The variant of each model of the bundle.
        batch: Of each model.
    """
    for name in models.values():
        write_variant(directory / name, name)
    sources = {model: {"source": source, "batch": batch} for model, source in models.items()}
    spec = BundleSpec.model_validate({"bundle": "classifiers", "target": "cpu", "models": sources})
    return build_bundle(spec, directory / "classifiers.plait", base=directory).path


def _random_tensors(config: ModelConfig, seed: int, rename: Callable[[str], str]) -> dict[str, np.ndarray]:
    """Returns values for all parameters: norms near the identity, the rest such that activations stay near 1."""
    generator = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, parameter in build(config, np.float32).parameters.items():
        is_scale = "norm" in name and name.endswith("weight")
        scale = 0.1 if len(parameter.shape) == 1 else parameter.shape[-1] ** -0.5
        noise = generator.normal(0.0, scale, parameter.shape)
        tensors[rename(name)] = (is_scale + noise).astype(np.float32)
    return tensors


def _write_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(fields, indent=1), encoding="utf-8")


def _byte_level_tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer of special tokens, all bytes and a few merges: 267 tokens."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(tokenizer_models.BPE(vocab=vocab, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _letter_tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer that cuts words into letters and puts [CLS] and [SEP] around a text: 82 tokens."""
    characters = string.ascii_lowercase + string.digits
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *characters,
        *(f"##{character}" for character in characters),
        *".,?!'-",
    ]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(tokenizer_models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    return tokenizer
