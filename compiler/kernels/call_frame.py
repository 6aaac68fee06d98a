"""A call from XLA: operands, results, attributes and errors, as its C interface for foreign functions lays them out.

The offsets are those of `xla/ffi/api/c_api.h`, which jaxlib ships; its structures only ever grow at their ends. The
functions that are compiled take the address of a call frame, an int64.
"""

from __future__ import annotations

import ctypes
from typing import Any

import jax
import numpy as np
from numba import njit

from .memory import allocate, call, free, load_int64, record_reader

__all__ = [
    "BFLOAT16",
    "BFLOAT16_BITS",
    "F32",
    "INT32",
    "INT64",
    "api_at",
    "attribute",
    "buffer_at",
    "describe",
    "failure",
    "frame_at",
    "has_type",
    "operand",
    "register",
    "result",
    "size_of",
]

# Of XLA's element types; KV pools in bf16 are stored as uint16
INT32, INT64, BFLOAT16_BITS, F32, BFLOAT16 = 4, 5, 7, 11, 16
_INVALID_ARGUMENT = 3
_TYPE_ID_UNKNOWN = 0
_ERROR_BYTES = 32


def _record(num_bytes: int, /, **fields: tuple[int, str]) -> np.dtype:
    offsets, formats = zip(*fields.values(), strict=True)
    return np.dtype({"names": list(fields), "offsets": list(offsets), "formats": list(formats), "itemsize": num_bytes})


frame_at = record_reader(
    _record(
        176,
        extension=(8, "i8"),
        api=(16, "i8"),
        context=(24, "i8"),
        num_operands=(56, "i8"),
        operands=(72, "i8"),
        num_results=(96, "i8"),
        results=(112, "i8"),
        num_attributes=(136, "i8"),
        attributes=(160, "i8"),
    )
)
api_at = record_reader(
    _record(
        192,
        major_version=(32, "i4"),
        minor_version=(36, "i4"),
        create_error=(48, "i8"),
        schedule=(136, "i8"),
        num_threads=(144, "i8"),
    )
)
buffer_at = record_reader(_record(48, kind=(16, "i4"), data=(24, "i8"), rank=(32, "i8"), sizes=(40, "i8")))
_scalar_at = record_reader(_record(16, kind=(0, "i4"), value=(8, "i8")))
_extension_at = record_reader(_record(32, metadata=(24, "i8")))
_metadata_at = record_reader(
    _record(48, major_version=(24, "i4"), minor_version=(28, "i4"), traits=(32, "i4"), state_type=(40, "i8"))
)
_error_at = record_reader(
    _record(_ERROR_BYTES, size=(0, "i8"), extension=(8, "i8"), message=(16, "i8"), code=(24, "i4"))
)


@njit(nogil=True)
def operand(frame, index):
    """Returns the address of an operand's buffer."""
    return load_int64(frame_at(frame).operands + 8 * index)


@njit(nogil=True)
def result(frame, index):
    """Returns the address of a result's buffer."""
    return load_int64(frame_at(frame).results + 8 * index)


@njit(nogil=True)
def size_of(buffer, dimension):
    """Returns a size of a buffer."""
    return load_int64(buffer_at(buffer).sizes + 8 * dimension)


@njit(nogil=True)
def has_type(buffer, kind, rank):
    """Whether a buffer has an element type and a number of dimensions, none of them empty."""
    found = buffer_at(buffer)
    if found.kind != kind or found.rank != rank:
        return False
    smallest = 1
    for dimension in range(rank):
        smallest = min(smallest, size_of(buffer, dimension))
    return smallest == 1


@njit(nogil=True)
def attribute(frame, index, kind):
    """Returns the address of an attribute's value, in the order of names; 0 if it has another element type."""
    scalar = _scalar_at(load_int64(frame_at(frame).attributes + 8 * index))
    return scalar.value if scalar.kind == kind else 0


@njit(nogil=True)
def describe(frame):
    """Answers XLA's question for the interface that was meant, with its own; returns whether the call was one."""
    if frame_at(frame).extension == 0:
        return False
    metadata = _metadata_at(_extension_at(frame_at(frame).extension).metadata)
    api = api_at(frame_at(frame).api)
    metadata.major_version = api.major_version
    metadata.minor_version = api.minor_version
    metadata.traits = 0
    metadata.state_type = _TYPE_ID_UNKNOWN
    return True


@njit(nogil=True)
def failure(frame, message):
    """Returns an error for XLA with the text at an address."""
    address = allocate(_ERROR_BYTES)
    error = _error_at(address)
    error.size, error.extension, error.message, error.code = _ERROR_BYTES, 0, message, _INVALID_ARGUMENT
    created = call(api_at(frame_at(frame).api).create_error, address)
    free(address)
    return created


def register(name: str, address: int) -> None:
    """Makes a compiled handler known to XLA's CPU backend under a name."""
    capsule: Any = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    jax.ffi.register_ffi_target(name, capsule(address, None, None), platform="cpu")
