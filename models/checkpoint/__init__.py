"""Reading models that others have trained: GGUF files, Hugging Face and orbax directories become one `Checkpoint`."""

from __future__ import annotations

from pathlib import Path

from ...errors import CheckpointError, UnsupportedModelError
from .contents import ORBAX_DESCRIPTION, Checkpoint
from .gguf import open_gguf
from .huggingface import open_huggingface, read_config

__all__ = ["Checkpoint", "open_checkpoint", "read_config"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a model's files without reading its weights.

    Args:
        path: A `.gguf` file, a directory with config.json, safetensors and tokenizer.json, or one of `write_orbax`.

    Raises:
        UnsupportedModelError: if the architecture, quantization, tokenizer or pooling is none that plait reads.
        CheckpointError: if files are missing, damaged, or disagree with their configuration.
    """
    if (path / ORBAX_DESCRIPTION).is_file():
        from .orbax import open_orbax  # its imports take a second

        return open_orbax(path)
    if path.is_dir():
        return open_huggingface(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a .gguf file or a Hugging Face directory")
    if path.suffix != ".gguf":
        raise UnsupportedModelError(f"{path}: files of this kind are not supported; supported: .gguf, or a directory")
    return open_gguf(path)
