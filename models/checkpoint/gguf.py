"""Checkpoints in GGUF files of the llama architecture, as llama.cpp's converter writes them.

Comes in: the path of a `.gguf` file. Goes out: a `Checkpoint`; quantized tensors are dequantized as they are read,
the tokenizer is rebuilt from the file's metadata. Two hazards: the rows of Q and K are stored for a rotation of
interleaved pairs and are brought back to the half-split form that `layers.rope` rotates; and the name of the
pre-tokenizer, not the merges, says how text is split.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import tokenizers
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, ReaderTensor, TokenType
from gguf.quants import dequantize
from jaxtyping import Float
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt
from tokenizers import decoders, models, pre_tokenizers, processors

from ...errors import CheckpointError, UnsupportedModelError
from ..config import DecoderConfig
from .contents import Checkpoint, TokenizerContents, assemble, validated
from .names import LLAMA_GGUF, original_name

__all__ = ["open_gguf"]

_PRE_TOKENIZERS = {
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
}

# What the library raises on files that are cut or overwritten.
_READ_ERRORS = (ValueError, IndexError, KeyError, TypeError, OSError, ArithmeticError, MemoryError)


class _General(BaseModel):
    architecture: str = Field(alias="general.architecture")


class _Architecture(BaseModel):
    num_layers: PositiveInt = Field(alias="llama.block_count")
    context_length: PositiveInt = Field(alias="llama.context_length")
    hidden_size: PositiveInt = Field(alias="llama.embedding_length")
    intermediate_size: PositiveInt = Field(alias="llama.feed_forward_length")
    num_heads: PositiveInt = Field(alias="llama.attention.head_count")
    num_kv_heads: PositiveInt | None = Field(None, alias="llama.attention.head_count_kv")
    key_length: PositiveInt | None = Field(None, alias="llama.attention.key_length")
    value_length: PositiveInt | None = Field(None, alias="llama.attention.value_length")
    norm_epsilon: PositiveFloat = Field(alias="llama.attention.layer_norm_rms_epsilon")
    rope_theta: PositiveFloat = Field(10_000.0, alias="llama.rope.freq_base")
    rope_dimensions: PositiveInt | None = Field(None, alias="llama.rope.dimension_count")
    rope_scaling: str = Field("none", alias="llama.rope.scaling.type")
    num_experts: int = Field(0, alias="llama.expert_count")
    vocab_size: PositiveInt | None = Field(None, alias="llama.vocab_size")

    @property
    def head_size(self) -> int:
        return self.key_length or self.hidden_size // self.num_heads


class _Vocabulary(BaseModel):
    model: str = Field(alias="tokenizer.ggml.model")
    pre: str = Field("default", alias="tokenizer.ggml.pre")
    tokens: list[str] = Field(alias="tokenizer.ggml.tokens")
    token_types: list[int] = Field(alias="tokenizer.ggml.token_type")
    merges: list[str] = Field([], alias="tokenizer.ggml.merges")
    add_bos_token: bool = Field(False, alias="tokenizer.ggml.add_bos_token")
    bos_token_id: int | None = Field(None, alias="tokenizer.ggml.bos_token_id", ge=0)
    eos_token_id: int | None = Field(None, alias="tokenizer.ggml.eos_token_id", ge=0)
    eot_token_id: int | None = Field(None, alias="tokenizer.ggml.eot_token_id", ge=0)
    chat_template: str | None = Field(None, alias="tokenizer.chat_template")


def open_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file.

    Raises:
        UnsupportedModelError: if its architecture, quantization or tokenizer is none that plait reads.
        CheckpointError: if it is truncated or damaged, or its tensors do not match its metadata.
    """
    metadata, tensors = _read_file(path)
    architecture = validated(_General, metadata, path).architecture
    if architecture != "llama":
        raise UnsupportedModelError(f"{path}: GGUF architecture {architecture!r} is not supported; supported: llama")
    sizes = validated(_Architecture, metadata, path)
    vocabulary = validated(_Vocabulary, metadata, path)
    _check_architecture(path, sizes, tensors)
    config = _config(sizes, num_tokens=len(vocabulary.tokens), has_head="output.weight" in tensors)
    source = _GGUFTensors(path, config, tensors)
    tokenizer = _tokenizer(path, vocabulary)
    return assemble(path, config, tokenizer, max_sequence=sizes.context_length, source=source)


class _BoundedReader(GGUFReader):
    """A reader that stops at the end of the file; the library's returns empty values from there on."""

    def _get(self, offset, dtype, count=1, override_order=None):  # type: ignore[no-untyped-def]
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError(f"the file ends at byte {len(self.data)}, in the middle of a value")
        return super()._get(offset, dtype, count, override_order)


def _read_file(path: Path) -> tuple[dict[str, object], dict[str, ReaderTensor]]:
    try:
        with np.errstate(over="raise"):
            reader = _BoundedReader(path)
            metadata: dict[str, object] = {name: field.contents() for name, field in reader.fields.items()}
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} is no GGUF file that can be read: {reason}; fetch it again") from None
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


