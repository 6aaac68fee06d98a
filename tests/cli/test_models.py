from __future__ import annotations

from plait.models.registry import NAMED_MODELS
from plait.models.zoo import catalog


def test_named_models_are_listed_though_none_is_in_the_cache(plait, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = plait("models", "--json").data
    zoo = [model for model in listed if model["kind"] == "zoo"]
    assert [model["name"] for model in zoo] == list(catalog.names())
    listed = [model for model in listed if model["kind"] == "named"]
    assert [model["name"] for model in listed] == list(NAMED_MODELS)
    assert {model["licence"] for model in listed} == {"Apache-2.0"}
    assert all(model["path"] is None and not model["is_cached"] and model["bytes"] > 10**7 for model in listed)
    text = plait("models").out
    assert all(f"not here: plait pull {name}" in text for name in NAMED_MODELS)
