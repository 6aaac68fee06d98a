"""A model whose weights were damaged in memory is found out by its canary, refused, and healed by loading it anew."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import numpy as np
import pytest

import plait
from plait.errors import ModelUnhealthyError
from plait.runtime.engine import Runtime
from plait.runtime.request import Health, SamplingParams
from plait.runtime.server.serve import serving

FEW = SamplingParams(max_tokens=4, temperature=0)


def health_of(runtime: Runtime, model: str) -> Health:
    return next(status.health for status in runtime.models() if status.name == model)


def wait_for(runtime: Runtime, model: str, wanted: Health) -> None:
    deadline = time.monotonic() + 20
    while health_of(runtime, model) != wanted:
        assert time.monotonic() < deadline, health_of(runtime, model)
        time.sleep(0.01)


def damage(runtime: Runtime, model: str) -> None:
    """Overwrites half of every matrix of a warm model where it is in ddr."""
    noise = np.random.default_rng(0)
    matrices = [array for views in runtime._core._executor._tiers["ddr"][model].views for array in views.values()]
    for matrix in (array for array in matrices if array.ndim > 1):
        matrix[::2] = noise.normal(0, 0.1, matrix[::2].shape)


def counted(runtime: Runtime, name: str, model: str) -> str:
    lines = runtime.metrics.render()[0].decode().splitlines()
    return next(line.split()[-1] for line in lines if line.startswith(f'{name}{{model_name="{model}"}}'))


def test_every_model_has_a_canary_that_says_something(tiny_bundle: Path) -> None:
    for entry in plait.load(tiny_bundle).manifest.models:
        assert entry.canary is not None
        assert bool(entry.canary.tokens) != bool(entry.canary.values)
        assert bool(entry.canary.tokens) == (entry.kv is not None)


@pytest.mark.parametrize("model", ["chat", "embed"])
def test_damaged_weights_are_refused_until_they_are_loaded_anew(tiny_bundle: Path, caplog, model: str) -> None:
    def ask() -> object:
        return runtime.embed(model, "the") if model == "embed" else runtime.complete(model, "the", FEW).text

    with Runtime(tiny_bundle, canary="always") as runtime:
        right = ask()
        wait_for(runtime, model, "healthy")
        runtime.unload_model(model, "ddr")
        damage(runtime, model)
        runtime.load_model(model)
        wait_for(runtime, model, "unhealthy")
        with pytest.raises(ModelUnhealthyError, match=f"model '{model}' does not answer as when its bundle was made"):
            ask()
        with serving(runtime) as url:
            path, body = ("embeddings", {"input": "the"}) if model == "embed" else ("completions", {"prompt": "the"})
            refused = httpx.post(f"{url}/v1/{path}", json={"model": model, **body}, timeout=20)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unhealthy")
            assert httpx.get(f"{url}/v1/models/{model}").json()["health"] == "unhealthy"
        assert runtime.complete("other", "the", FEW).token_ids  # others answer
        assert counted(runtime, "plait_canary_failures_total", model) == "1.0"
        assert "unload it and load it again" in caplog.text
        runtime.unload_model(model)
        runtime.load_model(model)
        wait_for(runtime, model, "healthy")
        assert np.all(ask() == right)


def test_by_default_one_good_wake_is_enough_and_never_is_never(tiny_bundle: Path) -> None:
    with Runtime(tiny_bundle) as runtime:
        for _ in range(2):
            runtime.complete("chat", "the", FEW)
            wait_for(runtime, "chat", "healthy")
            runtime.unload_model("chat")
        assert counted(runtime, "plait_canary_checks_total", "chat") == "1.0"
    with Runtime(tiny_bundle, canary="never") as runtime:
        runtime.complete("chat", "the", FEW)
        time.sleep(0.1)
        assert health_of(runtime, "chat") == "unchecked"
