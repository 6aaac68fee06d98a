"""The inputs of a step on one sequence, for what is asked of a model while its bundle is made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..configuration import BLOCK_TOKENS, Configuration

__all__ = ["step_inputs"]


def step_inputs(shapes: Configuration, tokens: Sequence[int], start: int | None = None) -> dict[str, np.ndarray]:
    """Returns the inputs of a step in which every row is the same sequence.

    Args:
        shapes: Of the program.
        tokens: New tokens.
        start: Position of the first one, in the first blocks of the pool; None for an encoder.
    """
    row = np.zeros((shapes.new_tokens,), np.int32)
    row[: len(tokens)] = tokens
    inputs = {"tokens": np.tile(row, (shapes.batch, 1)), "lengths": np.full((shapes.batch,), len(tokens), np.int32)}
    if start is not None:
        table = np.arange(-(-shapes.context // BLOCK_TOKENS), dtype=np.int32)
        inputs["start"] = np.full((shapes.batch,), start, np.int32)
        inputs["tables"] = np.tile(table, (shapes.batch, 1))
    return inputs
