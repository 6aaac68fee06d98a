"""Models loaded and unloaded over HTTP, on a real runtime: the bytes come and go, requests keep their turn."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import pytest

import plait
from plait.errors import ModelStateError
from plait.runtime.engine import Runtime
from plait.runtime.server.serve import serving


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> Iterator[Runtime]:
    models = plait.load(tiny_bundle).manifest.models
    room_for_one = max(entry.resident_bytes + entry.workspace_bytes for entry in models)
    with Runtime(tiny_bundle, hbm=room_for_one) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def http(runtime: Runtime) -> Iterator[httpx.Client]:
    with serving(runtime) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def post(http: httpx.Client, model: str, verb: str, **body) -> httpx.Response:
    return http.post(f"/v1/models/{model}/{verb}", json=body) if body else http.post(f"/v1/models/{model}/{verb}")


def complete(http: httpx.Client, model: str, max_tokens: int = 4) -> httpx.Response:
    body = {"model": model, "prompt": "the", "max_tokens": max_tokens, "temperature": 0}
    return http.post("/v1/completions", json=body)


def residency(http: httpx.Client, model: str) -> str:
    return http.get(f"/v1/models/{model}").json()["residency"]


def test_a_load_makes_the_model_hot_and_an_unload_returns_its_bytes(http: httpx.Client, runtime: Runtime) -> None:
    loaded = post(http, "assistant", "load")
    assert (loaded.status_code, loaded.json()["id"], loaded.json()["residency"]) == (200, "chat", "hot")
    assert complete(http, "chat").json()["usage"]["switch_ms"] == 0
    item = http.get("/v1/models/chat").json()
    assert item["last_move"]["destination"] == "hbm"
    assert set(item["tiers"]) == {"hbm", "ddr"}
    assert (
        f'plait_model_bytes{{model_name="chat",tier="hbm"}} {float(item["tiers"]["hbm"])}' in http.get("/metrics").text
    )
    left = post(http, "chat", "unload", tier="ddr")
    assert (left.status_code, left.json()["residency"]) == (200, "warm")
    gone = post(http, "chat", "unload")
    assert (gone.status_code, gone.json()["residency"]) == (200, "cold")
    time.sleep(0.2)  # it would be warmed again at once if nobody had sent it away
    assert residency(http, "chat") == "cold"
    assert complete(http, "chat").status_code == 200
    assert residency(http, "chat") == "hot"


def test_loads_take_each_others_place_when_idle(http: httpx.Client) -> None:
    post(http, "chat", "load")
    assert post(http, "other", "load").json()["residency"] == "hot"
    assert residency(http, "chat") == "warm"


def test_without_waiting_it_is_accepted_and_done_later(http: httpx.Client) -> None:
    post(http, "other", "load")
    for verb, wanted in (("load", "hot"), ("unload", "cold")):
        assert post(http, "chat", verb, wait=False).status_code == 202
        deadline = time.monotonic() + 10
        while residency(http, "chat") != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_unload_waits_for_a_running_answer(http: httpx.Client) -> None:
    post(http, "chat", "load")
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(complete(http, "chat", max_tokens=100)))
    asking.start()
    while "plait_requests_started_total" in http.get("/metrics").text and not answers:
        if 'vllm:num_requests_running{model_name="chat"} 1.0' in http.get("/metrics").text:
            break
    assert post(http, "chat", "unload").json()["residency"] == "cold"
    asking.join()
    assert answers[0].json()["usage"]["completion_tokens"] == 100


@pytest.mark.parametrize(
    ("model", "verb", "body", "status", "code"),
    [
        ("nothing", "load", {}, 404, "model_not_found"),
        ("nothing", "unload", {}, 404, "model_not_found"),
        ("chat", "load", {"pin": True}, 400, "unknown_parameter"),
        ("chat", "load", {"wait": 1}, 400, "invalid_type"),
        ("chat", "unload", {"tier": "hbm"}, 400, "invalid_value"),
    ],
    ids=["load of nothing", "unload of nothing", "field", "type", "tier"],
)
def test_what_cannot_be_done_is_refused(http: httpx.Client, model, verb, body, status, code) -> None:
    response = post(http, model, verb, **body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_loads_are_no_requests_in_the_metrics(http: httpx.Client) -> None:
    def counted() -> list[str]:
        lines = http.get("/metrics").text.splitlines()
        return [line for line in lines if line.startswith(("plait_requests_by_residency", "vllm:request_success"))]

    before = counted()
    post(http, "chat", "load")
    assert counted() == before


def test_pinned_models_stay(tiny_bundle: Path) -> None:
    bundle = plait.load(tiny_bundle)
    pins = {"chat": "hbm", "other": "ddr"}
    models = tuple(dataclasses.replace(entry, pin=pins.get(entry.name)) for entry in bundle.manifest.models)
    pinned = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, models=models))
    with Runtime(pinned) as runtime:
        refused: tuple[tuple[str, Literal["ddr", "disk"]], ...] = (("chat", "ddr"), ("chat", "disk"), ("other", "disk"))
        for model, tier in refused:
            with pytest.raises(ModelStateError, match=f"'{model}' is pinned to {pins[model]}"):
                runtime.unload_model(model, tier)
        runtime.load_model("other")
        runtime.unload_model("other", "ddr")
        assert {status.name: status.residency for status in runtime.models()}["other"] == "warm"
        with serving(runtime) as url:
            response = httpx.post(f"{url}/v1/models/chat/unload", timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "model_pinned")
