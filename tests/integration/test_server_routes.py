"""Routes on a real runtime: the answer names the model that gave it, over HTTP and from Python, hot ones first."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

import plait
from plait.compiler.bundle.manifest import Route
from plait.errors import ModelNotFoundError
from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams
from plait.runtime.server.serve import serving

FEW = SamplingParams(max_tokens=4, temperature=0)


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> Iterator[Runtime]:
    bundle = plait.load(tiny_bundle)
    routes = {"small": Route(("chat", "other")), "one": Route(("embed",))}
    manifest = dataclasses.replace(bundle.manifest, routes=routes)
    room_for_one = max(entry.resident_bytes + entry.workspace_bytes for entry in manifest.models)
    with Runtime(dataclasses.replace(bundle, manifest=manifest), hbm=room_for_one) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def url(runtime: Runtime) -> Iterator[str]:
    with serving(runtime) as url:
        yield url


@pytest.mark.parametrize("hot", ["other", "chat"])
def test_the_hot_model_answers_and_is_named(runtime: Runtime, url: str, hot: str) -> None:
    runtime.load_model(hot)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as sdk:
        whole = sdk.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "the"}], max_tokens=4, temperature=0
        )
        streamed = list(sdk.completions.create(model="small", prompt="the", max_tokens=4, temperature=0, stream=True))
    assert whole.model == hot
    assert {chunk.model for chunk in streamed} == {hot}
    text = "".join(chunk.choices[0].text for chunk in streamed)
    assert text == runtime.complete(hot, "the", FEW).text == runtime.complete("small", "the", FEW).text
    assert asyncio.run(runtime.complete_async("small", "the", FEW)).text == text
    assert f'plait_requests_routed_total{{model_name="{hot}",route="small"}}' in httpx.get(f"{url}/metrics").text


def test_embeddings_take_routes_too(runtime: Runtime, url: str) -> None:
    response = httpx.post(f"{url}/v1/embeddings", json={"model": "one", "input": "the"}, timeout=20)
    assert response.json()["model"] == "embed"
    assert (runtime.embed("one", "the") == runtime.embed("embed", "the")).all()


def test_routes_are_listed_with_what_their_models_share(runtime: Runtime, url: str) -> None:
    runtime.load_model("other")
    listed = {item["id"]: item for item in httpx.get(f"{url}/v1/models").json()["data"]}
    assert list(listed) == ["chat", "other", "embed", "small", "one"]
    small = listed["small"]
    assert (small["models"], small["policy"], small["residency"]) == (["chat", "other"], "cheapest", "hot")
    assert (small["capabilities"], small["context_length"]) == (["chat", "completion"], 128)
    assert httpx.get(f"{url}/v1/models/small").json() == small


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("embeddings", {"model": "small", "input": "x"}, 400, "model 'small' cannot do this: it has chat, completion"),
        ("models/small/load", None, 404, "'small' is a route, no model; name one of its models: chat, other"),
    ],
    ids=["capability", "load"],
)
def test_what_a_route_cannot_do_is_refused(url: str, path: str, body, status: int, says: str) -> None:
    response = httpx.post(f"{url}/v1/{path}", json=body, timeout=20)
    assert response.status_code == status
    assert says in response.json()["error"]["message"]


def test_tokens_are_those_of_a_model(runtime: Runtime) -> None:
    with pytest.raises(ModelNotFoundError, match="'small' is a route"):
        runtime.tokenize("small", "the")
