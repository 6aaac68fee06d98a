"""Writes a tiny decoder as a Hugging Face directory: config.json, safetensors, tokenizer.

Two forms of the same model: "saved" as transformers 5 saves it, in f32, and "published" as files for transformers 4
were: older keys, bfloat16 or quantized weights, shards, and now and then a tensor that nobody reads.
"""

from __future__ import annotations

import json
import re
import string
import zlib
from pathlib import Path
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
import tokenizers
from decoder_case import NUM_DECODE_TOKENS, VOCAB_SIZE, DecoderCase
from decoder_weights import Config, block_fp8, block_mxfp4, draw, shapes_of
from safetensors.numpy import save_file
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

__all__ = ["FORMS", "Form", "decoder_tokens", "write_decoder"]

Form: TypeAlias = Literal["saved", "published"]
FORMS: tuple[Form, ...] = ("saved", "published")

_SPECIAL_TOKENS = ("<|begin|>", "<|user|>", "<|end|>")
_CHARACTERS = (*sorted(string.ascii_letters + string.digits + string.punctuation), "Ġ", "Ċ")
_PAIRS = re.findall(r"\w\w", "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as")
_MERGES = (*((pair[0], pair[1]) for pair in _PAIRS), ("th", "e"), ("Ġ", "the"))
_CHAT_TEMPLATE = "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
_FP8_MATRIX = re.compile(r"layers\.\d+\.(self_attn\.|mlp\.|eh_)(.*_)?proj(_with_mqa)?\.weight$")


def write_decoder(case: DecoderCase, directory: Path, form: Form) -> Path:
    """Writes a decoder's directory and returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    config, tensors, num_shards = case.config, _saved(case), 1
    if form == "published":
        config, tensors, num_shards = case.published, _published(case), case.num_shards
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 2})
    _write_json(
        directory / "tokenizer_config.json",
        {
            "bos_token": _SPECIAL_TOKENS[0],
            "chat_template": _CHAT_TEMPLATE,
            "eos_token": _SPECIAL_TOKENS[2],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    (directory / "tokenizer.json").write_text(_tokenizer().to_str(), encoding="utf-8")
    _write_tensors(directory, tensors, num_shards)
    return directory


def decoder_tokens(case: DecoderCase, num_prompt_tokens: int) -> np.ndarray:
    """Returns a prompt's token ids and those of the steps after it, [prompt + steps]."""
    generator = np.random.RandomState(zlib.crc32(f"{case.name}/{case.draw}/{num_prompt_tokens}".encode()))
    low = len(_SPECIAL_TOKENS)
    return generator.randint(low, VOCAB_SIZE, num_prompt_tokens + NUM_DECODE_TOKENS).astype(np.int32)


def _drawn(case: DecoderCase) -> dict[str, np.ndarray]:
    return draw(f"{case.name}/{case.draw}", shapes_of(case.config), norm_mean=case.norm_mean, down_gain=case.down_gain)


def _saved(case: DecoderCase) -> dict[str, np.ndarray]:
    """Returns the tensors in f32; those of a quantized model have the values that the quantized ones mean."""
    return {name: _dequantized(case, name, values) for name, values in _drawn(case).items()}


def _dequantized(case: DecoderCase, name: str, values: np.ndarray) -> np.ndarray:
    if case.quantization == "fp8" and _FP8_MATRIX.search(name):
        return block_fp8(values)[2]
    if case.quantization == "mxfp4" and values.ndim == 3:
        return block_mxfp4(values)[2]
    return values


def _published(case: DecoderCase) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    extra = draw(case.name, case.published_extra)
    for name, values in (_drawn(case) | extra).items():
        if case.quantization == "fp8" and _FP8_MATRIX.search(name):
            tensors[name], tensors[f"{name}_scale_inv"], _ = block_fp8(values)
        elif case.quantization == "mxfp4" and values.ndim == 3:
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"], _ = block_mxfp4(values)
        else:
            is_f32 = name.endswith(("e_score_correction_bias", "inv_freq"))
            tensors[name.removeprefix(case.published_prefix)] = values.astype(
                np.float32 if is_f32 else ml_dtypes.bfloat16
            )
    if "lm_head.weight" in extra:  # of a model whose head is its embedding: the same values once more
        tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"]
    return tensors


def _write_tensors(directory: Path, tensors: dict[str, np.ndarray], num_shards: int) -> None:
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    shards = {name: index % num_shards for index, name in enumerate(tensors)}
    files = [f"model-{shard + 1:05}-of-{num_shards:05}.safetensors" for shard in range(num_shards)]
    for shard, file in enumerate(files):
        part = {name: values for name, values in tensors.items() if shards[name] == shard}
        save_file(part, directory / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(values.nbytes for values in tensors.values())},
        "weight_map": {name: files[shard] for name, shard in shards.items()},
    }
    _write_json(directory / "model.safetensors.index.json", index)


def _write_json(path: Path, value: Config) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _tokenizer() -> tokenizers.Tokenizer:
    """Returns a byte-level tokenizer of printable ASCII and a few merges: 128 tokens."""
    pieces = [*_SPECIAL_TOKENS, *_CHARACTERS, *("".join(pair) for pair in _MERGES)]
    assert len(pieces) == VOCAB_SIZE, len(pieces)
    model = tokenizer_models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=list(_MERGES))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    return tokenizer
