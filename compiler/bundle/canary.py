"""Canaries: what a model says to a few fixed tokens, recorded when its bundle is made.

Whoever loads the model later asks it the same, and knows by the answer whether its weights came whole. A decoder's
canary is the greedy continuation of a prompt, as far as its likeliest token leads clearly: where two are close, another
machine may rightly draw the other. Of some prompts it is the one that leads furthest. An encoder's canary is the values
of its vector that are largest in magnitude, to be met within `TOLERANCE`. Prompt and answer fit one KV block, so that a
canary leaves nothing in any cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from ..configuration import BLOCK_TOKENS, Configuration
from ..executable import Executable
from .manifest import Canary
from .step_inputs import step_inputs

__all__ = ["TOLERANCE", "record_canary"]

TOLERANCE = 0.05  # of an encoder's largest value

_PROMPT_TOKENS = BLOCK_TOKENS // 2
_ANSWER_TOKENS = BLOCK_TOKENS - _PROMPT_TOKENS
_NUM_PROMPTS = 4  # that are tried
_CLEAR_LEAD = 0.02  # of the largest logit, by which a token must lead
_NUM_VALUES = 8
_SEED = 7


def record_canary(
    executables: Mapping[Configuration, Executable],
    vocab_size: int,
    parameters: Sequence[dict[str, jax.Array]],
    pools: list[jax.Array],
) -> Canary:
    """Runs a model and returns its canary.

    Args:
        executables: Its programs.
        vocab_size: Number of tokens it knows.
        parameters: Weights of each stage, on its devices.
        pools: Empty KV pools of a decoder; donated. None for an encoder.
    """
    generator = np.random.default_rng(_SEED)
    prompts = [tuple(map(int, generator.integers(0, vocab_size, _PROMPT_TOKENS))) for _ in range(_NUM_PROMPTS)]
    smallest = {
        phase: min((shapes for shapes in executables if shapes.phase == phase and _holds(shapes)), key=_size)
        for phase in {shapes.phase for shapes in executables} - {"verify"}
    }
    if not pools:
        shapes = smallest["embed"]
        inputs = step_inputs(shapes, prompts[0])
        vector, _ = executables[shapes](parameters, inputs, [])
        return _of_vector(prompts[0], np.asarray(vector, np.float32)[0])
    found: list[Canary] = []
    for prompt in prompts:
        tokens: list[int] = []
        while len(tokens) < _ANSWER_TOKENS:
            shapes = smallest["decode" if tokens else "prefill"]
            new, start = (tokens[-1:], _PROMPT_TOKENS + len(tokens) - 1) if tokens else (prompt, 0)
            result, pools = executables[shapes](parameters, step_inputs(shapes, new, start), pools)
            logits = np.asarray(result, np.float32)[0]
            second, first = np.partition(logits, -2)[-2:]
            if first - second < _CLEAR_LEAD * np.abs(logits).max():
                break
            tokens.append(int(logits.argmax()))
        found.append(Canary(prompt, tuple(tokens)))
    return max(found, key=lambda canary: len(canary.tokens))


def _holds(shapes: Configuration) -> bool:
    return shapes.phase == "decode" or shapes.new_tokens >= _PROMPT_TOKENS


def _size(shapes: Configuration) -> tuple[int, int]:
    return shapes.batch, shapes.new_tokens


def _of_vector(prompt: tuple[int, ...], vector: np.ndarray) -> Canary:
    largest = np.argsort(-np.abs(vector), kind="stable")[:_NUM_VALUES]
    return Canary(prompt, values=tuple((int(index), float(vector[index])) for index in largest))
