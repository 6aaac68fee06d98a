from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_bert, write_tiny_llama

from plait.errors import UnsupportedModelError
from plait.models.checkpoint import Checkpoint, open_checkpoint
from plait.models.checkpoint.hf_variant import write_variant


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_tiny_llama(tmp_path_factory.mktemp("llama")))


def test_a_variant_is_the_model_with_noise_in_every_tensor(source: Checkpoint, tmp_path: Path) -> None:
    variant = open_checkpoint(write_variant(source, tmp_path / "variant", seed=3, noise=0.05))
    assert variant.config == source.config
    assert variant.tokenizer_json == source.tokenizer_json
    assert (variant.chat_template, variant.eos_token_ids) == (source.chat_template, source.eos_token_ids)
    for name in source.tensor_names:
        before, after = source.read(name), variant.read(name)
        assert (after - before).std() == pytest.approx(0.05 * before.std(), rel=0.3), name


def test_seeds_make_different_bytes_and_the_same_seed_the_same(source: Checkpoint, tmp_path: Path) -> None:
    paths = [write_variant(source, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2), ("c", 1))]
    first, second, third = ((path / "model.safetensors").read_bytes() for path in paths)
    assert first == third
    assert first != second
    one, other = (open_checkpoint(path) for path in paths[:2])
    for name in source.tensor_names:
        assert not np.array_equal(one.read(name), other.read(name)), name


def test_what_is_no_plain_llama_is_refused(tmp_path: Path) -> None:
    encoder = open_checkpoint(write_tiny_bert(tmp_path / "bert"))
    with pytest.raises(UnsupportedModelError, match="variants are made of plain Llamas only"):
        write_variant(encoder, tmp_path / "variant", seed=0)
    assert not (tmp_path / "variant").exists()
