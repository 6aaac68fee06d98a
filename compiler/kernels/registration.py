"""Kernels made known to XLA: compiled, kept on disk where that can be, and registered once in a process."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from llvmlite import binding
from numba import types

from ..compiled import compiled_for_c
from .call_frame import register

__all__ = ["Versioned", "register_once"]

Versioned: TypeAlias = Callable[[int], Callable[[int], int]]  # of a number above 0, which is part of the closure

_registering = threading.Lock()
_registered: dict[str, tuple[object, ...]] = {}  # the code, which must be kept


def register_once(name: str, handler: Versioned, part_symbol: str, part: Versioned) -> None:
    """Makes a kernel known to XLA's CPU backend; several threads may ask for it.

    Args:
        name: Of the custom call.
        handler: Makes the function of a call: of its frame, giving 0 or the address of an error.
        part_symbol: By which the handler finds `part`.
        part: Makes the function of each thread that takes part: of a job, giving 0.
    """
    with _registering:
        if name not in _registered:
            version, signature = _version_of_sources(), types.int64(types.int64)
            compiled_part = compiled_for_c(signature, part(version))
            binding.add_symbol(part_symbol, compiled_part.address)
            compiled_handler = compiled_for_c(signature, handler(version))
            register(name, compiled_handler.address)
            _registered[name] = compiled_part, compiled_handler


@functools.cache
def _version_of_sources() -> int:
    """Returns a number above 0 that changes with any file of this folder.

    Numba finds code on disk again by a function's file and closure, not by what it calls.
    """
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return int.from_bytes(hashlib.sha256(sources).digest()[:4], "big") | 1
