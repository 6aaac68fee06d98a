"""Classifiers from a directory to an answer: what a bundle says is what the dense model says, on every way in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_zoo import PAIRS, TEXTS
from tiny import build_classifiers

from plait.errors import ContextLengthError, InvalidRequestError
from plait.models.checkpoint import open_checkpoint
from plait.models.family import build
from plait.runtime.engine import Runtime
from plait.runtime.server.serve import serving

MODELS = {"rank": "bert-score", "nli": "bert-labels", "guard": "roberta-labels", "embed": "bert-mean"}
QUERY, DOCUMENTS = "what is it?", ["a cat", "dogs sleep", "x"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_classifiers(tmp_path_factory.mktemp("classifiers"), MODELS, batch=2)


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Iterator[Runtime]:
    with Runtime(bundle) as runtime:
        yield runtime


def dense_logits(runtime: Runtime, model: str, items: list[str] | list[tuple[str, str]]) -> np.ndarray:
    """What the plain function gives for each text or pair by itself, without any padding."""
    source = runtime.bundle.path.parent / MODELS[model]
    checkpoint = open_checkpoint(source)
    parameters = {name: jnp.asarray(checkpoint.read(name)) for name in checkpoint.tensor_names}
    function = build(checkpoint.config, jnp.float32)
    rows: list[np.ndarray] = []
    for item in items:
        tokens = runtime.tokenize(model, item) if isinstance(item, str) else runtime.tokenize_pair(model, *item)
        rows.append(np.asarray(function(parameters, jnp.array([tokens]), jnp.array([len(tokens)])))[0])
    return np.stack(rows)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_capabilities_say_what_a_classifier_does(runtime: Runtime) -> None:
    capabilities = {status.name: status.capabilities for status in runtime.models()}
    assert capabilities == {
        "rank": ("score",),
        "nli": ("classification",),
        "guard": ("classification",),
        "embed": ("embedding",),
    }


def test_scores_are_those_of_the_dense_model(runtime: Runtime) -> None:
    expected = sigmoid(dense_logits(runtime, "rank", [(QUERY, document) for document in DOCUMENTS]))[:, 0]
    np.testing.assert_allclose(runtime.score("rank", QUERY, DOCUMENTS), expected, rtol=1e-5)
    np.testing.assert_allclose(asyncio.run(runtime.score_async("rank", QUERY, DOCUMENTS)), expected, rtol=1e-5)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize(("model", "items"), [("nli", list(PAIRS)), ("guard", list(TEXTS))], ids=["pairs", "texts"])
def test_labels_are_those_of_the_dense_model(runtime: Runtime, model: str, items: list[str] | list[tuple[str, str]]):
    result = runtime.classify(model, items)
    again = asyncio.run(runtime.classify_async(model, items))
    assert result.labels == again.labels
    assert result.labels == {"nli": ("entails", "contradicts", "neither"), "guard": ("joy", "anger", "fear")}[model]
    np.testing.assert_allclose(result.probabilities, softmax(dense_logits(runtime, model, items)), rtol=1e-5)
    np.testing.assert_array_equal(result.probabilities, again.probabilities)
    assert result.usage.completion_tokens == 0
    assert result.usage.prompt_tokens > len(items)


def test_a_separator_spelled_out_in_a_text_separates_nothing(runtime: Runtime) -> None:
    separator = runtime.tokenize_pair("rank", "a", "b")[-1]
    assert runtime.tokenize_pair("rank", "a [SEP] b", "[SEP]").count(separator) == 2


def test_reranking_over_http_orders_by_the_scores_of_the_runtime(runtime: Runtime) -> None:
    scores = runtime.score("rank", QUERY, DOCUMENTS)
    with serving(runtime) as url:
        body = {"model": "rank", "query": QUERY, "documents": DOCUMENTS}
        ranked = httpx.post(f"{url}/v1/rerank", json=body).json()
        pairs = httpx.post(f"{url}/v1/score", json={"model": "rank", "text_1": QUERY, "text_2": DOCUMENTS}).json()
        labels = httpx.post(f"{url}/v1/classify", json={"model": "guard", "input": list(TEXTS)}).json()
    assert [item["index"] for item in ranked["results"]] == np.argsort(-scores).tolist()
    assert [item["relevance_score"] for item in ranked["results"]] == pytest.approx(sorted(scores.tolist())[::-1])
    assert [item["score"] for item in pairs["data"]] == pytest.approx(scores.tolist())
    expected = runtime.classify("guard", list(TEXTS)).probabilities
    np.testing.assert_allclose([item["probs"] for item in labels["data"]], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda runtime: runtime.embed("guard", "x"), InvalidRequestError, "is a classifier and makes no embeddings"),
        (lambda runtime: runtime.classify("embed", "x"), InvalidRequestError, "is an embedder and classifies nothing"),
        (lambda runtime: runtime.score("guard", "x", ["y"]), InvalidRequestError, "has 3 labels and no score"),
        (lambda runtime: runtime.classify("guard", []), InvalidRequestError, "there is nothing to classify"),
        (lambda runtime: runtime.score("rank", "x", ["y" * 30]), ContextLengthError, "has 34 tokens, .* takes 24"),
    ],
    ids=["embed", "classify", "score", "nothing", "too long"],
)
def test_what_a_model_cannot_do_is_refused(runtime: Runtime, call, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(runtime)
