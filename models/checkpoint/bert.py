"""Encoders in Hugging Face directories: BERT, RoBERTa, XLM-R, CamemBERT and DistilBERT with every head that plait runs.

Comes in: the path of a directory as `save_pretrained` or sentence-transformers writes it, and its architecture. Goes
out: a `Checkpoint`. A bare model gives mean- or CLS-pooled vectors, always of unit length; a masked-LM head SPLADE's
sparse vectors; a sequence classifier one logit for each label of `id2label`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import tokenizers
from pydantic import AliasChoices, BaseModel, Field, NonNegativeInt, PositiveFloat, PositiveInt, RootModel

from ...errors import CheckpointError, UnsupportedModelError
from ..config import EncoderConfig
from .contents import Checkpoint, assemble, refuse
from .files import SafetensorsFiles, read_fields, read_optional_fields
from .huggingface_tokenizer import read_tokenizer, tokenizer_limit
from .names import original_name
from .recipes import renamed

__all__ = ["BERT", "ENCODERS", "Encoder"]

Head: TypeAlias = Literal["embedding", "masked_lm", "classification"]
Pooling: TypeAlias = Literal["mean", "cls"]

# The tables are without the prefix, e.g. "bert.", that models with a head carry.
_ENCODER = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.*.query": "encoder.layer.*.attention.self.query",
    "layers.*.key": "encoder.layer.*.attention.self.key",
    "layers.*.value": "encoder.layer.*.attention.self.value",
    "layers.*.attention_output": "encoder.layer.*.attention.output.dense",
    "layers.*.attention_norm": "encoder.layer.*.attention.output.LayerNorm",
    "layers.*.up": "encoder.layer.*.intermediate.dense",
    "layers.*.down": "encoder.layer.*.output.dense",
    "layers.*.output_norm": "encoder.layer.*.output.LayerNorm",
}
BERT = _ENCODER | {
    "head": "cls.predictions",
    "head.transform": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.dense": "pooler.dense",
    "head.output": "classifier",
}
_ROBERTA = _ENCODER | {"head.dense": "classifier.dense", "head.output": "classifier.out_proj"}
_DISTILBERT = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.*.query": "transformer.layer.*.attention.q_lin",
    "layers.*.key": "transformer.layer.*.attention.k_lin",
    "layers.*.value": "transformer.layer.*.attention.v_lin",
    "layers.*.attention_output": "transformer.layer.*.attention.out_lin",
    "layers.*.attention_norm": "transformer.layer.*.sa_layer_norm",
    "layers.*.up": "transformer.layer.*.ffn.lin1",
    "layers.*.down": "transformer.layer.*.ffn.lin2",
    "layers.*.output_norm": "transformer.layer.*.output_layer_norm",
    "head": "vocab_projector",
    "head.transform": "vocab_transform",
    "head.norm": "vocab_layer_norm",
    "head.dense": "pre_classifier",
    "head.output": "classifier",
}


@dataclass(frozen=True)
class _Family:
    """What the configuration files of a family don't say."""

    prefix: str
    modules: Mapping[str, str]
    has_token_types: bool = True
    counts_from_padding: bool = False  # whether the first token's position is pad_token_id + 1, not 0
    classifier_activation: Literal["tanh", "relu"] = "tanh"


_FAMILIES = {
    "Bert": _Family("bert.", BERT),
    "Roberta": _Family("roberta.", _ROBERTA, counts_from_padding=True),
    "XLMRoberta": _Family("roberta.", _ROBERTA, counts_from_padding=True),
    "Camembert": _Family("roberta.", _ROBERTA, counts_from_padding=True),
    "DistilBert": _Family("distilbert.", _DISTILBERT, has_token_types=False, classifier_activation="relu"),
}
_HEADS: dict[str, Head] = {"Model": "embedding", "ForSequenceClassification": "classification"}
_MASKED_LM_FAMILIES = ("Bert", "DistilBert")
_ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh", "relu"]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_PAD_TOKEN_ID = 1  # where a family counts from it and its file names none
_MAX_LABELS = 100_000  # a model of damaged size is not built


