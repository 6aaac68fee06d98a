from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, serving
from huggingface_hub import constants
from tiny import LLAMA_CONFIG, write_tiny_llama

from plait.errors import ConfigurationError, PullError
from plait.models import hub as hub_module
from plait.models.checkpoint import open_checkpoint
from plait.models.hub import HubModel, cached_models, pull, pull_config
from plait.models.registry import resolve, resolve_config

PICKLES = {"pytorch_model.bin": b"a pickle", "original/consolidated.00.pth": b"another", "README.md": b"# tiny"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with the repository acme/tiny, and an empty cache."""
    with serving() as hub:
        hub.add("acme/tiny", write_tiny_llama(tmp_path / "tiny"))
        hub.repositories["acme/tiny"] |= PICKLES
        use_endpoint(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Does what HF_ENDPOINT does to a process that starts."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")[2]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}{path}")


def names_in(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("source", "model"),
    [
        ("hf:a/b", HubModel("a/b", "main", None)),
        ("hf:a-1/b.2@refs/pr/3", HubModel("a-1/b.2", "refs/pr/3", None)),
        ("hf:a/b:Q4/c-Q4_K_M.gguf", HubModel("a/b", "main", "Q4/c-Q4_K_M.gguf")),
        ("hf:a/b@v1.0:c.gguf", HubModel("a/b", "v1.0", "c.gguf")),
    ],
    ids=["name", "revision", "file", "both"],
)
def test_a_source_names_a_repository_a_revision_and_a_file(source: str, model: HubModel) -> None:
    assert HubModel.parse(source) == model
    assert str(model) == source


@pytest.mark.parametrize("source", ["hf:", "hf:gpt2", "hf:a/b/c", "hf:a/b@", "hf:a/b:c.bin", "hf:a/b c"])
def test_a_source_written_wrong_says_how_it_is_written(source: str) -> None:
    with pytest.raises(ConfigurationError, match=r"names no model on the Hub; write hf:ORG/NAME, hf:ORG/NAME@REVISION"):
        pull(source)


def test_only_what_is_read_is_pulled_and_it_opens(hub: FakeHub) -> None:
    directory = pull("hf:acme/tiny")
    assert names_in(directory) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert open_checkpoint(directory).config == LLAMA_CONFIG
    assert directory.name == COMMIT


def test_what_is_in_the_cache_needs_no_network(hub: FakeHub) -> None:
    directory = pull("hf:acme/tiny")
    hub.requests.clear()
    assert pull("hf:acme/tiny") == pull(f"hf:acme/tiny@{COMMIT}") == directory
    assert hub.requests == []


def test_progress_goes_up_to_the_size_of_the_weights(hub: FakeHub) -> None:
    seen: list[tuple[int, int]] = []
    pull("hf:acme/tiny", progress=lambda done, total: seen.append((done, total)))
    size = len(hub.repositories["acme/tiny"]["model.safetensors"])
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_a_file_that_is_cut_goes_on_where_it_was(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # the last piece is lost in a cut
    hub.cuts = {"model.safetensors": [100_000]}
    directory = pull("hf:acme/tiny")
    ranges = [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=100000-"]
    assert (directory / "model.safetensors").read_bytes() == hub.repositories["acme/tiny"]["model.safetensors"]


def test_the_next_pull_keeps_the_shards_that_are_complete(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    files = hub.repositories["acme/tiny"]
    weights = files.pop("model.safetensors")
    files |= {f"model-0000{i}-of-00002.safetensors": weights + bytes([i]) for i in (1, 2)}
    hub.cuts = {"model-00002-of-00002.safetensors": [0] * 6}  # once, and five times again
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with pytest.raises(PullError, match=r"cannot pull hf:acme/tiny: .*check the network"):
        pull("hf:acme/tiny")
    hub.requests.clear()
    assert len(names_in(pull("hf:acme/tiny"))) == 5
    assert hub.fetched() == ["model-00002-of-00002.safetensors"]


def test_configuration_alone_takes_no_weights(hub: FakeHub, tmp_path: Path) -> None:
    directory = resolve_config("hf:acme/tiny", base=tmp_path)
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert "model.safetensors" not in names_in(directory)
    assert resolve("hf:acme/tiny", base=tmp_path) == directory
    assert "model.safetensors" in names_in(directory)


def test_configuration_of_a_gguf_file_comes_with_its_weights() -> None:
    with pytest.raises(ConfigurationError, match="keeps its configuration with its weights; pull it"):
        pull_config("hf:acme/tiny:a.gguf")


def test_one_gguf_file_is_pulled_and_no_other(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["acme/ggufs"] = {"a-Q4_0.gguf": b"GGUF four", "a-Q8_0.gguf": b"GGUF eight"}
    path = resolve_config("hf:acme/ggufs:a-Q4_0.gguf", base=tmp_path)
    assert path.read_bytes() == b"GGUF four"
    assert names_in(path.parent) == {"a-Q4_0.gguf"}
    hub.requests.clear()
    assert pull("hf:acme/ggufs:a-Q4_0.gguf") == path
    assert hub.requests == []


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hf:acme/ggufs", r"no model\.safetensors.*name one of its GGUF files: hf:acme/ggufs:a\.gguf$"),
        ("hf:acme/ggufs:b.gguf", r"the repository has no such file; its GGUF files: a\.gguf$"),
        (
            "hf:acme/pickled",
            r"plait opens no pickles \(weights there: pytorch_model\.bin\); it has no GGUF file either$",
        ),
        ("hf:acme/bare", r"has no config\.json, which says what the model is"),
    ],
    ids=["GGUF only", "another GGUF", "pickle only", "no configuration"],
)
def test_a_repository_without_what_plait_reads_says_what_it_has(hub: FakeHub, source: str, says: str) -> None:
    hub.repositories["acme/ggufs"] = {"a.gguf": b"GGUF", "config.json": b"{}"}
    hub.repositories["acme/pickled"] = {"pytorch_model.bin": b"a pickle", "config.json": b"{}"}
    hub.repositories["acme/bare"] = {"model.safetensors": b"weights"}
    with pytest.raises(PullError, match=says):
        pull(source)
    assert {name for name in hub.fetched() if name != "config.json"} == set()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hf:acme/none", r"127\.0\.0\.1 has no such model, or it is private; check the name, and set HF_TOKEN"),
        ("hf:acme/tiny@v9", r"the model has no revision 'v9'; name a branch, tag or commit"),
        ("hf:acme/gated", r"access is restricted; ask for it at https://127\.0\.0\.1/acme/gated, then set HF_TOKEN"),
    ],
    ids=["no repository", "no revision", "gated"],
)
def test_a_refusal_of_the_hub_says_what_to_do(hub: FakeHub, source: str, says: str) -> None:
    hub.repositories["acme/gated"] = hub.repositories["acme/tiny"]
    hub.gated.add("acme/gated")
    with pytest.raises(PullError, match=f"cannot pull {source}: {says}") as raised:
        pull(source)
    assert "\n" not in str(raised.value)


def test_a_token_opens_what_is_gated(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add("acme/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PullError, match="access is restricted"):
        pull("hf:acme/tiny")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert "model.safetensors" in names_in(pull("hf:acme/tiny"))


@pytest.mark.parametrize("is_told", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_offline_the_cache_serves_and_the_rest_says_why_not(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    directory = pull("hf:acme/tiny")
    hub.repositories["acme/other"] = hub.repositories["acme/tiny"]
    use_endpoint(monkeypatch, hub.url if is_told else "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_told)
    assert pull("hf:acme/tiny") == directory
    why = "HF_HUB_OFFLINE is set" if is_told else "127.0.0.1 cannot be reached"
    with pytest.raises(PullError, match=f"not in the cache .*, and {why}; pull it while online, or copy the cache"):
        pull("hf:acme/other")


def test_offline_a_cache_without_the_list_of_files_is_taken_as_it_is(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    directory = pull("hf:acme/tiny")
    for listing in tmp_path.glob("cache/*/trees/*.json"):
        listing.unlink()
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull("hf:acme/tiny") == directory


@pytest.mark.parametrize(
    "name", ["tokenizer/../../../../evil.json", "/tokenizer.json", "model-/../../../evil.safetensors"]
)
def test_a_file_name_that_leads_out_of_the_cache_is_refused(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.repositories["acme/tiny"][name] = b"evil"
    if name.startswith("/"):  # it matches nothing that is read
        assert name not in names_in(pull("hf:acme/tiny"))
    else:
        with pytest.raises(PullError, match=r"cannot pull hf:acme/tiny: .*cannot contain a '\.\.' path segment"):
            pull("hf:acme/tiny")
    assert not list(tmp_path.rglob("evil*"))


def test_models_in_the_cache_are_listed_whichever_tool_pulled_them(hub: FakeHub) -> None:
    assert cached_models() == ()
    directory = pull("hf:acme/tiny")
    hub.repositories["acme/ggufs"] = {"a.gguf": b"GGUF"}
    pull(f"hf:acme/ggufs@{COMMIT}:a.gguf")
    pull_config("hf:acme/tiny")
    listed = {model.source: model for model in cached_models()}
    assert set(listed) == {"hf:acme/tiny", f"hf:acme/ggufs@{COMMIT}:a.gguf"}
    assert listed["hf:acme/tiny"].path == directory
    assert listed["hf:acme/tiny"].size_bytes == sum(file.stat().st_size for file in directory.iterdir())


def test_a_model_whose_weights_are_not_all_there_is_not_listed(hub: FakeHub) -> None:
    hub.repositories["acme/tiny"]["model-00001-of-00002.safetensors"] = b"one of two"
    del hub.repositories["acme/tiny"]["model.safetensors"]
    pull_config("hf:acme/tiny")
    assert cached_models() == ()
    pull("hf:acme/tiny")
    assert cached_models() == ()


def test_a_source_of_the_hub_is_told_from_a_path() -> None:
    assert hub_module.is_hub_source("hf:acme/tiny")
    assert not hub_module.is_hub_source("./hf:acme/tiny")
