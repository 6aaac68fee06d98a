from __future__ import annotations

from pathlib import Path

import pytest


def test_an_unknown_name_is_refused_before_anything_is_pulled(plait, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    says = plait("pull", "minilm-l6", "gpt-9").complaint()
    assert "no named model 'gpt-9'; the named models are smollm2-135m, minilm-l6, splade-tiny" in says
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["minilm-l6", "--all"]], ids=["nothing", "both"])
def test_names_or_all_but_one_of_them(plait, arguments: list[str]) -> None:
    assert "name models to pull or say --all" in plait("pull", *arguments).complaint()


def test_an_index_that_cannot_be_reached_is_one_line(plait, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert "splade-tiny" in plait("pull", "splade-tiny").complaint()


@pytest.mark.weights
def test_a_model_in_the_cache_is_found_there(plait, splade: Path) -> None:
    assert plait("pull", "splade-tiny", "--json").data == [
        {"name": "splade-tiny", "bytes": 18_384_519, "path": str(splade)}
    ]
    assert str(splade) in plait("pull", "splade-tiny").out
