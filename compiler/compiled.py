"""How inner loops are compiled: by numba when first called, kept on disk if that can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba
from numba.extending import intrinsic

__all__ = ["compiled", "compiled_for_c", "instruction"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Returns a function as machine code that other threads run beside."""
    try:
        return numba.njit(cache=True, nogil=True)(function)  # pyright: ignore[reportReturnType]
    except RuntimeError:  # there is no directory to keep the code in
        return numba.njit(nogil=True)(function)  # pyright: ignore[reportReturnType]


def compiled_for_c(signature: Any, function: Callable[..., Any]) -> Any:
    """Returns a function, compiled at once, whose `address` C code can call: without Python and its lock.

    Args:
        signature: Of numba.
        function: What is kept of it is found again by its code and its closure, not by what it calls.
    """
    try:
        return numba.cfunc(signature, cache=True)(function)
    except RuntimeError:
        return numba.cfunc(signature)(function)


def instruction(typed: Callable[..., Any]) -> Any:
    """Makes an operation for compiled code that LLVM knows and Python does not.

    Args:
        typed: Takes numba's context and the operands' types; returns a signature and what generates the code.
    """
    return intrinsic(typed)
