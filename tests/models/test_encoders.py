"""Small encoders of every kind against transformers' outputs of the same weights, and directories that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_zoo import LONGEST, VARIANTS, write_variant
from safetensors.numpy import load_file, save_file

from plait.compiler.configuration import Configuration
from plait.compiler.trace import trace_model
from plait.errors import CheckpointError, UnsupportedModelError
from plait.models.checkpoint import open_checkpoint
from plait.models.config import EncoderConfig, config_from_json, config_to_json
from plait.models.family import build

TOLERANCE = 1e-5  # max|difference| / max|reference|
REFERENCE = np.load(Path(__file__).parents[1] / "golden" / "encoders.npz")


def config_of(directory: Path) -> EncoderConfig:
    config = open_checkpoint(directory).config
    assert isinstance(config, EncoderConfig)
    return config


def run(directory: Path, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns our vectors or logits of padded token sequences, in f32."""
    checkpoint = open_checkpoint(directory)
    parameters = {name: jnp.asarray(checkpoint.read(name)) for name in checkpoint.tensor_names}
    return np.asarray(jax.jit(build(checkpoint.config, jnp.float32))(parameters, jnp.asarray(tokens), lengths))


def relative_difference(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize("name", VARIANTS)
def test_an_encoder_agrees_with_the_reference(tmp_path: Path, name: str):
    tokens, lengths = REFERENCE[f"{name}_ids"], REFERENCE[f"{name}_lengths"]
    assert lengths.max() == LONGEST == open_checkpoint(write_variant(tmp_path, name)).max_sequence
    assert relative_difference(run(tmp_path, tokens, lengths), REFERENCE[f"{name}_outputs"]) < TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_what_stands_in_the_padding_does_not_matter(tmp_path: Path, name: str):
    tokens, lengths = REFERENCE[f"{name}_ids"], REFERENCE[f"{name}_lengths"]
    other = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 7)
    shorter = other[:, :-4]
    write_variant(tmp_path, name)
    assert relative_difference(run(tmp_path, other, lengths), REFERENCE[f"{name}_outputs"]) < TOLERANCE
    few = run(tmp_path, shorter[:-1], lengths[:-1])
    assert relative_difference(few, REFERENCE[f"{name}_outputs"][:-1]) < TOLERANCE


@pytest.mark.parametrize("name", ["bert-mean", "bert-cls", "bert-sparse"])
def test_a_sequence_without_tokens_gives_zeros(tmp_path: Path, name: str):
    write_variant(tmp_path, name)
    vectors = run(tmp_path, np.ones((2, 4), np.int32), np.array([0, 4]))
    assert not vectors[0].any()
    assert vectors[1].any()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_configuration_survives_json(tmp_path: Path, name: str):
    config = config_of(write_variant(tmp_path, name))
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


@pytest.mark.parametrize("name", ["bert-labels", "roberta-mean", "distilbert-sparse"])
def test_an_encoder_is_traced_with_shapes_alone(tmp_path: Path, name: str):
    config = config_of(write_variant(tmp_path, name))
    graph = trace_model(config, Configuration("embed", 2, 8, 8), "float32").graph
    assert not graph.is_estimate
    assert graph.parameter_bytes == 4 * sum(
        int(np.prod(shape))
        for tensor, shape in VARIANTS[name].shapes.items()
        if "pooler" not in tensor or name == "bert-labels"
    )


@pytest.mark.parametrize(
    ("name", "separator", "offset", "num_types"),
    [
        ("bert-labels", 3, 0, 2),
        ("bert-mean", None, 0, 2),
        ("xlm-roberta-score", None, 2, 1),
        ("distilbert-labels", None, 0, 0),
    ],
    ids=["bert pairs", "bert vectors", "xlm-roberta", "distilbert"],
)
def test_positions_and_token_types_are_those_of_the_family(
    tmp_path: Path, name: str, separator: int | None, offset: int, num_types: int
):
    config = config_of(write_variant(tmp_path, name))
    assert (config.separator_token_id, config.position_offset, config.num_token_types) == (separator, offset, num_types)