def _either(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class _Fields(BaseModel):
    num_hidden_layers: PositiveInt = Field(validation_alias=_either("num_hidden_layers", "n_layers"))
    hidden_size: PositiveInt = Field(validation_alias=_either("hidden_size", "dim"))
    num_attention_heads: PositiveInt = Field(validation_alias=_either("num_attention_heads", "n_heads"))
    intermediate_size: PositiveInt = Field(validation_alias=_either("intermediate_size", "hidden_dim"))
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    type_vocab_size: PositiveInt = 2
    layer_norm_eps: PositiveFloat = 1e-12
    hidden_act: str = Field("gelu", validation_alias=_either("hidden_act", "activation"))
    position_embedding_type: str = "absolute"
    pad_token_id: NonNegativeInt | None = None  # looked at where positions count from it
    is_decoder: bool = False
    tie_word_embeddings: bool = True


class _Labels(BaseModel):
    id2label: dict[NonNegativeInt, str] | None = None
    num_labels: PositiveInt | None = None
    problem_type: str | None = None


class _SentenceFields(BaseModel):
    max_seq_length: PositiveInt | None = None


class _Module(BaseModel):
    type: str


class _Pooling(BaseModel):
    pooling_mode: str | list[str] | None = None  # where newer versions write it
    cls: bool = Field(False, alias="pooling_mode_cls_token")
    max: bool = Field(False, alias="pooling_mode_max_tokens")
    mean: bool = Field(False, alias="pooling_mode_mean_tokens")
    mean_sqrt_len: bool = Field(False, alias="pooling_mode_mean_sqrt_len_tokens")
    weightedmean: bool = Field(False, alias="pooling_mode_weightedmean_tokens")
    lasttoken: bool = Field(False, alias="pooling_mode_lasttoken")

    @property
    def modes(self) -> list[str]:
        """The ways of pooling, e.g. ["mean"]; the results of several would be put one after the other."""
        if self.pooling_mode is not None:
            return [self.pooling_mode] if isinstance(self.pooling_mode, str) else self.pooling_mode
        return [name for name, is_on in self.model_dump(exclude={"pooling_mode"}).items() if is_on]


@dataclass(frozen=True)
class Encoder:
    """One architecture of encoders."""

    family: _Family
    head: Head

    def open(self, directory: Path) -> Checkpoint:
        """Opens a directory of this architecture; raises as `open_huggingface`."""
        tokenizer, files = read_tokenizer(directory, ()), SafetensorsFiles(directory)
        config, names = _config(directory / "config.json", self, tokenizer.json), functools.partial(_names, self.family)
        if self.head == "classification":
            _check_labels(directory, config, files, names("head.output.weight"))
        limits = [config.max_positions, *_sequence_limits(directory)]
        return assemble(directory, config, tokenizer, max_sequence=min(limits), files=files, recipe_of=renamed(names))

    def config(self, path: Path) -> EncoderConfig:
        """Returns the configuration in a config.json; without a tokenizer beside it, pairs have no separator."""
        has_tokenizer = (path.parent / "tokenizer.json").exists()
        return _config(path, self, read_tokenizer(path.parent, ()).json if has_tokenizer else None)


def _encoders() -> dict[str, Encoder]:
    encoders = {name + end: Encoder(family, head) for name, family in _FAMILIES.items() for end, head in _HEADS.items()}
    return encoders | {f"{name}ForMaskedLM": Encoder(_FAMILIES[name], "masked_lm") for name in _MASKED_LM_FAMILIES}


ENCODERS = _encoders()  # by name of the architecture


def _config(path: Path, encoder: Encoder, tokenizer_json: str | None) -> EncoderConfig:
    directory, family, head = path.parent, encoder.family, encoder.head
    fields, labels = read_fields(_Fields, path), read_fields(_Labels, path)
    unsupported = {
        f"activation {fields.hidden_act!r}": fields.hidden_act not in _ACTIVATIONS,
        f"{fields.position_embedding_type!r} positions": fields.position_embedding_type != "absolute",
        "decoder attention": fields.is_decoder,
        "an untied masked-LM head": head == "masked_lm" and not fields.tie_word_embeddings,
    }
    refuse(directory, unsupported, f"absolute positions, {', '.join(_ACTIVATIONS)}, and tied embeddings")
    padding = _PAD_TOKEN_ID if fields.pad_token_id is None else fields.pad_token_id
    offset = padding + 1 if family.counts_from_padding else 0
    if fields.max_position_embeddings <= offset:
        raise CheckpointError(
            f"{directory}: max_position_embeddings {fields.max_position_embeddings} leaves no position for a token: "
            f"the first has position {offset}"
        )
    is_classifier = head == "classification"
    num_types = fields.type_vocab_size if family.has_token_types else 0
    return EncoderConfig(
        num_layers=fields.num_hidden_layers,
        hidden_size=fields.hidden_size,
        num_heads=fields.num_attention_heads,
        intermediate_size=fields.intermediate_size,
        vocab_size=fields.vocab_size,
        max_positions=fields.max_position_embeddings - offset,
        num_token_types=num_types,
        norm_epsilon=fields.layer_norm_eps,
        head=head,
        activation=_ACTIVATIONS[fields.hidden_act],
        position_offset=offset,
        pooling=_pooling(directory) if head == "embedding" else "mean",
        labels=_label_names(path, labels) if is_classifier else (),
        classifier_activation=family.classifier_activation,
        is_multi_label=is_classifier and labels.problem_type == "multi_label_classification",
        separator_token_id=_separator(tokenizer_json) if tokenizer_json and is_classifier and num_types > 1 else None,
    )


def _label_names(path: Path, fields: _Labels) -> tuple[str, ...]:
    """Returns the labels in the order of the logits; a file without names means transformers' own, two by default."""
    names = fields.id2label
    if names is None:
        names = {index: f"LABEL_{index}" for index in range(min(fields.num_labels or 2, _MAX_LABELS))}
    if sorted(names) != list(range(len(names))) or len(set(names.values())) != len(names) or not names:
        raise CheckpointError(
            f"{path}: id2label must give each of the ids 0 … {max(len(names) - 1, 0)} a name of "
            f"its own, it has {dict(list(names.items())[:5])}"
        )
    if fields.problem_type == "regression" and len(names) > 1:
        raise UnsupportedModelError(
            f"{path}: regression of {len(names)} values is not supported; supported: a score, one of several "
            "labels, or several labels at once (problem_type multi_label_classification)"
        )
    return tuple(names[index] for index in range(len(names)))


def _check_labels(directory: Path, config: EncoderConfig, files: SafetensorsFiles, names: tuple[str, ...]) -> None:
    """Checks the number of labels; a classifier that is missing is found when all tensors are."""
    for shape in (files.shape(name) for name in names if name in files.names):
        if shape[0] != len(config.labels):
            raise CheckpointError(
                f"{directory}: its classifier has {shape[0]} outputs, id2label in config.json names "
                f"{len(config.labels)}; it must name each"
            )


def _separator(tokenizer_json: str) -> int | None:
    """Returns the token after which the tokenizer gives the tokens of a pair the type 1, if there is one."""
    pair = tokenizers.Tokenizer.from_str(tokenizer_json).encode("a", "b")
    if 1 not in pair.type_ids:
        return None
    last = pair.type_ids.index(1) - 1
    return pair.ids[last] if last >= 0 and pair.special_tokens_mask[last] else None


def _pooling(directory: Path) -> Pooling:
    """Returns how an embedding is pooled. A missing normalization is not refused: plait's vectors have unit length."""
    modules = read_optional_fields(RootModel[list[_Module]], directory / "modules.json", []).root
    for kind in (module.type.rpartition(".")[2] for module in modules):
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UnsupportedModelError(
                f"{directory}: sentence-transformers module {kind!r} is not supported; "
                "supported: Transformer, Pooling, Normalize"
            )
    path = directory / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    match read_fields(_Pooling, path).modes:
        case ["mean"]:
            return "mean"
        case ["cls"]:
            return "cls"
        case modes:
            what = " and ".join(modes) or "none"
            raise UnsupportedModelError(f"{path}: pooling by {what} is not supported; supported: mean, cls")


def _sequence_limits(directory: Path) -> list[int]:
    """Returns the longest sequences in tokens that the sentence and tokenizer configurations name."""
    sentence = read_optional_fields(_SentenceFields, directory / "sentence_bert_config.json").max_seq_length
    return [limit for limit in (sentence, tokenizer_limit(directory)) if limit is not None]


def _names(family: _Family, name: str) -> tuple[str, ...]:
    """Returns the names that a tensor may have in the file, the usual one first."""
    original = original_name(name, family.modules)
    names = [original, family.prefix + original]
    if "LayerNorm." in original:
        old = original.replace(".weight", ".gamma").replace(".bias", ".beta")
        names += [old, family.prefix + old]
    if original == "cls.predictions.bias":
        names.append("cls.predictions.decoder.bias")
    return tuple(names)
