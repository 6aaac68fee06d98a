"""Small encoders of every kind in Hugging Face directories, with weights that depend only on their names.

The reference outputs of these models are made in an environment without plait, and compared with in one without torch:
both write the same directories with this module. Tensors are listed as transformers names them, not as plait does.
"""

from __future__ import annotations

import json
import string
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models as tokenizer_models
from tokenizers import normalizers, pre_tokenizers, processors

HIDDEN, LAYERS, HEADS, FFN, VOCAB = 32, 2, 4, 48, 96
LONGEST = 24  # tokens, special ones included
TEXTS = ("a cat", "the dog sleeps!", "x", "ab cd ef gh ij kl mn op qr st uv")  # the last is the longest there can be
PAIRS = (("a cat", "dogs"), ("what is it?", "a b c"), ("x", "y"))
_LONG_FIRST, _LONG_SECOND = "abcdefghij", "klmnopqrstuvwxyz"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    """A small model: what its files say."""

    architecture: str
    shapes: Shapes  # by the name of the tensor in the file
    config: Mapping[str, object]
    tokenizer: str  # "bert", "roberta" or "xlm"
    takes_pairs: bool = False
    files: Mapping[str, object] = field(default_factory=dict)  # further JSON files

    @property
    def inputs(self) -> tuple[str, ...] | tuple[tuple[str, str], ...]:
        """Texts or pairs of different lengths, the last as long as there can be."""
        num_special = 3 if self.tokenizer == "bert" else 4
        longest = (_LONG_FIRST, _LONG_SECOND[: LONGEST - len(_LONG_FIRST) - num_special])
        return (*PAIRS, longest) if self.takes_pairs else TEXTS


def write_variant(directory: Path, name: str) -> Path:
    """Writes the model of that name; returns the directory."""
    variant = VARIANTS[name]
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {tensor: _values(tensor, shape) for tensor, shape in variant.shapes.items()}
    if name == "bert-mean":  # a buffer that old files carry
        tensors["embeddings.position_ids"] = np.arange(LONGEST)[None]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    files = {"config.json": {"architectures": [variant.architecture], **variant.config}, **variant.files}
    for path, content in files.items():
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (directory / "tokenizer.json").write_text(make_tokenizer(variant.tokenizer).to_str(), encoding="utf-8")
    return directory


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns norms near the identity, other weights such that activations stay near 1."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    is_scale = len(shape) == 1 and name.endswith(("weight", "gamma"))
    scale = 0.2 if len(shape) == 1 else 1.5 * shape[-1] ** -0.5
    return (is_scale + generator.normal(0.0, scale, shape)).astype(np.float32)


def make_tokenizer(kind: str) -> tokenizers.Tokenizer:
    """Returns a tokenizer of letters with the special tokens of a family around texts and pairs."""
    is_bert = kind == "bert"
    start, pad, end, unknown = ("[CLS]", "[PAD]", "[SEP]", "[UNK]") if is_bert else ("<s>", "<pad>", "</s>", "<unk>")
    special = [pad, unknown, start, end] if is_bert else [start, pad, end, unknown]
    characters = string.ascii_lowercase + string.digits
    pieces = [*special, *characters, *(f"##{character}" for character in characters), *".,?!'-"]
    ids = {piece: token_id for token_id, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(tokenizer_models.WordPiece(vocab=ids, unk_token=unknown))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if kind == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing((end, ids[end]), (start, ids[start]))
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A {end}",
            pair=f"{start} $A {end} $B:1 {end}:1" if is_bert else f"{start} $A {end} {end} $B:0 {end}",
            special_tokens=[(start, ids[start]), (end, ids[end])],
        )
    return tokenizer


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str) -> Shapes:
    return {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}


def _bert_shapes(prefix: str, positions: int, token_types: int) -> Shapes:
    """Returns the tensors of BERT and RoBERTa without any head."""
    shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
        f"{prefix}embeddings.position_embeddings.weight": (positions, HIDDEN),
        f"{prefix}embeddings.token_type_embeddings.weight": (token_types, HIDDEN),
        **_norm(f"{prefix}embeddings.LayerNorm"),
    }
    for layer in range(LAYERS):
        place = f"{prefix}encoder.layer.{layer}"
        for role in ("query", "key", "value"):
            shapes |= _linear(f"{place}.attention.self.{role}", HIDDEN, HIDDEN)
        shapes |= _linear(f"{place}.attention.output.dense", HIDDEN, HIDDEN)
        shapes |= _norm(f"{place}.attention.output.LayerNorm")
        shapes |= _linear(f"{place}.intermediate.dense", FFN, HIDDEN)
        shapes |= _linear(f"{place}.output.dense", HIDDEN, FFN)
        shapes |= _norm(f"{place}.output.LayerNorm")
    return shapes


def _distilbert_shapes(prefix: str) -> Shapes:
    shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
        f"{prefix}embeddings.position_embeddings.weight": (LONGEST, HIDDEN),
        **_norm(f"{prefix}embeddings.LayerNorm"),
    }
    for layer in range(LAYERS):
        place = f"{prefix}transformer.layer.{layer}"
        for role in ("q_lin", "k_lin", "v_lin", "out_lin"):
            shapes |= _linear(f"{place}.attention.{role}", HIDDEN, HIDDEN)
        shapes |= _norm(f"{place}.sa_layer_norm") | _norm(f"{place}.output_layer_norm")
        shapes |= _linear(f"{place}.ffn.lin1", FFN, HIDDEN) | _linear(f"{place}.ffn.lin2", HIDDEN, FFN)
    return shapes


