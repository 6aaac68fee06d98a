from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from gguf_files import llama_weights, write_gguf
from tiny import write_tiny_llama


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", llama_weights()).read_bytes()


@pytest.mark.parametrize(
    ("offset", "damage", "says"),
    [
        (0, b"GGML", "GGUF magic invalid"),
        (16, struct.pack("<Q", 2**60), "metadata fields, the limit is"),
        (24, struct.pack("<Q", 2**63), "in the middle of a value"),
        (64, b"mamba", "GGUF architecture 'mamba' is not supported; supported: llama"),
    ],
    ids=["magic", "count", "length", "architecture"],
)
def test_compile_refuses_a_damaged_gguf_in_one_line(
    plait, gguf_bytes: bytes, tmp_path: Path, offset: int, damage: bytes, says: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes[:offset] + damage + gguf_bytes[offset + len(damage) :])
    assert says in plait("compile", path).complaint()


def test_compile_refuses_a_truncated_gguf_in_one_line(plait, gguf_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes[:-1])
    assert "in the middle of a value; fetch it again" in plait("compile", tmp_path / "m.gguf").complaint()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hidden_size": -1}, "hidden_size: Input should be greater than 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: Input should be less than"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: Input should be"),
        ({"num_attention_heads": 7}, "7 "),
        ({"architectures": ["Mamba"]}, "architecture 'Mamba' is not supported; supported: "),
    ],
    ids=["negative", "huge", "nan", "uneven", "architecture"],
)
def test_compile_refuses_an_absurd_configuration_in_one_line(
    plait, tmp_path: Path, fields: dict[str, object], says: str
) -> None:
    path = write_tiny_llama(tmp_path / "llama") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert says in plait("compile", path.parent).complaint()


def test_compile_refuses_a_deeply_nested_configuration_in_one_line(plait, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "llama") / "config.json"
    path.write_text("[" * 100_000)
    assert "config.json" in plait("compile", path.parent).complaint()
