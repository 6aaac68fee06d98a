"""Weight files: safetensors in which every tensor starts on a 64-byte boundary, so that JAX can alias the mapped file.

Comes in: tensors one at a time (never a whole model in memory), with their shapes and dtypes known beforehand. Goes
out: a file that any safetensors reader loads, and `MappedWeights`, views of it that cost no memory of their own.

Invariant: the header, padded with spaces, ends on a 64-byte boundary; tensors follow one another without holes, which
safetensors refuses; where a tensor's size is no multiple of 64, an entry `__pad_N` of zero bytes covers the gap. A
header is not trusted: `map_weights` checks every number in it before a view is made.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pydantic

from ...errors import BundleError, BundleIntegrityError

__all__ = ["ALIGNMENT_BYTES", "MappedWeights", "TensorSpec", "map_weights", "write_weights"]

ALIGNMENT_BYTES = 64  # what XLA asks of a buffer that it aliases

TensorSpec: TypeAlias = tuple[tuple[int, ...], npt.DTypeLike]

_PAD = "__pad_"
_LENGTH_BYTES = 8  # little-endian length of the header, before it
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class _Entry:
    """A tensor in the header. Offsets count from the end of the header: half-open [begin, end)."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    dtype: str  # a key of _DTYPES
    shape: Annotated[tuple[pydantic.NonNegativeInt, ...], pydantic.Field(max_length=32)]
    data_offsets: tuple[pydantic.NonNegativeInt, pydantic.NonNegativeInt]

    @property
    def num_bytes(self) -> int:
        """Bytes that shape and dtype ask for."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


_HEADER = pydantic.TypeAdapter(dict[str, _Entry])


def write_weights(path: str | Path, tensors: Iterable[tuple[str, np.ndarray]], specs: Mapping[str, TensorSpec]) -> None:
    """Writes a weight file, one tensor at a time.

    The file lays the tensors out in the order of `specs`; they may come in any order, each is written when it comes
    and not kept. The file is not flushed to the disk: `BundleWriter.commit` does that.

    Args:
        path: Where to write; an existing file is overwritten.
        tensors: (name, values) of every tensor in `specs`, once.
        specs: (shape, dtype) by name.

    Raises:
        BundleError: if a dtype has no form in safetensors, the tensors are not those of `specs`, or the disk is full;
            what has been written by then is no weight file.
    """
    layout = _layout(specs)
    header = _header_bytes(layout)
    size_bytes = len(header) + max((entry.data_offsets[1] for entry in layout.values()), default=0)
    missing = set(specs)
    with _open_for_writing(path) as file:
        file.write(header)
        file.truncate(size_bytes)  # padding reads as zeros
        for name, values in tensors:
            if name not in missing:
                what = "comes twice" if name in specs else "is not among the tensors of this file"
                raise BundleError(f"cannot write {Path(path).name}: tensor {name!r} {what}")
            missing.remove(name)
            _check_values(name, values, layout[name])
            file.seek(len(header) + layout[name].data_offsets[0])
            file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
            del values  # or it stays in memory while the next one is made
    if missing:
        raise BundleError(
            f"cannot write {Path(path).name}: {len(missing)} of {len(specs)} tensors never came, {min(missing)!r} first"
        )


def map_weights(path: str | Path) -> MappedWeights:
    """Maps a weight file into memory. Nothing is read but the header; pages come in as they are touched.

    Raises:
        BundleIntegrityError: if the file is not a well-formed weight file; no view of it has been made then.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file cannot be mapped
        raise BundleIntegrityError(f"{path.name} is damaged: it is empty") from None
    except OSError as error:
        raise BundleIntegrityError(f"cannot read {path.name}: {error.strerror}") from None
    try:
        entries, data_start = _read_header(path.name, mapping)
        return MappedWeights(path, mapping, entries, data_start)
    except BundleIntegrityError:
        with contextlib.suppress(BufferError):  # views made so far go with the exception
            mapping.close()
        raise