def _sizes(positions: int) -> dict[str, object]:
    return {
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "max_position_embeddings": positions,
    }


def _named(labels: tuple[str, ...]) -> dict[str, object]:
    return {"id2label": {str(index): label for index, label in enumerate(labels)}} if labels else {}


def _bert(
    head: str,
    shapes: Shapes,
    *,
    prefix: str = "bert.",
    labels: tuple[str, ...] = (),
    takes_pairs: bool = False,
    files=None,
    **config: object,
) -> Variant:
    fields = {
        "model_type": "bert",
        "type_vocab_size": 2,
        "pad_token_id": 0,
        **_sizes(LONGEST),
        **_named(labels),
        **config,
    }
    tensors = _bert_shapes(prefix, LONGEST, 2) | _linear(f"{prefix}pooler.dense", HIDDEN, HIDDEN) | shapes
    return Variant("Bert" + head, tensors, fields, "bert", takes_pairs, files or {})


def _roberta(
    architecture: str,
    model_type: str,
    *,
    labels: tuple[str, ...] = (),
    takes_pairs: bool = False,
    files=None,
    **config: object,
) -> Variant:
    fields = {"model_type": model_type, "type_vocab_size": 1, "pad_token_id": 1, **_sizes(LONGEST + 2), **config}
    fields |= _named(labels)
    prefix = "roberta." if labels else ""
    shapes = _bert_shapes(prefix, LONGEST + 2, 1)
    if labels:
        shapes |= _linear("classifier.dense", HIDDEN, HIDDEN) | _linear("classifier.out_proj", len(labels), HIDDEN)
    else:
        shapes |= _linear("pooler.dense", HIDDEN, HIDDEN)  # there, but nothing that plait runs uses it
    tokenizer = "roberta" if model_type == "roberta" else "xlm"
    return Variant(architecture, shapes, {"layer_norm_eps": 1e-5, **fields}, tokenizer, takes_pairs, files or {})


def _distilbert(head: str, shapes: Shapes, *, prefix: str = "distilbert.", **config: object) -> Variant:
    sizes = {"n_layers": LAYERS, "dim": HIDDEN, "n_heads": HEADS, "hidden_dim": FFN, "vocab_size": VOCAB}
    fields = {"model_type": "distilbert", "pad_token_id": 0, "max_position_embeddings": LONGEST, **sizes, **config}
    return Variant("DistilBert" + head, _distilbert_shapes(prefix) | shapes, fields, "bert")


def _old_names(shapes: Shapes) -> Shapes:
    """Returns tensors as files of 2018 name them."""
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): shape
        for name, shape in shapes.items()
    }


def _renamed(variant: Variant) -> Variant:
    return replace(variant, shapes=_old_names(dict(variant.shapes)))


_CLASSIFIER = _linear("classifier", 3, HIDDEN)
_SCORE = _linear("classifier", 1, HIDDEN)
_OLD_MEAN = {"1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}}
_OLD_CLS = {"1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}}
_NEW_CLS = {
    "1_Pooling/config.json": {"embedding_dimension": HIDDEN, "pooling_mode": "cls", "include_prompt": True},
    "modules.json": [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_N", "Normalize")))
    ],
}

VARIANTS: dict[str, Variant] = {
    "bert-mean": _bert("Model", {}, prefix="", files=_OLD_MEAN),
    "bert-cls": _renamed(_bert("Model", {}, prefix="", hidden_act="gelu_new", files=_NEW_CLS)),
    "bert-sparse": _bert(
        "ForMaskedLM",
        {"cls.predictions.bias": (VOCAB,)}
        | _linear("cls.predictions.transform.dense", HIDDEN, HIDDEN)
        | _norm("cls.predictions.transform.LayerNorm"),
        hidden_act="relu",
    ),
    "bert-labels": _bert(
        "ForSequenceClassification",
        _CLASSIFIER,
        takes_pairs=True,
        labels=("entails", "contradicts", "neither"),
    ),
    "bert-score": _bert(
        "ForSequenceClassification", _SCORE, takes_pairs=True, hidden_act="gelu_pytorch_tanh", labels=("LABEL_0",)
    ),
    "roberta-mean": _roberta("RobertaModel", "roberta", files=_OLD_MEAN),
    "roberta-labels": _roberta(
        "RobertaForSequenceClassification",
        "roberta",
        labels=("joy", "anger", "fear"),
    ),
    "xlm-roberta-cls": _roberta("XLMRobertaModel", "xlm-roberta", files=_OLD_CLS),
    "xlm-roberta-score": _roberta(
        "XLMRobertaForSequenceClassification", "xlm-roberta", takes_pairs=True, labels=("LABEL_0",)
    ),
    "camembert-mean": _roberta("CamembertModel", "camembert"),
    "distilbert-mean": _distilbert("Model", {}, prefix="", activation="gelu"),
    "distilbert-sparse": _distilbert(
        "ForMaskedLM",
        {"vocab_projector.bias": (VOCAB,)} | _linear("vocab_transform", HIDDEN, HIDDEN) | _norm("vocab_layer_norm"),
    ),
    "distilbert-labels": _distilbert(
        "ForSequenceClassification", _linear("pre_classifier", HIDDEN, HIDDEN) | _linear("classifier", 2, HIDDEN)
    ),
}
