"""The files of a Hugging Face directory: mapped safetensors, one or in shards, and small JSON files as typed fields."""

from __future__ import annotations

import json
from collections.abc import KeysView
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from ...errors import CheckpointError
from .contents import Fields, validated
from .recipes import Kind

__all__ = ["SafetensorsFiles", "read_fields", "read_optional_fields", "read_text"]

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": jnp.dtype(jnp.bfloat16),
    "F8_E4M3": jnp.dtype(jnp.float8_e4m3fn),
    "U8": np.dtype(np.uint8),
}
_KINDS: dict[str, Kind] = {
    "F64": "float",
    "F32": "float",
    "F16": "float",
    "BF16": "float",
    "F8_E4M3": "fp8",
    "U8": "uint8",
}


class _Index(BaseModel):
    weight_map: dict[str, str]


class SafetensorsFiles:
    """The tensors of mapped safetensors files.

    Args:
        directory: Where `model.safetensors` or `model.safetensors.index.json` is.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tensors: dict[str, _Tensor] = {}
        for file in sorted(_file_names(directory)):
            self._tensors |= _map_safetensors(directory / file)

    @property
    def names(self) -> KeysView[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def kind(self, name: str) -> str:
        dtype = self._tensors[name].dtype
        return _KINDS.get(dtype, dtype)

    def read(self, name: str) -> np.ndarray:
        values = self._tensors[name].values()
        return values if values.dtype == np.uint8 else values.astype(np.float32)


@dataclass(frozen=True)
class _Tensor:
    dtype: str  # as safetensors call it
    shape: tuple[int, ...]
    data: np.ndarray  # its mapped bytes

    def values(self) -> np.ndarray:
        return self.data.view(_DTYPES[self.dtype]).reshape(self.shape)


def _map_safetensors(path: Path) -> dict[str, _Tensor]:
    """Maps the tensors of a file. The library checks the file, but its arrays can't be of all types that files have."""
    _check_safetensors(path)
    mapped = np.memmap(path, np.uint8, mode="r")
    begin = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
    header = json.loads(mapped[8:begin].tobytes())
    return {
        name: _Tensor(entry["dtype"], tuple(entry["shape"]), mapped[begin + first : begin + end])
        for name, entry in header.items()
        if name != "__metadata__"
        for first, end in [entry["data_offsets"]]
    }


def _file_names(directory: Path) -> set[str]:
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return {"model.safetensors"}
    files = set(read_fields(_Index, index).weight_map.values())
    if outside := sorted(file for file in files if Path(file).name != file or not file.isprintable()):
        raise CheckpointError(f"{index} points outside its directory: {outside[0]!r}")
    return files


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="np"):
            pass
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
