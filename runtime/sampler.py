"""Sampling: from logits to a token.

Runs on the host, per sequence. A draw depends on the logits, the parameters with their seed, and the tokens before it,
and on nothing else: not on what shares the batch, and not on how often a sequence was computed anew.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from .events import Sampling

__all__ = ["draw_logprobs", "sample"]


def sample(
    logits: Float[np.ndarray, " vocab"],
    sampling: Sampling,
    position: int,
    context: Sequence[int] = (),
    eos_token_ids: Collection[int] = (),
) -> int:
    """Returns the next token.

    Penalties and biases come first, then what is forbidden, temperature, min-p, top-k and top-p.

    Args:
        logits: f32 logits, [vocab].
        sampling: Temperature (0 takes the most likely token), what is penalized, kept and forbidden, and seed.
        position: Number of tokens of the answer before this one.
        context: Prompt and answer so far, where `sampling.uses_context`.
        eos_token_ids: The model's own ends.
    """
    answer = context[len(context) - position :]
    adjusted = _biased(logits, sampling, context, answer)
    allowed = _allowed(len(logits), sampling, position, answer, eos_token_ids)
    if allowed is not None:
        adjusted = np.where(allowed, adjusted, -np.inf)
    if sampling.temperature == 0.0:
        return int(np.argmax(adjusted))
    with np.errstate(over="ignore"):  # next to no temperature: all but the most likely are infinitely far
        weights = np.exp((adjusted - np.max(adjusted)).astype(np.float64) / sampling.temperature)
    kept, kept_weights = _likeliest(weights, sampling)
    uniform = np.random.Generator(np.random.Philox(key=sampling.seed, counter=position)).random()
    cumulative = np.cumsum(kept_weights)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(kept[min(index, len(kept) - 1)])


def draw_logprobs(logits: Float[np.ndarray, " vocab"], token: int, num_logprobs: int) -> tuple[tuple[int, float], ...]:
    """Returns (token, logarithm of its probability) of the drawn token, then of the likeliest ones, best first.

    The probabilities are the model's own: before penalties, temperature and all else that `sample` does.
    """
    exact = logits.astype(np.float64) - np.max(logits)
    exact -= np.log(np.sum(np.exp(exact)))
    count = min(num_logprobs, len(exact))
    likeliest = np.argpartition(-exact, count - 1)[:count] if count else np.zeros(0, np.int64)
    ordered = sorted(likeliest.tolist(), key=lambda one: (-exact[one], one))
    return tuple((one, float(exact[one])) for one in (token, *ordered))


def _biased(
    logits: Float[np.ndarray, " vocab"], sampling: Sampling, context: Sequence[int], answer: Sequence[int]
) -> Float[np.ndarray, " vocab"]:
    """Returns the logits after penalties and biases; the given array where there are none."""
    if not sampling.uses_context and not sampling.logit_bias:
        return logits
    biased = logits.copy()
    if sampling.repetition_penalty != 1.0:
        seen = np.unique(np.asarray(context, np.int64))
        factor = np.float32(sampling.repetition_penalty)
        biased[seen] = np.where(biased[seen] > 0, biased[seen] / factor, biased[seen] * factor)
    if sampling.frequency_penalty or sampling.presence_penalty:
        used, counts = np.unique(np.asarray(answer, np.int64), return_counts=True)
        biased[used] -= (counts * sampling.frequency_penalty + sampling.presence_penalty).astype(np.float32)
    for token, bias in sampling.logit_bias:
        biased[token] += np.float32(bias)
    return biased


def _allowed(
    vocab_size: int, sampling: Sampling, position: int, answer: Sequence[int], eos_token_ids: Collection[int]
) -> Bool[np.ndarray, " vocab"] | None:
    """Returns which tokens may be drawn; None if all may."""
    allowed = None if sampling.constraint is None else sampling.constraint.allowed(answer, vocab_size)
    if position >= sampling.min_tokens:
        return allowed
    longer = np.ones(vocab_size, bool) if allowed is None else allowed.copy()
    longer[[*sampling.ends, *(() if sampling.ignores_eos else eos_token_ids)]] = False
    return longer if longer.any() else allowed  # a complete answer ends, however short it was to be at least


def _likeliest(
    weights: Float[np.ndarray, " vocab"], sampling: Sampling
) -> tuple[Int[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """Returns the tokens that min-p, top-k and top-p leave, and their weights.

    Top-p leaves the fewest most likely of what the others leave whose share is at least `top_p`.
    """
    if sampling.top_p >= 1.0 and sampling.min_p == 0.0 and sampling.top_k == 0:
        return np.arange(len(weights)), weights  # sorting a vocabulary takes longer than all the rest
    order = np.argsort(-weights, kind="stable")
    ordered = weights[order]
    count = int(np.count_nonzero(ordered >= sampling.min_p * ordered[0]))
    if sampling.top_k:
        count = min(count, sampling.top_k)
    if sampling.top_p < 1.0:
        cumulative = np.cumsum(ordered[:count])
        count = min(count, int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1])) + 1)
    return order[:count], ordered[:count]
