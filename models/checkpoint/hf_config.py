"""From a Hugging Face config.json to a decoder's configuration.

Comes in: the fields of the file. Goes out: a `DecoderConfig`, the form in which the weights are stored included. What
the model's code would do and plait's doesn't is refused, not ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, Field

from ...errors import UnsupportedModelError
from ..config import DecoderConfig, StoredForm, StoredPart
from .contents import check_sizes, refuse, validated
from .hf_dense import (
    BloomFields,
    FalconFields,
    LlamaFields,
    MistralFields,
    Phi3Fields,
    Qwen2Fields,
    Qwen3Fields,
    SmolLM3Fields,
)
from .hf_experts import DeepseekV2Fields, DeepseekV3Fields, GptOssFields, MixtralFields, Qwen3MoeFields
from .hf_fields import DecoderFields
from .hf_gemma import Gemma2Fields, Gemma3Fields, GemmaFields

__all__ = ["DECODERS", "NESTED_DECODERS", "config_from_huggingface"]

DECODERS: dict[str, type[DecoderFields]] = {
    "LlamaForCausalLM": LlamaFields,
    "YiForCausalLM": LlamaFields,  # Llama under the name that its first files have
    "SmolLM3ForCausalLM": SmolLM3Fields,
    "MistralForCausalLM": MistralFields,
    "Qwen2ForCausalLM": Qwen2Fields,
    "Qwen3ForCausalLM": Qwen3Fields,
    "GemmaForCausalLM": GemmaFields,
    "Gemma2ForCausalLM": Gemma2Fields,
    "Gemma3ForCausalLM": Gemma3Fields,
    "Phi3ForCausalLM": Phi3Fields,
    "MixtralForCausalLM": MixtralFields,
    "Qwen3MoeForCausalLM": Qwen3MoeFields,
    "GptOssForCausalLM": GptOssFields,
    "DeepseekV2ForCausalLM": DeepseekV2Fields,
    "DeepseekV3ForCausalLM": DeepseekV3Fields,
    "BloomForCausalLM": BloomFields,
    "FalconForCausalLM": FalconFields,
}

# The decoders inside models that also see images, by architecture and the type of their text_config.
NESTED_DECODERS: dict[str, dict[str, type[DecoderFields]]] = {
    "LlavaForConditionalGeneration": {"llama": LlamaFields, "mistral": MistralFields, "qwen2": Qwen2Fields},
    "Mistral3ForConditionalGeneration": {"mistral": MistralFields},
    "Gemma3ForConditionalGeneration": {"gemma3_text": Gemma3Fields},
}

_PARTS = {"attention": re.compile(r"self_attn(\.\w+_proj\w*)?$"), "experts": re.compile(r"mlp\.experts\b")}
_FP8_BLOCK = [128, 128]
_FORMS = "fp8 in blocks of 128 x 128, mxfp4, and F32, F16, BF16"


class _Text(BaseModel):
    model_type: str = "llama"


class _Tagged(BaseModel):
    architectures: list[str] | None = None
    text_config: dict[str, object] | None = None
    quantization_config: dict[str, object] | None = None


class _Quantization(BaseModel):
    quant_method: str = "none"
    weight_block_size: list[int] | None = None
    fmt: str | None = "e4m3"
    activation_scheme: str | None = "dynamic"
    not_converted: list[str] | None = Field(None, validation_alias="modules_to_not_convert")


def config_from_huggingface(data: Mapping[str, object], what: Path) -> DecoderConfig:
    """Returns a decoder's configuration from the fields of its config.json.

    Args:
        data: The fields; those that are missing have the defaults that transformers gives them.
        what: The file, as messages name it.

    Raises:
        UnsupportedModelError: if the architecture or something about it is none that plait runs.
        CheckpointError: if a field is of the wrong type, out of range, or contradicts another.
    """
    tagged = validated(_Tagged, data, what)
    name = next(iter(tagged.architectures or ()), "none")
    if name in NESTED_DECODERS:
        text = tagged.text_config or {}
        kind, kinds = validated(_Text, text, what).model_type, NESTED_DECODERS[name]
        refuse(what, {f"a text model of type {kind!r}": kind not in kinds}, ", ".join(kinds))
        config = validated(kinds[kind], text, what).config(what)
    elif name in DECODERS:
        config = validated(DECODERS[name], data, what).config(what)
    else:
        supported = ", ".join([*DECODERS, *NESTED_DECODERS])
        raise UnsupportedModelError(f"{what}: architecture {name!r} is not supported; supported: {supported}")
    check_sizes(what, config)
    form, parts = _stored(tagged.quantization_config, config, what)
    return replace(config, stored_form=form, stored_parts=parts)


def _stored(
    data: Mapping[str, object] | None, config: DecoderConfig, what: Path
) -> tuple[StoredForm | None, tuple[StoredPart, ...]]:
    """Returns the form in which the weights are stored, and which of them."""
    if not data:
        return None, ()
    fields = validated(_Quantization, data, what)
    if fields.quant_method == "mxfp4":
        return "mxfp4", ("experts",)
    unsupported = {
        f"quantization {fields.quant_method!r}": fields.quant_method != "fp8",
        f"fp8 in blocks of {fields.weight_block_size}": fields.quant_method == "fp8"
        and fields.weight_block_size != _FP8_BLOCK,
        f"fp8 of format {fields.fmt!r}": fields.fmt not in (None, "e4m3"),
        f"{fields.activation_scheme!r} scales of activations": fields.activation_scheme not in (None, "dynamic"),
    }
    refuse(what, unsupported, _FORMS)
    candidates: tuple[StoredPart, ...] = ("attention", "mlp", "experts") if config.experts else ("attention", "mlp")
    return "fp8", tuple(part for part in candidates if not _is_left_out(part, fields.not_converted or []))


def _is_left_out(part: StoredPart, not_converted: list[str]) -> bool:
    """Returns whether the modules of a part are among those that were not converted."""
    return part in _PARTS and any(_PARTS[part].search(name) for name in not_converted)
