"""Sampling: from logits to a token.

Runs on the host, per sequence. A draw depends on the logits, the parameters with their seed, and the tokens before it,
and on nothing else: not on what shares the batch, and not on how often a sequence was computed anew.

What a draft model proposed may be accepted in the place of a draw, in one of two ways. Where the answer is to be had
again, because a seed was given, and where a draw is greedy or looks at the tokens before it, the token is that of a
plain draw, and a proposal that is the same is accepted: a draft makes the answer faster and changes nothing. Elsewhere
more is accepted by the rejection rule of "Fast Inference from Transformers via Speculative Decoding" (Leviathan et
al., 2023): a proposal of probability q stays with the probability min(1, p / q), and else the token is drawn from what
p has more than q. Its distribution is p, but which token it is depends on the draft.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from .events import Sampling

__all__ = ["Distribution", "Proposal", "draw_logprobs", "propose", "sample"]

_BLOCK = 256  # weights that are summed together to find a draw among many
_LEAST_TEMPERATURE = 1e-30  # below it the inverse is no f32; all but the most likely are infinitely far long before
_FIRST_GUESS = 256  # of how many tokens top-p may keep
_STREAMS = {"draw": 0, "proposal": 1, "acceptance": 2}  # independent random numbers of a position


@dataclass(frozen=True)
class Distribution:
    """The tokens that may be drawn, by weight."""

    weights: Float[np.ndarray, " vocab"]  # f32, 0 where a token is left out
    total: float  # their sum

    @staticmethod
    def of(weights: Float[np.ndarray, " vocab"]) -> Distribution:
        """Returns the distribution of given weights."""
        return Distribution(weights, float(np.sum(weights, dtype=np.float64)))

    def probability(self, token: int) -> float:
        """Returns the probability of a token."""
        return float(self.weights[token]) / self.total

    def draw(self, uniform: float) -> int:
        """Returns the token at a share of all weight, between 0 and 1, in the order of the vocabulary."""
        firsts = np.arange(0, len(self.weights), _BLOCK)
        blocks = np.cumsum(np.add.reduceat(self.weights, firsts, dtype=np.float64))
        wanted = uniform * blocks[-1]
        block = min(int(np.searchsorted(blocks, wanted, side="right")), len(blocks) - 1)
        own = self.weights[block * _BLOCK : (block + 1) * _BLOCK]
        before = blocks[block - 1] if block else 0.0
        index = int(np.searchsorted(np.cumsum(own, dtype=np.float64), wanted - before, side="right"))
        return block * _BLOCK + min(index, int(np.flatnonzero(own)[-1]))  # sums in two ways may differ by a rounding

    def without(self, other: Distribution) -> Distribution:
        """Returns what this has more of than another one, which may know fewer tokens; this if that is nothing."""
        rest = self.weights / np.float32(self.total)
        rest[: len(other.weights)] -= other.weights / np.float32(other.total)
        excess = Distribution.of(np.maximum(rest, 0.0))
        return excess if excess.total > 0.0 else self


@dataclass(frozen=True)
class Proposal:
    """A token that a draft model drew."""

    token: int
    distribution: Distribution | None  # that it was drawn from, where that decides whether it is accepted


def sample(
    logits: Float[np.ndarray, " vocab"],
    sampling: Sampling,
    position: int,
    context: Sequence[int] = (),
    eos_token_ids: Collection[int] = (),
    proposal: Proposal | None = None,
) -> int:
    """Returns the next token.

    Penalties and biases come first, then what is forbidden, temperature, min-p, top-k and top-p.

    Args:
        logits: f32 logits, [vocab].
        sampling: Temperature (0 takes the most likely token), what is penalized, kept and forbidden, and seed.
        position: Number of tokens of the answer before this one.
        context: Prompt and answer so far, where `sampling.uses_context`.
        eos_token_ids: The model's own ends.
        proposal: What a draft model drew here; it is accepted if it is what comes back.
    """
    scores = _scores(logits, sampling, position, context, eos_token_ids)
    if sampling.temperature == 0.0:
        return int(np.argmax(scores))
    distribution = _distribution(scores, sampling)
    if proposal is not None and proposal.distribution is not None:
        share = distribution.probability(proposal.token) / proposal.distribution.probability(proposal.token)
        if _uniform(sampling, position, "acceptance") < share:
            return proposal.token
        distribution = distribution.without(proposal.distribution)
    return distribution.draw(_uniform(sampling, position, "draw"))


def propose(
    logits: Float[np.ndarray, " vocab"],
    sampling: Sampling,
    position: int,
    context: Sequence[int] = (),
    eos_token_ids: Collection[int] = (),
) -> Proposal:
    """Returns what a draft model proposes, from its logits; arguments as for `sample`, of the target's vocabulary."""
    if sampling.temperature == 0.0 or sampling.is_reproducible or sampling.uses_context:
        return Proposal(sample(logits, sampling, position, context, eos_token_ids), None)
    distribution = _distribution(_scores(logits, sampling, position, context, eos_token_ids), sampling)
    return Proposal(distribution.draw(_uniform(sampling, position, "proposal")), distribution)


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


