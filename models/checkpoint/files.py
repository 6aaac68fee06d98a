"""The files of a Hugging Face directory: mapped safetensors, one or in shards, and small JSON files as typed fields."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from ...errors import CheckpointError, UnsupportedModelError
from .contents import Fields, validated

__all__ = ["SafetensorsFiles", "read_fields", "read_optional_fields", "read_text"]

_DTYPES = ("F64", "F32", "F16", "BF16")


class _Index(BaseModel):
    weight_map: dict[str, str]


class SafetensorsFiles:
    """The tensors of mapped safetensors files under plait's names.

    Args:
        directory: Where `model.safetensors` or `model.safetensors.index.json` is.
        names: From plait's name to those that the tensor may have in the files.
    """

    def __init__(self, directory: Path, names: Callable[[str], tuple[str, ...]]) -> None:
        self._directory = directory
        self._names = names
        self._files = {file: _open_safetensors(directory / file) for file in sorted(_file_names(directory))}
        self._file_of = {tensor: file for file, handle in self._files.items() for tensor in handle.keys()}  # noqa: SIM118

    @property
    def num_tensors(self) -> int:
        return len(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        original = self._original(name)
        entry = self._files[self._file_of[original]].get_slice(original)
        if (dtype := entry.get_dtype()) not in _DTYPES:
            raise UnsupportedModelError(
                f"{self._directory}: {original!r} is of type {dtype}, which is not supported; "
                f"supported: {', '.join(_DTYPES)}"
            )
        return tuple(entry.get_shape())

    def read(self, name: str) -> Float[np.ndarray, ...]:
        original = self._original(name)
        return self._files[self._file_of[original]].get_tensor(original).astype(np.float32, copy=False)

    def _original(self, name: str) -> str:
        names = self._names(name)
        for original in names:
            if original in self._file_of:
                return original
        raise CheckpointError(f"{self._directory} has no tensor {' or '.join(names)}, which {name!r} is read from")


def _file_names(directory: Path) -> set[str]:
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return {"model.safetensors"}
    files = set(read_fields(_Index, index).weight_map.values())
    if outside := sorted(file for file in files if Path(file).name != file):
        raise CheckpointError(f"{index} points outside its directory: {outside[0]!r}")
    return files


def _open_safetensors(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read: {reason}; fetch it again") from None


def read_fields(fields: type[Fields], path: Path) -> Fields:
    """Returns the fields of a JSON file.

    Raises:
        CheckpointError: if it is missing, no JSON, or lacks a field.
    """
    return validated(fields, read_text(path).encode(), path)


def read_optional_fields(fields: type[Fields], path: Path, default: object = None) -> Fields:
    """Returns the fields of a JSON file, or those of `default` (an empty object) if there is no such file."""
    return read_fields(fields, path) if path.exists() else fields.model_validate({} if default is None else default)


def read_text(path: Path) -> str:
    """Returns the text of a file that a checkpoint must have; raises CheckpointError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; a Hugging Face directory needs it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
