"""Writing variants of a Llama with noise in its weights, as Hugging Face directories that others read too.

Comes in: an opened checkpoint. Goes out: a directory with safetensors in bf16, config.json and the tokenizer's files.
Variants of different seeds have no tensor in common, so nothing can be shared between them; with little noise they
still answer as the original does. For benchmarks that need several models of one size where only one can be had.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ...errors import UnsupportedModelError
from ..config import DecoderConfig, Rope
from .contents import Checkpoint
from .names import LLAMA, original_name

__all__ = ["write_variant"]


def write_variant(checkpoint: Checkpoint, directory: Path, *, seed: int, noise: float = 0.01) -> Path:
    """Writes a variant and returns its directory, which is whole or not there at all.

    Args:
        checkpoint: A Llama without biases or scaled positions.
        directory: To be made; one that is there is replaced.
        seed: Of the noise: the same one makes the same bytes.
        noise: Standard deviation of what is added to each tensor, over the tensor's own.

    Raises:
        UnsupportedModelError: if the model has what config.json of a plain Llama cannot say.
    """
    config = _plain_llama(checkpoint)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as temporary:
        written = Path(temporary) / directory.name
        written.mkdir()
        save_file(dict(_noisy(checkpoint, seed, noise)), written / "model.safetensors", metadata={"format": "pt"})
        _write_json(written / "config.json", _config_fields(config, checkpoint.eos_token_ids))
        (written / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
        tokenizer = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": checkpoint.bos_token,
            "eos_token": checkpoint.eos_token,
            "chat_template": checkpoint.chat_template,
        }
        _write_json(written / "tokenizer_config.json", {key: value for key, value in tokenizer.items() if value})
        if directory.exists():
            shutil.rmtree(directory)
        written.rename(directory)
    return directory


def _plain_llama(checkpoint: Checkpoint) -> DecoderConfig:
    config = checkpoint.config
    if isinstance(config, DecoderConfig):
        sizes = {name: getattr(config, name) for name in _SIZES}
        plain = DecoderConfig(**sizes, rope=Rope(theta=config.rope.theta if config.rope else 10_000.0))
        if config.dense == plain:
            return config
    raise UnsupportedModelError(f"{checkpoint.path}: variants are made of plain Llamas only, such as smollm2-135m")


_SIZES = (
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_size",
    "intermediate_size",
    "vocab_size",
    "max_positions",
    "norm_epsilon",
    "tie_embeddings",
)


def _noisy(checkpoint: Checkpoint, seed: int, noise: float) -> Iterator[tuple[str, np.ndarray]]:
    for number, name in enumerate(checkpoint.tensor_names):
        tensor = checkpoint.read(name)
        generator = np.random.default_rng((seed, number))
        added = generator.standard_normal(tensor.shape, np.float32) * np.float32(noise * tensor.std())
        yield original_name(name, LLAMA), (tensor + added).astype(ml_dtypes.bfloat16)


def _config_fields(config: DecoderConfig, ends: tuple[int, ...]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope.theta if config.rope else 10_000.0,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "eos_token_id": list(ends),
    }


def _write_json(path: Path, fields: dict[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=1), encoding="utf-8")
