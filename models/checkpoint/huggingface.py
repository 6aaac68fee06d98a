"""Checkpoints in Hugging Face directories: config.json, safetensors (one file or shards), tokenizer.json.

Comes in: the path of a directory as `save_pretrained` or sentence-transformers writes it. Goes out: a `Checkpoint`, or
the configuration alone. Decoders are those of `hf_config.py`; encoders are opened in `bert.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, RootModel

from ...errors import UnsupportedModelError
from ..config import DecoderConfig, ModelConfig
from .bert import ENCODERS
from .contents import Checkpoint, assemble
from .files import SafetensorsFiles, read_fields, read_optional_fields
from .hf_config import DECODERS, NESTED_DECODERS, config_from_huggingface
from .hf_recipes import decoder_recipes
from .huggingface_tokenizer import read_tokenizer

__all__ = ["open_huggingface", "read_config"]


class _Ends(BaseModel):
    eos_token_id: int | list[int] | None = None


class _Tagged(BaseModel):
    architectures: list[str] | None = None
    text_config: _Ends = _Ends()
    eos_token_id: int | list[int] | None = None
    quantization_config: dict[str, object] | None = None

    @property
    def architecture(self) -> str:
        return next(iter(self.architectures or ()), "none")


def open_huggingface(directory: Path) -> Checkpoint:
    """Opens a Hugging Face directory.

    Raises:
        UnsupportedModelError: if its architecture, quantization or pooling is none that plait reads.
        CheckpointError: if a file is missing or damaged, or its tensors do not match config.json.
    """
    path = directory / "config.json"
    tagged = read_fields(_Tagged, path)
    _check_architecture(path, tagged)
    if tagged.architecture in ENCODERS:
        return ENCODERS[tagged.architecture].open(directory)
    config = _decoder_config(path)
    files = SafetensorsFiles(directory)
    return assemble(
        directory,
        config,
        read_tokenizer(directory, _end_ids(directory, tagged)),
        max_sequence=config.max_positions,
        files=files,
        recipe_of=decoder_recipes(config, files),
    )


def read_config(path: Path) -> ModelConfig:
    """Returns the configuration of a model, whose weights and tokenizer need not be there.

    Args:
        path: A config.json, or the directory that it is in.

    Raises:
        UnsupportedModelError: if its architecture or quantization is none that plait reads.
        CheckpointError: if it is missing or damaged, or contradicts itself.
    """
    path = path / "config.json" if path.is_dir() else path
    tagged = read_fields(_Tagged, path)
    _check_architecture(path, tagged)
    encoder = ENCODERS.get(tagged.architecture)
    return _decoder_config(path) if encoder is None else encoder.config(path)


def _check_architecture(path: Path, tagged: _Tagged) -> None:
    supported = [*DECODERS, *NESTED_DECODERS, *ENCODERS]
    if tagged.architecture not in supported:
        raise UnsupportedModelError(
            f"{path}: architecture {tagged.architecture!r} is not supported; supported: {', '.join(supported)}"
        )
    if tagged.architecture in ENCODERS and tagged.quantization_config is not None:
        raise UnsupportedModelError(f"{path}: quantized encoders are not supported; supported: F32, F16, BF16")


def _decoder_config(path: Path) -> DecoderConfig:
    return config_from_huggingface(read_fields(RootModel[dict[str, object]], path).root, path)


def _end_ids(directory: Path, tagged: _Tagged) -> tuple[int, ...]:
    """Returns the tokens that end an answer."""
    generation = read_optional_fields(_Ends, directory / "generation_config.json")
    for ends in (generation.eos_token_id, tagged.eos_token_id, tagged.text_config.eos_token_id):
        if ends is not None:
            return tuple(np.atleast_1d(ends).tolist())
    return ()
