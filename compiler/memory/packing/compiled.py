"""How inner loops are compiled: by numba when first called, kept on disk if that can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

__all__ = ["compiled"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Returns a function as machine code that other threads run beside."""
    try:
        return numba.njit(cache=True, nogil=True)(function)  # pyright: ignore[reportReturnType]
    except RuntimeError:  # there is no directory to keep the code in
        return numba.njit(nogil=True)(function)  # pyright: ignore[reportReturnType]
