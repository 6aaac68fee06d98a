"""Where an equation comes from: the innermost line of the user's code in its traceback."""

from __future__ import annotations

import functools
from pathlib import Path

import flax
import jax
import jaxlib
from jax.extend.core import JaxprEqn

from ..models import layers, named_ops

__all__ = ["source_line"]

# Code that runs on behalf of the user's: libraries, the named ops and their modules, the tracer itself.
_LIBRARIES = [f"{Path(str(module.__file__)).parent}/" for module in (jax, jaxlib, flax)]
_INTERNAL = (*_LIBRARIES, str(layers.__file__), str(named_ops.__file__), f"{Path(__file__).parent}/")


@functools.cache
def _is_internal(file_name: str) -> bool:
    return file_name.startswith(_INTERNAL)


def source_line(equation: JaxprEqn) -> str:
    """Returns file name and line, e.g. "llama.py:88", or "" if no line of the user's is on record."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if not _is_internal(frame.file_name):
            return f"{Path(frame.file_name).name}:{frame.line_num}"
    return ""
