"""/v1/classify, /v1/score and /v1/rerank over an engine whose scores are 1 / (number of tokens)."""

import json

import pytest

RANK = {"model": "rank", "query": "q", "documents": ["four", "to", {"text": "three"}]}  # the pair has 2 + len tokens
SCORE = {"model": "rank", "text_1": "q", "text_2": "to"}


def test_documents_come_most_relevant_first(http) -> None:
    answer = http.post("/v1/rerank", json=RANK).json()
    assert [item["index"] for item in answer["results"]] == [1, 0, 2]
    assert [item["relevance_score"] for item in answer["results"]] == pytest.approx([1 / 4, 1 / 6, 1 / 7])
    assert all(set(item) == {"index", "relevance_score"} for item in answer["results"])
    assert answer["model"] == "rank"
    assert answer["id"].startswith("rerank-")
    usage = {"prompt_tokens": 17, "total_tokens": 17, "total_latency": 0.5, "queue_ms": 20, "switch_ms": 10}
    assert answer["usage"] == usage


def test_only_the_best_documents_are_returned_with_their_text_if_asked_for(http) -> None:
    answer = http.post("/rerank", json={**RANK, "top_n": 2, "return_documents": True}).json()
    assert [item["document"] for item in answer["results"]] == [{"text": "to"}, {"text": "four"}]


def test_equally_relevant_documents_stay_in_their_order(http) -> None:
    answer = http.post("/v1/rerank", json={**RANK, "documents": ["aa", "bb", "c", "dd"]}).json()
    assert [item["index"] for item in answer["results"]] == [2, 0, 1, 3]


@pytest.mark.parametrize(
    ("first", "second", "scores"),
    [
        ("q", "to", [1 / 4]),
        ("q", ["to", "four"], [1 / 4, 1 / 6]),
        (["q", "qq"], ["to", "to"], [1 / 4, 1 / 5]),
        (["q"], "to", [1 / 4]),
    ],
    ids=["one pair", "one against many", "many pairs", "list of one"],
)
def test_pairs_are_scored_in_their_order(http, first, second, scores) -> None:
    answer = http.post("/v1/score", json={"model": "rank", "text_1": first, "text_2": second}).json()
    assert [item["score"] for item in answer["data"]] == pytest.approx(scores)
    assert [item["index"] for item in answer["data"]] == list(range(len(scores)))
    assert (answer["object"], answer["data"][0]["object"]) == ("list", "score")


@pytest.mark.parametrize(
    "given", ["four", ["four"], [1, 2, 3, 4], [[1, 2, 3, 4]]], ids=["text", "list", "ids", "lists"]
)
def test_a_text_gets_the_probability_of_each_label(http, given) -> None:
    answer = http.post("/v1/classify", json={"model": "guard", "input": given}).json()
    assert answer["labels"] == ["bad", "good"]
    assert answer["data"] == [{"index": 0, "label": "good", "probs": [0.25, 0.75], "num_classes": 2}]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("rerank", {**RANK, "documents": []}, "documents"),
        ("rerank", {**RANK, "documents": ["x", 1]}, "documents[1]"),
        ("rerank", {**RANK, "documents": [{"title": "x"}]}, "documents[0].text"),
        ("rerank", {**RANK, "query": ""}, "query"),
        ("rerank", {**RANK, "top_n": 0}, "top_n"),
        ("rerank", {**RANK, "rank_fields": ["x"]}, "rank_fields"),
        ("rerank", {**RANK, "model": "guard"}, "model"),
        ("rerank", {**RANK, "documents": ["x", "y" * 500]}, "documents"),
        ("score", {**SCORE, "text_1": ["a", "b"]}, "text_2"),
        ("score", {**SCORE, "text_1": ["a", "b"], "text_2": ["a"]}, "text_2"),
        ("score", {**SCORE, "text_2": 1}, "text_2"),
        ("score", {**SCORE, "text_2": "y" * 500}, "text_2"),
        ("score", {**SCORE, "model": "embed"}, "model"),
        ("classify", {"model": "guard", "input": []}, "input"),
        ("classify", {"model": "embed", "input": "x"}, "model"),
        ("classify", {"model": "guard", "input": "y" * 500}, "input"),
        ("embeddings", {"model": "guard", "input": "x"}, "model"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else value,
)
def test_what_cannot_be_classified_is_refused_by_name(http, path, body, param) -> None:
    response = http.post(f"/v1/{path}", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
