from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plait.models.checkpoint import open_checkpoint
from plait.models.family import build
from plait.runtime.tokenizer import Tokenizer

pytestmark = pytest.mark.weights

TOLERANCE = 1e-5  # max|difference| / max|reference|
GOLDEN = Path(__file__).parents[1] / "golden"
REFERENCE = np.load(GOLDEN / "reference_bert.npz")
ABOUT = json.loads((GOLDEN / "reference_about.json").read_text(encoding="utf-8"))


def encode(directory: Path, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns our vectors of padded token sequences, in f32."""
    checkpoint = open_checkpoint(directory)
    parameters = {name: jnp.asarray(checkpoint.read(name)) for name in checkpoint.tensor_names}
    return np.asarray(jax.jit(build(checkpoint.config, jnp.float32))(parameters, jnp.asarray(tokens), lengths))


def relative_difference(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


@pytest.fixture(scope="module")
def embeddings(minilm: Path) -> np.ndarray:
    return encode(minilm, REFERENCE["minilm_ids"], REFERENCE["minilm_lengths"])


@pytest.fixture(scope="module")
def sparse_vectors(splade: Path) -> np.ndarray:
    return encode(splade, REFERENCE["splade_ids"], REFERENCE["splade_lengths"])


def test_minilm_embeddings_agree_with_the_reference(embeddings: np.ndarray):
    assert relative_difference(embeddings, REFERENCE["minilm_embeddings"]) < TOLERANCE


def test_minilm_cosine_of_the_known_pair(embeddings: np.ndarray):
    assert ABOUT["sentences"][:2] == ["A man is eating food.", "A man is eating a piece of bread."]
    assert embeddings[0] @ embeddings[1] == pytest.approx(0.7553, abs=5e-5)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-6)


def test_padding_does_not_change_an_embedding(minilm: Path, embeddings: np.ndarray):
    length = int(REFERENCE["minilm_lengths"][0])
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, :length] = REFERENCE["minilm_ids"][0, :length]
    assert relative_difference(encode(minilm, tokens, np.array([length])), embeddings[:1]) < TOLERANCE


def test_splade_vectors_agree_with_the_reference(sparse_vectors: np.ndarray):
    reference = np.zeros_like(sparse_vectors)
    reference[REFERENCE["splade_rows"], REFERENCE["splade_entries"]] = REFERENCE["splade_values"]
    assert relative_difference(sparse_vectors, reference) < TOLERANCE


def test_splade_finds_the_passage_about_tides(sparse_vectors: np.ndarray):
    relevant, unrelated, _ = sparse_vectors[1:] @ sparse_vectors[0]
    assert relevant == pytest.approx(19.8, abs=0.2)
    assert unrelated == 0.0


def test_minilm_tokenizer_gives_the_reference_ids_unpadded(minilm: Path):
    tokenizer = Tokenizer(open_checkpoint(minilm).tokenizer_json)
    for text, ids, length in zip(ABOUT["sentences"], REFERENCE["minilm_ids"], REFERENCE["minilm_lengths"], strict=True):
        assert tokenizer.encode(text, add_special_tokens=True) == ids[:length].tolist()
    assert len(tokenizer.encode("word " * 400, add_special_tokens=True)) == 402  # not cut at 128 either
