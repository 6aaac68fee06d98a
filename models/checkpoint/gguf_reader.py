"""GGUF files, one or split into several: their metadata and their mapped tensors.

Comes in: the path of a `.gguf` file. Goes out: metadata as plain values and tensors under the names that they have in
the file, dequantized as they are read. The file is parsed by the reader of the `gguf` library; here it is kept inside
the file (the library's returns empty values past the end), from believing huge counts, and from making an array of
numpy of every single token.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderTensor
from gguf.quants import dequantize
from jaxtyping import Float

from ...errors import CheckpointError
from .contents import refuse

__all__ = ["GGUFFiles", "read_gguf"]

# What the library raises on files that are cut or overwritten.
_READ_ERRORS = (ValueError, IndexError, KeyError, TypeError, OSError, ArithmeticError, MemoryError)

_MAX_FIELDS, _MAX_TENSORS, _MAX_ARRAY = 1 << 16, 1 << 20, 1 << 24  # beyond any model; a damaged count may say 2**60
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, eq=False)
class GGUFFiles:
    """The tensors of one or several mapped files; a `recipes.TensorFiles`."""

    path: Path
    tensors: Mapping[str, ReaderTensor]

    @property
    def names(self) -> Collection[str]:
        """Of all tensors."""
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape; the file has the dimensions the other way round."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def kind(self, name: str) -> str:
        """Returns "float" for whatever can be dequantized, else the name of the type."""
        quantization = self.tensors[name].tensor_type
        return "float" if _can_dequantize(quantization) else quantization.name

    def read(self, name: str) -> Float[np.ndarray, ...]:
        """Returns a tensor's values in f32, times its scales if the file has some beside its blocks, as for NVFP4.

        Raises:
            CheckpointError: if there are scales, and not one for all of it or one for each of its experts.
        """
        values, scales = self._dequantized(name), f"{name.removesuffix('weight')}scale"
        if not name.endswith(".weight") or scales not in self.tensors:
            return values
        num_scales = len(values) if values.ndim == 3 else 1
        if (shape := self.shape(scales)) not in ((1,), (num_scales,)):
            raise CheckpointError(f"{self.path}: {scales!r} is {list(shape)}, {name!r} wants [{num_scales}]")
        return values * self._dequantized(scales).reshape(-1, *[1] * (values.ndim - 1))

    def _dequantized(self, name: str) -> Float[np.ndarray, ...]:
        tensor = self.tensors[name]
        with np.errstate(all="ignore"):  # what overflows or is no number in the file stays so
            if tensor.tensor_type == GGMLQuantizationType.F64:
                return tensor.data.astype(np.float32)
            return dequantize(tensor.data, tensor.tensor_type)


def read_gguf(path: Path) -> tuple[dict[str, object], GGUFFiles]:
    """Opens a GGUF file, with the others that it was split into.

    Returns:
        The metadata of the file, and the tensors of all.

    Raises:
        UnsupportedModelError: if a tensor's quantization is none that can be dequantized.
        CheckpointError: if a file is missing or damaged, or the path is that of another split than the first.
    """
    metadata, tensors = _read_file(path)
    if metadata.get("split.count", 0) not in (0, 1):  # 0 after splits were merged
        for other in _other_splits(path, metadata):
            for name, tensor in _read_file(other)[1].items():
                if tensors.setdefault(name, tensor) is not tensor:
                    raise CheckpointError(f"{other}: its tensor {name!r} is in another split too; fetch it again")
        if (expected := metadata.get("split.tensors.count", len(tensors))) != len(tensors):
            raise CheckpointError(f"{path}: its splits have {len(tensors)} tensors, it says {expected}; fetch it again")
    quantizations = {tensor.tensor_type for tensor in tensors.values()}
    unsupported = {f"quantization {kind.name}": not _can_dequantize(kind) for kind in quantizations}
    if any(unsupported.values()):
        refuse(path, unsupported, ", ".join(kind.name for kind in GGMLQuantizationType if _can_dequantize(kind)))
    return metadata, GGUFFiles(path, tensors)


def _other_splits(path: Path, metadata: Mapping[str, object]) -> list[Path]:
    name = _SPLIT_NAME.fullmatch(path.name)
    if name is None or metadata["split.count"] != int(name[3]):
        raise CheckpointError(
            f"{path} is one of {metadata['split.count']} splits; they must be named NAME-00001-of-0000N.gguf"
        )
    first, *others = (path.with_name(f"{name[1]}-{index:05}-of-{name[3]}.gguf") for index in range(1, int(name[3]) + 1))
    if path != first:
        raise CheckpointError(f"{path} is a later one of {name[3]} splits; give the first one, {first.name}")
    if missing := [other.name for other in others if not other.exists()]:
        raise CheckpointError(f"{path} is one of {name[3]} splits, {missing[0]} is not beside it; fetch it too")
    return others


def _read_file(path: Path) -> tuple[dict[str, object], dict[str, ReaderTensor]]:
    try:
        with np.errstate(over="raise"):
            reader = _Reader(path)
            metadata: dict[str, object] = {name: field.contents() for name, field in reader.fields.items()}
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} is no GGUF file that can be read: {reason}; fetch it again") from None
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


@functools.cache
def _can_dequantize(quantization: GGMLQuantizationType) -> bool:
    """Dequantizes a block of zeros: the library has no list of the types that it can dequantize."""
    if quantization == GGMLQuantizationType.F64:
        return True
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[quantization][1]), np.uint8), quantization)
    except NotImplementedError:
        return False
    return True


class _Reader(GGUFReader):
    """A reader that stops at the end of the file and at absurd counts, and takes arrays as a whole."""

    def _get(self, offset, dtype, count=1, override_order=None):  # type: ignore[no-untyped-def]
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError(f"the file ends at byte {len(self.data)}, in the middle of a value")
        return super()._get(offset, dtype, count, override_order)

    def _build_fields(self, offs, count):  # type: ignore[no-untyped-def]
        if self.byte_order != "I":
            raise ValueError("it is of the other byte order, which is not supported")
        _check_count("metadata fields", int(count), _MAX_FIELDS)
        return super()._build_fields(offs, count)

    def _build_tensor_info(self, offs, count):  # type: ignore[no-untyped-def]
        _check_count("tensors", int(count), _MAX_TENSORS)
        return super()._build_tensor_info(offs, count)

    def _get_field_parts(self, orig_offs, raw_type):  # type: ignore[no-untyped-def]
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        raw_kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        kind, count, start = GGUFValueType(raw_kind[0]), int(length[0]), orig_offs + 12
        _check_count("values in an array", count, _MAX_ARRAY)
        if kind == GGUFValueType.STRING:
            values, size = self._strings(start, count)
        elif kind == GGUFValueType.ARRAY:
            raise ValueError("it has an array of arrays, which is not supported")
        else:
            values = [self._get(start, self.gguf_scalar_to_np[kind], count)]
            size = values[0].nbytes
        parts = [raw_kind, length, *values]
        return 12 + size, parts, list(range(2, len(parts))), [GGUFValueType.ARRAY, kind]

    def _strings(self, start: int, count: int) -> tuple[list[memoryview], int]:
        """Returns the bytes of strings that follow each other from `start` on, and how many bytes they take."""
        data, end, values = self.data.data, start, list[memoryview]()
        for _ in range(count):
            first = end + 8
            end = first + struct.unpack_from("<Q", data, end)[0] if first <= len(data) else first
            if end > len(data):
                raise ValueError(f"the file ends at byte {len(data)}, in the middle of a value")
            values.append(data[first:end])
        return values, end - start


def _check_count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise ValueError(f"it says that it has {count} {what}, the limit is {limit}")
