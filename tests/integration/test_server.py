"""What stands around the endpoints: errors of all kinds in one shape, keys, bounds, probes, clients that leave."""

import asyncio
import json
import time
from collections.abc import Callable

import httpx
import pytest

JSON_ERROR_KEYS = {"message", "type", "param", "code"}


def chat_body(text: str, **fields):
    return {"model": "chat", "messages": [{"role": "user", "content": text}], **fields}


def wait_until(is_true: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_true()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/models/nothing", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
    ids=["path", "model", "method", "other method"],
)
def test_what_does_not_exist_has_the_shape_of_all_errors(http, method, path, status, code) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == JSON_ERROR_KEYS
    assert response.json()["error"]["code"] == code


def test_asking_an_unknown_model_is_not_found(http) -> None:
    response = http.post("/v1/chat/completions", json={**chat_body("x"), "model": "gpt-x"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["param"] == "model"


@pytest.mark.parametrize("is_chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_beyond_the_bound_is_refused(http, is_chunked) -> None:
    body = json.dumps(chat_body("x" * 150_000)).encode()
    content = iter([body[:60_000], body[60_000:]]) if is_chunked else body
    response = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert "100000 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
def test_an_unknown_failure_tells_the_client_nothing(http, caplog, stream) -> None:
    headers = {"x-request-id": f"trace-{stream}"}
    response = http.post("/v1/chat/completions", json=chat_body("broken", stream=stream), headers=headers)
    assert response.status_code == 500
    assert response.headers["x-request-id"] == f"trace-{stream}"
    assert response.json()["error"]["code"] == "internal_server_error"
    assert "secret" not in response.text
    assert f"request trace-{stream} failed" in caplog.text
    assert "secret of the device" in caplog.text


def test_an_unknown_failure_within_a_stream_ends_it_with_an_error_event(http, caplog) -> None:
    response = http.post("/v1/chat/completions", json=chat_body("breaks", stream=True))
    assert response.status_code == 200
    *_, last = response.text.strip().split("\n\n")
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "internal_server_error"
    assert "[DONE]" not in response.text
    assert "secret" not in response.text
    assert "secret of the device" in caplog.text


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
def test_an_error_before_the_first_token_is_a_plain_response(http, stream) -> None:
    response = http.post("/v1/chat/completions", json=chat_body("full", stream=stream))
    assert response.status_code == 429
    assert response.headers["content-type"] == "application/json"
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "queue_full"


def test_a_stream_is_server_sent_events_up_to_done(http) -> None:
    response = http.post("/v1/chat/completions", json=chat_body("hi", stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert "content-length" not in response.headers
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in events[:-2]]
    assert deltas == [{"role": "assistant", "content": "", "refusal": None}, {"content": "h"}, {"content": "i"}, {}]


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("abc-1.2:3_x", True), ("", False), ("a b", False), ("x" * 200, False), ("<script>", False)],
    ids=["sane", "empty", "space", "long", "markup"],
)
def test_every_response_has_a_request_id(http, sent, is_kept) -> None:
    for path in ("/health", "/v1/nothing"):
        got = http.get(path, headers={"x-request-id": sent}).headers["x-request-id"]
        assert (got == sent) is is_kept
        assert got.startswith("req_") or is_kept


def test_keys_are_asked_for_everywhere_but_at_probes(keyed_http) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic open"}, {"authorization": "open"}):
        response = keyed_http.get("/v1/models", headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert "x-request-id" in response.headers
    assert keyed_http.post("/v1/chat/completions", json=chat_body("x")).status_code == 401
    for key in ("sesame", "open"):
        assert keyed_http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert [keyed_http.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]


def test_ready_says_when_requests_are_not_taken(http, engine) -> None:
    assert http.get("/ready").status_code == 200
    engine.is_draining = True
    try:
        response = http.get("/ready")
    finally:
        engine.is_draining = False
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "not_ready"
    assert http.get("/health").json() == {"status": "ok"}


def test_metrics_are_prometheus_text(http, engine) -> None:
    engine.metrics.tokens_generated("chat", 0.01)
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert response.headers["content-type"].count("charset") == 1
    assert 'vllm:generation_tokens_total{model_name="chat"} 1.0' in response.text


def test_the_api_describes_itself(http) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    operation = paths["/v1/chat/completions"]["post"]
    assert set(operation["responses"]) == {"200", "4XX", "5XX"}
    assert http.get("/docs").status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
@pytest.mark.parametrize("text", ["forever", "silent forever"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_client_that_leaves_ends_its_work(server_url, engine, path, text, stream) -> None:
    body = chat_body(text, stream=stream) if "chat" in path else {"model": "chat", "prompt": [text, text]}
    if "chat" not in path:
        body |= {"stream": stream, "max_tokens": 50}
    assert_work_ends_with_its_client(server_url, engine, path, body)


def test_a_client_that_leaves_ends_its_embedding(server_url, engine) -> None:
    assert_work_ends_with_its_client(server_url, engine, "/v1/embeddings", {"model": "embed", "input": "forever"})


def test_a_client_that_leaves_ends_its_classification(server_url, engine) -> None:
    assert_work_ends_with_its_client(server_url, engine, "/v1/classify", {"model": "guard", "input": "forever"})


def assert_work_ends_with_its_client(server_url, engine, path, body) -> None:
    num_finished = engine.num_finished

    async def ask_and_leave() -> None:
        async with httpx.AsyncClient(base_url=server_url) as client:
            asking = asyncio.ensure_future(client.post(path, json=body))
            assert await asyncio.to_thread(wait_until, lambda: engine.num_active > 0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(ask_and_leave())
    assert wait_until(lambda: engine.num_active == 0)
    assert engine.num_finished == num_finished


def test_clients_are_answered_side_by_side(server_url) -> None:
    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=server_url, timeout=20) as client:
            texts = [f"question {number}" for number in range(20)]
            posts = [client.post("/v1/chat/completions", json=chat_body(text)) for text in texts]
            return [answer.json()["choices"][0]["message"]["content"] for answer in await asyncio.gather(*posts)]

    assert asyncio.run(ask_all()) == [f"question {number}" for number in range(20)]
