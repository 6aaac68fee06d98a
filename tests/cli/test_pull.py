from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, serving
from tiny import write_tiny_llama

COMMAND = [str(Path(sys.executable).with_name("plait"))]


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


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with the repository acme/tiny."""
    with serving() as hub:
        hub.add("acme/tiny", write_tiny_llama(tmp_path / "tiny"))
        yield hub


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    """Returns what a process needs to find nothing in a cache but what it pulled itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache"), **variables}


def plait_process(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_model_of_the_hub_is_pulled_listed_and_kept_for_offline_use(hub: FakeHub, tmp_path: Path) -> None:
    online = environment(tmp_path, HF_ENDPOINT=hub.url)
    done = plait_process("pull", "hf:acme/tiny", "--json", env=online)
    assert (done.returncode, done.stderr) == (0, "")
    (pulled,) = json.loads(done.stdout)
    assert pulled["bytes"] == sum(file.stat().st_size for file in Path(pulled["path"]).iterdir())

    offline = environment(tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert plait_process("pull", "hf:acme/tiny", "--json", env=offline).stdout == done.stdout
    listed = json.loads(plait_process("models", "--json", env=offline).stdout)
    (kept,) = (model for model in listed if model["kind"] == "hub")
    assert kept == pulled | {
        "kind": "hub",
        "description": "in the cache of the Hugging Face Hub",
        "licence": None,
        "is_cached": True,
    }
    refused = plait_process("pull", "hf:acme/other", env=offline)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "plait: cannot pull hf:acme/other: it is not in the cache" in refused.stderr


def test_ctrl_c_ends_a_download_at_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts, hub.pause_seconds = {"model.safetensors": [1000]}, {"model.safetensors": 5.0}
    arguments = [*COMMAND, "pull", "hf:acme/tiny"]
    process = subprocess.Popen(arguments, env=environment(tmp_path, HF_ENDPOINT=hub.url), stderr=subprocess.PIPE)
    while "model.safetensors" not in hub.fetched():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=4)
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.parametrize("source", ["hf:acme", "hf:acme/tiny:model.bin"])
def test_a_wrong_source_of_the_hub_is_refused_before_anything_is_pulled(plait, source: str) -> None:
    assert "write hf:ORG/NAME, hf:ORG/NAME@REVISION" in plait("pull", "hf:acme/tiny", source).complaint()


@pytest.mark.weights
def test_a_model_in_the_cache_is_found_there(plait, splade: Path) -> None:
    assert plait("pull", "splade-tiny", "--json").data == [
        {"name": "splade-tiny", "bytes": 18_384_519, "path": str(splade)}
    ]
    assert str(splade) in plait("pull", "splade-tiny").out
