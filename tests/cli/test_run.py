from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from plait.cli.run import _heaviest
from plait.compiler.bundle.reader import open_bundle

GREEDY = ("--temperature", "0", "--max-tokens", "12")


def test_the_answer_alone_is_printed_and_is_the_one_of_the_json(plait, tiny_bundle: Path) -> None:
    text = plait("run", tiny_bundle, "assistant", "the question", *GREEDY)
    data = plait("run", tiny_bundle, "chat", "the question", *GREEDY, "--json")
    assert (text.code, text.err, data.code, data.err) == (0, "", 0, "")
    assert text.out == data.data["text"] + "\n"
    assert len(data.data["token_ids"]) == data.data["usage"]["completion_tokens"] == 12
    assert (data.data["model"], data.data["finish_reason"]) == ("chat", "length")


def test_a_raw_prompt_from_a_pipe_goes_without_the_template(plait, tiny_bundle: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é".encode())))
    usage = plait("run", tiny_bundle, "chat", "-", "--raw", *GREEDY, "--json").data["usage"]
    assert usage["prompt_tokens"] == 2  # bytes


def test_an_embedding_model_prints_its_vector(plait, tiny_bundle: Path) -> None:
    vector = json.loads(plait("run", tiny_bundle, "embed", "a passage").out)
    assert len(vector) == 64
    assert sum(value**2 for value in vector) == pytest.approx(1, abs=1e-5)
    data = plait("run", tiny_bundle, "embed", "a passage", "--json").data
    assert data["embedding"] == pytest.approx(vector)
    assert data["usage"]["prompt_tokens"] == 10


def test_a_sparse_vector_is_its_tokens_heaviest_first(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    vector = [0.0] * 96
    vector[4], vector[5], vector[95] = 0.5, 2.0, 1.0  # "a", "b" and an id that the tokenizer lacks
    assert _heaviest(bundle, bundle.manifest.model("embed"), vector) == [("b", 2.0), (95, 1.0), ("a", 0.5)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody", "x"], "bundle 'tiny' has no model 'nobody'; it has: chat, other, embed"),
        (["chat", "x", "--hbm", "12parsecs"], "'12parsecs' is no size in bytes"),
        (["chat", "x", "--hbm", "1KiB"], "of hbm, the budget is 1.0 KiB"),
        (["chat", "x", "--temperature", "-1"], "Invalid value for '--temperature'"),
        (["chat", "x", "--raw", "--system", "y"], "--system has no effect on a --raw prompt"),
        (["chat", "\udcff"], "the prompt is not UTF-8 text"),
        (["embed", "\udcff"], "the prompt is not UTF-8 text"),
    ],
    ids=["model", "bytes", "budget", "temperature", "raw", "bad prompt", "bad text"],
)
def test_what_cannot_be_run_is_one_line(plait, tiny_bundle: Path, arguments: list[str], says: str) -> None:
    assert says in plait("run", tiny_bundle, *arguments).complaint()


def test_a_prompt_beyond_the_context_is_one_line(plait, tiny_bundle: Path) -> None:
    assert "has a context of 128" in plait("run", tiny_bundle, "chat", "x" * 200).complaint()


def test_a_missing_bundle_is_one_line(plait, tmp_path: Path) -> None:
    assert "is not a plait bundle" in plait("run", tmp_path / "no.plait", "chat", "x").complaint()


def test_tampered_weights_are_never_computed_with(plait, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy.plait")
    weights = copy / "models" / "chat" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    assert "is damaged or was changed" in plait("run", copy, "chat", "x", *GREEDY).complaint()