def _check_architecture(path: Path, sizes: _Architecture, tensors: dict[str, ReaderTensor]) -> None:
    unsupported = {
        f"rope scaling {sizes.rope_scaling!r}": sizes.rope_scaling != "none",
        "rope frequency factors": "rope_freqs.weight" in tensors,
        f"{sizes.num_experts} experts": sizes.num_experts > 0,
        "rope over a part of each head": sizes.rope_dimensions not in (None, sizes.head_size),
        "keys and values of different sizes": sizes.value_length not in (None, sizes.head_size),
        "biases": any(re.fullmatch(r"blk\.\d+\.(attn|ffn)_\w+\.bias", name) for name in tensors),
    }
    if found := [what for what, is_there in unsupported.items() if is_there]:
        raise UnsupportedModelError(
            f"{path}: {' and '.join(found)} not supported; supported: dense llama with plain rotary positions"
        )


def _config(sizes: _Architecture, *, num_tokens: int, has_head: bool) -> DecoderConfig:
    return DecoderConfig(
        num_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads or sizes.num_heads,
        head_size=sizes.head_size,
        intermediate_size=sizes.intermediate_size,
        vocab_size=sizes.vocab_size or num_tokens,
        max_positions=sizes.context_length,
        rope_theta=sizes.rope_theta,
        norm_epsilon=sizes.norm_epsilon,
        tie_embeddings=not has_head,
    )


class _GGUFTensors:
    """The tensors of a mapped GGUF file under plait's names."""

    def __init__(self, path: Path, config: DecoderConfig, tensors: dict[str, ReaderTensor]) -> None:
        self._path = path
        self._config = config
        self._tensors = tensors
        for quantization in {tensor.tensor_type for tensor in tensors.values()}:
            _check_quantization(path, quantization)

    @property
    def num_tensors(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self._tensor(name).shape))

    def read(self, name: str) -> Float[np.ndarray, ...]:
        tensor = self._tensor(name)
        values = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("attention.query.weight"):
            return _half_split(values, self._config.num_heads)
        if name.endswith("attention.key.weight"):
            return _half_split(values, self._config.num_kv_heads)
        return values

    def _tensor(self, name: str) -> ReaderTensor:
        original = original_name(name, LLAMA_GGUF)
        if original not in self._tensors:
            raise CheckpointError(f"{self._path} has no tensor {original!r}, which {name!r} is read from")
        return self._tensors[original]


def _half_split(weight: Float[np.ndarray, "rows in"], num_heads: int) -> Float[np.ndarray, "rows in"]:
    """Brings the rows of each head from the order of interleaved pairs to the half-split order."""
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _check_quantization(path: Path, quantization: GGMLQuantizationType) -> None:
    """Dequantizes one block of zeros: the library has no list of the forms that it can dequantize."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[quantization][1]), np.uint8), quantization)
    except NotImplementedError:
        raise UnsupportedModelError(
            f"{path}: quantization {quantization.name} is not supported; "
            "supported: F32, F16, BF16, Q4_0 to Q8_0, the K-quants"
        ) from None


def _tokenizer(path: Path, vocabulary: _Vocabulary) -> TokenizerContents:
    if vocabulary.model != "gpt2" or vocabulary.pre not in _PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{path}: tokenizer {vocabulary.model!r} with pre-tokenizer {vocabulary.pre!r} is not supported; "
            f"supported: 'gpt2' with {', '.join(map(repr, _PRE_TOKENIZERS))}"
        )
    tokens = vocabulary.tokens
    ends = [token for token in (vocabulary.eos_token_id, vocabulary.eot_token_id) if token is not None]
    if (highest := max([*ends, vocabulary.bos_token_id or 0])) >= len(tokens):
        raise CheckpointError(f"{path}: its special token {highest} is not among its {len(tokens)} tokens")
    bos_token = None if vocabulary.bos_token_id is None else tokens[vocabulary.bos_token_id]
    return TokenizerContents(
        json=_byte_pair_tokenizer(path, vocabulary, bos_token if vocabulary.add_bos_token else None).to_str(),
        chat_template=vocabulary.chat_template,
        bos_token=bos_token,
        eos_token=None if vocabulary.eos_token_id is None else tokens[vocabulary.eos_token_id],
        eos_token_ids=tuple(dict.fromkeys(ends)),
    )


def _byte_pair_tokenizer(path: Path, vocabulary: _Vocabulary, prefix: str | None) -> tokenizers.Tokenizer:
    """Rebuilds the tokenizer; `prefix` is the token that every text begins with, if any."""
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    try:
        merges = [(left, right) for left, right in (merge.split(" ") for merge in vocabulary.merges)]
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    except Exception as error:  # the library raises the bare class
        raise CheckpointError(f"{path}: its tokens and merges do not fit together: {error}") from None
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[vocabulary.pre]
    tokenizer.decoder = decoders.ByteLevel()
    kinds = list(zip(vocabulary.tokens, vocabulary.token_types, strict=False))
    tokenizer.add_special_tokens([token for token, kind in kinds if kind == TokenType.CONTROL])
    tokenizer.add_tokens([token for token, kind in kinds if kind == TokenType.USER_DEFINED])
    if prefix is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{prefix} $A", special_tokens=[(prefix, ids[prefix])]
        )
    return tokenizer
