"""What a source names, in which type and form, and what a pipeline makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from plait.compiler.subject import model_sizes, read_subject, with_weights
from plait.errors import CheckpointError, ConfigurationError, UnsupportedModelError
from plait.models.checkpoint import open_checkpoint
from plait.models.checkpoint.orbax import write_orbax
from plait.models.config import DecoderConfig


def test_a_name_of_the_zoo_needs_no_file(tmp_path: Path) -> None:
    subject = read_subject("llama-3.1-405b", base=tmp_path)
    assert isinstance(subject.config, DecoderConfig)
    assert (subject.config.num_layers, subject.dtype) == (126, "bfloat16")


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [({"torch_dtype": "float16"}, "bfloat16"), ({"dtype": "float32"}, "float32"), ({}, "float32")],
    ids=["float16", "float32", "unsaid"],
)
def test_sixteen_bits_are_computed_in_bf16(tmp_path: Path, fields: dict[str, str], dtype: str) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_subject("config.json", base=tmp_path).dtype == dtype
    assert read_subject(str(tmp_path), base=Path()).dtype == dtype


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_subject(str(tmp_path), base=Path())


def test_an_architecture_that_plait_does_not_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(UnsupportedModelError, match="'MambaForCausalLM' is not supported; supported: LlamaForCausalLM"):
        read_subject("config.json", base=tmp_path)


def test_an_encoder_has_dense_weights_and_no_cache() -> None:
    assert with_weights(tiny.BERT_CONFIG, "dense") == with_weights(tiny.BERT_CONFIG, "stored") == tiny.BERT_CONFIG
    assert model_sizes(tiny.BERT_CONFIG, "float32").kv_bytes_per_token == 0
    with pytest.raises(ConfigurationError, match="weights stored as fp8 are for decoders, not for a bert model"):
        with_weights(tiny.BERT_CONFIG, "fp8")


def test_stored_weights_can_be_made_dense_again() -> None:
    stored = read_subject("deepseek-r1", base=Path()).config
    dense = with_weights(stored, "dense")
    assert model_sizes(dense, "bfloat16").weight_bytes == 2 * model_sizes(stored, "bfloat16").parameters
    assert with_weights(dense, "fp8") == stored


def test_weights_that_do_not_divide_into_blocks_are_refused() -> None:
    narrow = DecoderConfig(
        num_layers=1,
        hidden_size=48,
        num_heads=4,
        num_kv_heads=4,
        head_size=12,
        intermediate_size=96,
        vocab_size=64,
        max_positions=64,
    )
    with pytest.raises(
        ConfigurationError, match=r"cannot be stored as q4_0: its rows of 48 values .* use int8, fp8 or dense"
    ):
        model_sizes(with_weights(narrow, "q4_0"), "float32")


def test_an_orbax_directory_is_read_too(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.write_tiny_llama(tmp_path / "llama"))
    write_orbax(tmp_path / "orbax", checkpoint)
    assert read_subject("orbax", base=tmp_path).config == checkpoint.config