class MappedWeights(Mapping[str, np.ndarray]):
    """The tensors of a weight file by name: read-only views of the mapped file, 64-byte aligned, without a copy.

    `jax.device_put` on a CPU device aliases such a view. The mapping lives as long as anything refers to it: this
    object, a view taken from it, or an array of JAX's over a view. To evict a model, drop those arrays and then
    `close()` this object; the address range and the resident pages are given back when the last of them has gone.
    """

    def __init__(self, path: Path, mapping: mmap.mmap, entries: Mapping[str, _Entry], data_start: int) -> None:
        """Takes over `mapping`. Use `map_weights`, which has checked the entries."""
        self.path = path
        self._mapping = mapping
        self._views = {
            name: _view(path.name, name, mapping, entry, data_start)
            for name, entry in entries.items()
            if not name.startswith(_PAD)
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, without the padding between them."""
        return sum(view.nbytes for view in self._views.values())

    def close(self) -> bool:
        """Lets go of the file and returns whether it is unmapped by now.

        False means that somebody still holds a view or an array over one: the mapping goes with the last of those.
        Calling it again is allowed, and tells whether that has happened. No tensor can be taken from a closed object.
        """
        self._views = {}
        try:
            self._mapping.close()
        except BufferError:  # views of others are alive; unmapping would pull the memory from under them
            return False
        return True


@contextlib.contextmanager
def _open_for_writing(path: str | Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "wb") as file:
            yield file
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror or error}") from error


def _layout(specs: Mapping[str, TensorSpec]) -> dict[str, _Entry]:
    """Lays the tensors out one after the other, with padding entries in the gaps."""
    layout: dict[str, _Entry] = {}
    offset = 0
    for name, (shape, dtype) in specs.items():
        entry = _entry(name, tuple(int(size) for size in shape), np.dtype(dtype), offset)
        layout[name] = entry
        offset = entry.data_offsets[1]
        if gap := -offset % ALIGNMENT_BYTES:
            layout[f"{_PAD}{len(layout)}"] = _Entry("U8", (gap,), (offset, offset + gap))
            offset += gap
    return layout


def _entry(name: str, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> _Entry:
    if name.startswith(_PAD) or name == "__metadata__":
        raise BundleError(f"tensor name {name!r} is reserved by the weight file format")
    if dtype not in _CODES:
        raise BundleError(f"tensor {name!r} has dtype {dtype}, which weight files cannot hold; known: {_known()}")
    num_bytes = math.prod(shape) * dtype.itemsize
    return _Entry(_CODES[dtype], shape, (offset, offset + num_bytes))


def _known() -> str:
    return ", ".join(str(dtype) for dtype in _CODES)


def _header_bytes(layout: Mapping[str, _Entry]) -> bytes:
    """The header with its length before it, padded with spaces to a 64-byte boundary."""
    text = _HEADER.dump_json(dict(layout))
    text += b" " * (-(_LENGTH_BYTES + len(text)) % ALIGNMENT_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _check_values(name: str, values: np.ndarray, entry: _Entry) -> None:
    if values.shape != entry.shape or values.dtype != _DTYPES[entry.dtype]:
        raise BundleError(
            f"tensor {name!r} is {values.dtype}{list(values.shape)}, "
            f"its specification says {_DTYPES[entry.dtype]}{list(entry.shape)}"
        )


def _read_header(file_name: str, mapping: mmap.mmap) -> tuple[dict[str, _Entry], int]:
    """Returns the checked entries in the order of their offsets, and where the data starts."""
    length = int.from_bytes(mapping[:_LENGTH_BYTES], "little")
    limit = min(_MAX_HEADER_BYTES, max(0, len(mapping) - _LENGTH_BYTES))
    if not 0 < length <= limit:
        raise BundleIntegrityError(f"{file_name} is damaged: header of {length} bytes, at most {limit} possible")
    data_start = _LENGTH_BYTES + length
    try:
        entries = _HEADER.validate_json(mapping[_LENGTH_BYTES:data_start], strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleIntegrityError(f"{file_name} is damaged: header: {where}: {first['msg']}") from None
    entries = dict(sorted(entries.items(), key=lambda item: item[1].data_offsets))
    _check_entries(file_name, entries, data_start, len(mapping))
    return entries, data_start


def _check_entries(file_name: str, entries: Mapping[str, _Entry], data_start: int, file_bytes: int) -> None:
    """Checks that the tensors, in the order of their offsets, cover the data exactly, aligned, each of its size."""
    expected_begin = 0
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if entry.dtype not in _DTYPES:
            raise BundleIntegrityError(
                f"{file_name} is damaged: tensor {name!r} has dtype {entry.dtype!r}; known: {', '.join(_DTYPES)}"
            )
        if begin != expected_begin:
            what = "overlaps the one before" if begin < expected_begin else "leaves a hole before it"
            raise BundleIntegrityError(
                f"{file_name} is damaged: tensor {name!r} {what}: starts at {begin}, expected {expected_begin}"
            )
        if end - begin != entry.num_bytes:
            raise BundleIntegrityError(
                f"{file_name} is damaged: tensor {name!r}, {entry.dtype}{list(entry.shape)}, "
                f"needs {entry.num_bytes} bytes, found {end - begin}"
            )
        if not name.startswith(_PAD) and (data_start + begin) % ALIGNMENT_BYTES:
            raise BundleIntegrityError(
                f"{file_name} is damaged: tensor {name!r} starts at byte {data_start + begin}, "
                f"which is no multiple of {ALIGNMENT_BYTES}"
            )
        expected_begin = end
    if data_start + expected_begin != file_bytes:
        raise BundleIntegrityError(
            f"{file_name} is damaged: {data_start + expected_begin} bytes expected, found {file_bytes}"
        )


def _view(file_name: str, name: str, mapping: mmap.mmap, entry: _Entry, data_start: int) -> np.ndarray:
    count = math.prod(entry.shape)
    try:
        flat = np.frombuffer(mapping, _DTYPES[entry.dtype], count, data_start + entry.data_offsets[0])
        return flat.reshape(entry.shape)
    except (ValueError, OverflowError):  # an empty tensor may claim dimensions that no array can have
        raise BundleIntegrityError(
            f"{file_name} is damaged: tensor {name!r} has the impossible shape {list(entry.shape)}"
        ) from None