def _uniform(sampling: Sampling, position: int, stream: Literal["draw", "proposal", "acceptance"]) -> float:
    """Returns a random number between 0 and 1 that depends on seed, position and what it is for."""
    counter = position + (_STREAMS[stream] << 64)
    return np.random.Generator(np.random.Philox(key=sampling.seed, counter=counter)).random()


def _scores(
    logits: Float[np.ndarray, " vocab"],
    sampling: Sampling,
    position: int,
    context: Sequence[int],
    eos_token_ids: Collection[int],
) -> Float[np.ndarray, " vocab"]:
    """Returns the logits after penalties and biases, and minus infinity for what is forbidden."""
    answer = context[len(context) - position :]
    adjusted = _biased(logits, sampling, context, answer)
    allowed = _allowed(len(logits), sampling, position, answer, eos_token_ids)
    return adjusted if allowed is None else np.where(allowed, adjusted, np.float32(-np.inf))


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


def _distribution(scores: Float[np.ndarray, " vocab"], sampling: Sampling) -> Distribution:
    """Returns what temperature, min-p, top-k and top-p leave.

    Top-p leaves the fewest most likely of what the others leave whose share is at least `top_p`; of equally likely
    tokens the first ones stay.
    """
    inverse = np.float32(1.0 / max(sampling.temperature, _LEAST_TEMPERATURE))
    with np.errstate(over="ignore"):  # next to no temperature
        weights = np.exp((scores - np.max(scores)) * inverse)
    if sampling.min_p > 0.0:
        weights = np.where(weights >= np.float32(sampling.min_p), weights, np.float32(0.0))
    if sampling.top_k:
        weights = _only(weights, _likeliest(weights, sampling.top_k))
    if sampling.top_p < 1.0:
        weights = _only(weights, _nucleus(weights, sampling.top_p))
    return Distribution.of(weights)


def _nucleus(weights: Float[np.ndarray, " vocab"], top_p: float) -> Int[np.ndarray, " kept"]:
    """Returns the fewest most likely tokens whose share is at least `top_p`."""
    wanted, count = top_p * float(np.sum(weights, dtype=np.float64)), _FIRST_GUESS
    while True:
        tokens = _likeliest(weights, count)
        sums = np.cumsum(weights[tokens], dtype=np.float64)
        if sums[-1] >= wanted or len(tokens) < count:
            return tokens[: int(np.searchsorted(sums, wanted)) + 1]
        count *= 16


def _likeliest(weights: Float[np.ndarray, " vocab"], count: int) -> Int[np.ndarray, " kept"]:
    """Returns the most likely tokens of any weight, best first; to sort all of them takes much longer."""
    if np.count_nonzero(weights) > count:
        least = np.partition(weights, len(weights) - count)[len(weights) - count]
        tokens = np.flatnonzero(weights >= least)
    else:
        tokens = np.flatnonzero(weights)
    return tokens[np.argsort(-weights[tokens], kind="stable")][:count]


def _only(weights: Float[np.ndarray, " vocab"], tokens: Int[np.ndarray, " kept"]) -> Float[np.ndarray, " vocab"]:
    kept = np.zeros_like(weights)
    kept[tokens] = weights[tokens]
    return kept
