from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import build_classifiers

MODELS = {"rank": "bert-score", "guard": "roberta-labels", "embed": "bert-mean"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_classifiers(tmp_path_factory.mktemp("classifiers"), MODELS, batch=1)


def test_a_classifier_prints_the_probability_of_each_label(plait, bundle: Path) -> None:
    labels = json.loads(plait("run", bundle, "guard", "a cat").out)
    assert set(labels) == {"joy", "anger", "fear"}
    assert sum(labels.values()) == pytest.approx(1)
    data = plait("run", bundle, "guard", "a cat", "--json").data
    assert data["labels"] == pytest.approx(labels)
    assert (data["model"], data["usage"]["prompt_tokens"]) == ("guard", 6)


def test_a_reranker_scores_the_text_against_the_query(plait, bundle: Path) -> None:
    good, bad = (json.loads(plait("run", bundle, "rank", text, "--query", "what?").out) for text in ("a cat", "xyz"))
    assert set(good) == set(bad) == {"LABEL_0"}
    assert good != bad


def test_a_query_for_another_model_is_one_line(plait, bundle: Path) -> None:
    says = "--query is for rerankers and classifiers; model 'embed' is neither"
    assert says in plait("run", bundle, "embed", "x", "--query", "y").complaint()
