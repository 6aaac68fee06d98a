"""Checkpoints in Hugging Face directories: config.json, safetensors (one file or shards), tokenizer.json.

Comes in: the path of a directory as `save_pretrained` or sentence-transformers writes it. Goes out: a `Checkpoint`.
`LlamaForCausalLM` is a decoder; `BertModel` an encoder of mean-pooled unit vectors; `BertForMaskedLM` a SPLADE encoder
of sparse vectors. What the model's code would do otherwise is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, RootModel

from ...errors import UnsupportedModelError
from ..config import DecoderConfig, EncoderConfig
from .contents import Checkpoint, TokenizerContents, assemble, plain_tokenizer
from .files import SafetensorsFiles, read_fields, read_optional_fields, read_text
from .names import BERT, LLAMA, original_name

__all__ = ["open_huggingface"]


class _Tagged(BaseModel):
    architectures: tuple[str, ...] = ()
    quantization_config: dict[str, object] | None = None


class _RopeParameters(BaseModel):
    model_config = ConfigDict(extra="allow")

    rope_theta: PositiveFloat | None = None
    rope_type: str | None = None
    type: str | None = None  # what older files call rope_type


class _LlamaFields(BaseModel):
    num_hidden_layers: PositiveInt
    hidden_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 2048
    rope_theta: PositiveFloat | None = None
    rope_parameters: _RopeParameters | None = None
    rope_scaling: _RopeParameters | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    eos_token_id: int | list[int] | None = None


class _BertFields(BaseModel):
    num_hidden_layers: PositiveInt
    hidden_size: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    type_vocab_size: PositiveInt = 2
    layer_norm_eps: PositiveFloat = 1e-12
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"
    is_decoder: bool = False
    tie_word_embeddings: bool = True


class _Content(BaseModel):
    content: str


class _NamedTemplate(BaseModel):
    name: str
    template: str


class _TokenizerFields(BaseModel):
    chat_template: str | list[_NamedTemplate] | None = None
    bos_token: str | _Content | None = None
    eos_token: str | _Content | None = None
    model_max_length: float | None = None  # "no limit" is written as 1e30


class _Generation(BaseModel):
    eos_token_id: int | list[int] | None = None


class _SentenceFields(BaseModel):
    max_seq_length: PositiveInt | None = None


class _Module(BaseModel):
    type: str


class _Pooling(BaseModel):
    pooling_mode_cls_token: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False


def open_huggingface(directory: Path) -> Checkpoint:
    """Opens a Hugging Face directory.

    Raises:
        UnsupportedModelError: if its architecture, quantization or pooling is none that plait reads.
        CheckpointError: if a file is missing or damaged, or its tensors do not match config.json.
    """
    tagged = read_fields(_Tagged, directory / "config.json")
    if tagged.quantization_config is not None:
        raise UnsupportedModelError(f"{directory}: quantized weights are not supported; supported: F32, F16, BF16")
    name = tagged.architectures[0] if tagged.architectures else "none"
    if name not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{directory}: architecture {name!r} is not supported; supported: {', '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[name](directory)


def _open_llama(directory: Path) -> Checkpoint:
    fields = read_fields(_LlamaFields, directory / "config.json")
    config = _llama_config(directory, fields)
    generation = read_optional_fields(_Generation, directory / "generation_config.json")
    ends = generation.eos_token_id if generation.eos_token_id is not None else fields.eos_token_id
    tokenizer = _tokenizer(directory, () if ends is None else tuple(np.atleast_1d(ends).tolist()))
    source = SafetensorsFiles(directory, lambda tensor: (original_name(tensor, LLAMA),))
    return assemble(directory, config, tokenizer, max_sequence=config.max_positions, source=source)


def _llama_config(directory: Path, fields: _LlamaFields) -> DecoderConfig:
    rope = fields.rope_parameters or fields.rope_scaling or _RopeParameters()
    rope_type = rope.rope_type or rope.type or "default"
    unsupported = {
        f"rope type {rope_type!r}": rope_type != "default",
        "biases": fields.attention_bias or fields.mlp_bias,
        f"activation {fields.hidden_act!r}": fields.hidden_act != "silu",
    }
    _refuse(directory, unsupported, "llama with plain rotary positions, SiLU and no biases")
    return DecoderConfig(
        num_layers=fields.num_hidden_layers,
        hidden_size=fields.hidden_size,
        num_heads=fields.num_attention_heads,
        num_kv_heads=fields.num_key_value_heads or fields.num_attention_heads,
        head_size=fields.head_dim or fields.hidden_size // fields.num_attention_heads,
        intermediate_size=fields.intermediate_size,
        vocab_size=fields.vocab_size,
        max_positions=fields.max_position_embeddings,
        rope_theta=rope.rope_theta or fields.rope_theta or 10_000.0,
        norm_epsilon=fields.rms_norm_eps,
        tie_embeddings=fields.tie_word_embeddings,
    )


def _open_bert_embedding(directory: Path) -> Checkpoint:
    _check_pooling(directory)
    return _open_bert(directory, "embedding")


def _open_splade(directory: Path) -> Checkpoint:
    return _open_bert(directory, "masked_lm")


_ARCHITECTURES: dict[str, Callable[[Path], Checkpoint]] = {
    "LlamaForCausalLM": _open_llama,
    "BertModel": _open_bert_embedding,
    "BertForMaskedLM": _open_splade,
}


def _open_bert(directory: Path, head: Literal["embedding", "masked_lm"]) -> Checkpoint:
    config = _bert_config(directory, head)
    limits = [config.max_positions, *_sequence_limits(directory)]
    source = SafetensorsFiles(directory, _bert_names)
    return assemble(directory, config, _tokenizer(directory, ()), max_sequence=min(limits), source=source)


def _bert_config(directory: Path, head: Literal["embedding", "masked_lm"]) -> EncoderConfig:
    fields = read_fields(_BertFields, directory / "config.json")
    unsupported = {
        f"activation {fields.hidden_act!r}": fields.hidden_act != "gelu",
        f"{fields.position_embedding_type!r} positions": fields.position_embedding_type != "absolute",
        "decoder attention": fields.is_decoder,
        "an untied masked-LM head": head == "masked_lm" and not fields.tie_word_embeddings,
    }
    _refuse(directory, unsupported, "bert with absolute positions, GELU and tied embeddings")
    return EncoderConfig(
        num_layers=fields.num_hidden_layers,
        hidden_size=fields.hidden_size,
        num_heads=fields.num_attention_heads,
        intermediate_size=fields.intermediate_size,
        vocab_size=fields.vocab_size,
        max_positions=fields.max_position_embeddings,
        num_token_types=fields.type_vocab_size,
        norm_epsilon=fields.layer_norm_eps,
        head=head,
    )


def _check_pooling(directory: Path) -> None:
    """Refuses what isn't mean pooling. A missing normalization is not refused: plait's vectors have unit length."""
    modules = read_optional_fields(RootModel[list[_Module]], directory / "modules.json", []).root
    kinds = [module.type.rpartition(".")[2] for module in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UnsupportedModelError(
                f"{directory}: sentence-transformers module {kind!r} is not supported; "
                "supported: Transformer, Pooling, Normalize"
            )
    if (path := directory / "1_Pooling" / "config.json").exists():
        modes = [mode for mode, is_on in read_fields(_Pooling, path).model_dump().items() if is_on]
        if modes != ["pooling_mode_mean_tokens"]:
            raise UnsupportedModelError(
                f"{path}: {' and '.join(modes) or 'no pooling'} is not supported; supported: pooling_mode_mean_tokens"
            )


def _sequence_limits(directory: Path) -> list[int]:
    """Returns the longest sequences in tokens that the sentence and tokenizer configurations name."""
    sentence = read_optional_fields(_SentenceFields, directory / "sentence_bert_config.json").max_seq_length
    tokenizer = read_optional_fields(_TokenizerFields, directory / "tokenizer_config.json").model_max_length
    return [int(limit) for limit in (sentence, tokenizer) if limit is not None and limit >= 1]


def _bert_names(name: str) -> tuple[str, ...]:
    """Returns the names that a BERT tensor may have in the file, the usual one first."""
    original = original_name(name, BERT)
    if "LayerNorm." in original:
        old = original.replace(".weight", ".gamma").replace(".bias", ".beta")
        return original, f"bert.{original}", old, f"bert.{old}"
    if original == "cls.predictions.bias":
        return original, "cls.predictions.decoder.bias"
    return original, f"bert.{original}"


def _tokenizer(directory: Path, eos_token_ids: tuple[int, ...]) -> TokenizerContents:
    fields = read_optional_fields(_TokenizerFields, directory / "tokenizer_config.json")
    path = directory / "tokenizer.json"
    return TokenizerContents(
        json=plain_tokenizer(read_text(path), path),
        chat_template=_chat_template(directory, fields),
        bos_token=_token_text(fields.bos_token),
        eos_token=_token_text(fields.eos_token),
        eos_token_ids=eos_token_ids,
    )


def _chat_template(directory: Path, fields: _TokenizerFields) -> str | None:
    if (path := directory / "chat_template.jinja").exists():  # where newer versions write it
        return read_text(path)
    if isinstance(fields.chat_template, list):
        return next((named.template for named in fields.chat_template if named.name == "default"), None)
    return fields.chat_template


def _token_text(token: str | _Content | None) -> str | None:
    return token.content if isinstance(token, _Content) else token


def _refuse(directory: Path, unsupported: dict[str, bool], supported: str) -> None:
    if found := [what for what, is_there in unsupported.items() if is_there]:
        raise UnsupportedModelError(f"{directory}: {' and '.join(found)} not supported; supported: {supported}")