def change_config(directory: Path, name: str, **fields: object) -> Path:
    """Writes a variant with some fields of config.json changed; None takes a field out."""
    write_variant(directory, name)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8")) | fields
    kept = {key: value for key, value in config.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return directory


def test_labels_without_names_are_numbered_as_transformers_does(tmp_path: Path):
    assert config_of(write_variant(tmp_path, "distilbert-labels")).labels == ("LABEL_0", "LABEL_1")
    change_config(tmp_path, "roberta-labels", id2label=None, num_labels=3, pad_token_id=None)
    assert config_of(tmp_path).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_independent_labels_are_known(tmp_path: Path):
    change_config(tmp_path, "roberta-labels", problem_type="multi_label_classification")
    assert config_of(tmp_path).is_multi_label


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("bert-labels", {"id2label": {"0": "a", "1": "b"}}, "its classifier has 3 outputs, id2label .* names 2"),
        ("bert-labels", {"id2label": {"0": "a", "2": "b"}}, r"id2label must give each of the ids 0 … 1 a name"),
        ("bert-labels", {"id2label": {"0": "a", "1": "a", "2": "b"}}, "a name of its own"),
        ("bert-labels", {"id2label": {}}, "id2label must give each of the ids"),
        ("roberta-mean", {"pad_token_id": 25}, "leaves no position for a token"),
        ("roberta-mean", {"pad_token_id": -1}, r"config\.json: pad_token_id: Input should be greater"),
        ("roberta-mean", {"max_position_embeddings": 30}, r"position_embeddings\.weight' is \[26, 32\]"),
        ("distilbert-mean", {"dim": None}, r"config\.json: hidden_size: Field required"),
    ],
    ids=["fewer", "gap", "twice", "none", "no position", "negative", "positions", "size"],
)
def test_a_contradictory_configuration_is_refused(tmp_path: Path, name: str, fields: dict[str, object], message: str):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(change_config(tmp_path, name, **fields))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("bert-mean", {"hidden_act": "silu"}, "activation 'silu' not supported; supported: .*gelu_new.*relu"),
        (
            "bert-mean",
            {"architectures": ["ModernBertModel"]},
            "'ModernBertModel' is not supported; supported: .*XLMRobert",
        ),
        ("bert-labels", {"problem_type": "regression"}, "regression of 3 values is not supported; supported: a score"),
        ("bert-mean", {"is_decoder": True}, "decoder attention not supported"),
    ],
    ids=["activation", "architecture", "regression", "decoder"],
)
def test_what_an_encoder_cannot_be_says_what_it_can(tmp_path: Path, name: str, fields: dict[str, object], message: str):
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(change_config(tmp_path, name, **fields))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pooling_mode": "max"}, "pooling by max is not supported; supported: mean, cls"),
        ({"pooling_mode": ["mean", "cls"]}, "pooling by mean and cls is not supported"),
        ({"pooling_mode_lasttoken": True}, "pooling by lasttoken is not supported"),
        ({}, "pooling by none is not supported"),
    ],
    ids=["new form", "several", "old form", "none"],
)
def test_unsupported_pooling_says_what_is_supported(tmp_path: Path, content: dict[str, object], message: str):
    write_variant(tmp_path, "bert-cls")
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        (
            "bert-labels",
            "bert.pooler.dense.weight",
            r"has no tensor pooler\.dense\.weight or bert\.pooler\.dense\.weight",
        ),
        ("bert-score", "classifier.weight", r"has no tensor classifier\.weight or bert\.classifier\.weight"),
        ("roberta-labels", "classifier.dense.bias", r"has no tensor classifier\.dense\.bias"),
        ("distilbert-labels", "pre_classifier.bias", r"has no tensor pre_classifier\.bias"),
    ],
    ids=["pooler", "classifier", "dense", "pre-classifier"],
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str, lost: str, message: str):
    path = write_variant(tmp_path, name) / "model.safetensors"
    tensors = load_file(path)
    del tensors[lost]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)
