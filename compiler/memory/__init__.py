"""Memory: what a graph needs (`footprint.py`), and where its buffers go on chip (`packing/`)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .footprint import LiveValue, MemoryPlan, plan_memory

__all__ = ["LiveValue", "MemoryPlan", "plan_memory"]


def __getattr__(name: str) -> object:
    # Imported when first asked for: packing does without graphs, and so without JAX.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".footprint", __name__), name)
