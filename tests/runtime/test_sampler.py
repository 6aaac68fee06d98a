from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plait.runtime.events import Sampling
from plait.runtime.sampler import draw_logprobs, propose, sample

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))
PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
NUM_DRAWS = 4000


def drawn(sampling: Sampling, num_draws: int = NUM_DRAWS) -> np.ndarray:
    """How often each token is drawn at the first so many positions."""
    tokens = [sample(LOGITS, sampling, position) for position in range(num_draws)]
    return np.bincount(tokens, minlength=len(LOGITS))


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_greedy_takes_the_most_likely_token_whatever_the_seed():
    assert {sample(LOGITS, Sampling(0.0, 1.0, seed), seed) for seed in range(20)} == {1}


def test_greedy_takes_the_first_of_equals():
    assert sample(np.zeros(4, np.float32), Sampling(0.0, 1.0, 0), 0) == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 7])
def test_draws_follow_the_distribution_at_a_temperature(temperature: float, seed: int):
    probabilities = PROBABILITIES ** (1 / temperature)
    counts = drawn(Sampling(temperature, 1.0, seed))
    # 18.47 is the 99.9 % quantile at 4 degrees of freedom; the seeds are fixed, so this either holds or it doesn't.
    assert chi_square(counts, probabilities / probabilities.sum()) < 18.47


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [1]), (0.39, [1]), (0.6, [1, 3]), (0.7, [1, 3, 4]), (0.9, [1, 2, 3, 4]), (0.97, [0, 1, 2, 3, 4])],
    ids=str,
)
def test_top_p_keeps_the_fewest_most_likely_tokens_that_reach_it(top_p: float, kept: list[int]):
    counts = drawn(Sampling(1.0, top_p, 3), 1500)
    assert np.flatnonzero(counts).tolist() == kept
    if len(kept) > 1:
        share = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
        assert chi_square(counts[kept], share) < 18.47


def test_a_draw_depends_on_seed_and_position_alone():
    sampling = Sampling(1.0, 1.0, 2**63 - 1)
    forwards = [sample(LOGITS, sampling, position) for position in range(50)]
    backwards = [sample(LOGITS.copy(), sampling, position) for position in reversed(range(50))]
    assert forwards == backwards[::-1]


def test_seeds_and_positions_draw_apart():
    rows = {tuple(sample(LOGITS, Sampling(1.0, 1.0, seed), position) for position in range(40)) for seed in range(20)}
    assert len(rows) == 20


def test_the_level_of_the_logits_means_nothing():
    sampling = Sampling(0.8, 0.9, 5)
    shifted = LOGITS + np.float32(64)
    assert [sample(LOGITS, sampling, p) for p in range(50)] == [sample(shifted, sampling, p) for p in range(50)]


@pytest.mark.parametrize("temperature", [1e-3, 1e-310])
def test_next_to_no_temperature_is_greedy(temperature: float):
    assert {sample(LOGITS, Sampling(temperature, 1.0, 1), position) for position in range(50)} == {1}


def test_masked_tokens_are_never_drawn():
    logits = np.where(np.arange(5) % 2, LOGITS, -np.inf).astype(np.float32)
    assert {sample(logits, Sampling(2.0, 1.0, 1), position) for position in range(200)} == {1, 3}


def greedy(logits: np.ndarray = LOGITS, position: int = 0, context: tuple[int, ...] = (), eos=(), **fields) -> int:
    return sample(logits, Sampling(0.0, 1.0, 0, **fields), position, context, eos)


def kept_by(**fields) -> list[int]:
    return sorted({sample(LOGITS, Sampling(1.0, 1.0, 3, **fields), position) for position in range(400)})


def test_top_k_keeps_the_most_likely_tokens():
    assert kept_by(top_k=1) == [1]
    assert kept_by(top_k=3) == [1, 3, 4]
    assert kept_by(top_k=99) == [0, 1, 2, 3, 4]


def test_min_p_keeps_tokens_with_a_share_of_the_most_likely_ones():
    assert kept_by(min_p=0.6) == [1, 3]  # 0.25 of 0.4 is 0.625 of it, 0.2 is 0.5 of it
    assert kept_by(min_p=0.4) == [1, 3, 4]
    assert kept_by(min_p=1.0) == [1]


def test_penalties_count_what_is_in_the_answer_and_not_in_the_prompt():
    prompt, answer = (1, 1, 1), (1, 1, 3)
    context = (*prompt, *answer)
    assert greedy(position=0, context=prompt, frequency_penalty=2.0, presence_penalty=2.0) == 1
    assert greedy(position=3, context=context, frequency_penalty=0.3) == 1  # twice; by 0.09 ahead of 4
    assert greedy(position=3, context=context, frequency_penalty=0.6) == 4
    assert greedy(position=3, context=context, presence_penalty=0.6) == 1  # once; by the same
    assert greedy(position=3, context=context, presence_penalty=0.8) == 4
    assert greedy(position=3, context=context, presence_penalty=-2.0) == 1


def test_a_repetition_penalty_counts_the_prompt_and_makes_either_sign_less_likely():
    logits = np.array([-1.0, 3.0, 2.0, -0.5], np.float32)
    assert greedy(logits, context=(1,), repetition_penalty=1.4) == 1
    assert greedy(logits, context=(1,), repetition_penalty=1.6) == 2
    negative = np.array([-1.0, -3.0, -2.0, -0.5], np.float32)
    assert greedy(negative, context=(3,), repetition_penalty=2.5) == 0


def test_a_bias_is_added_to_a_tokens_logit():
    assert greedy(logit_bias=((0, 100.0),)) == 0
    assert greedy(logit_bias=((1, -100.0),)) == 3
    assert greedy(logit_bias=((3, 0.4),)) == 1
    assert greedy(logit_bias=((3, 0.5),)) == 3


def test_no_end_comes_before_the_least_number_of_tokens():
    assert greedy(position=1, eos=(1,), min_tokens=2) == 3
    assert greedy(position=1, eos=(1,), ends=(3,), min_tokens=2) == 4
    assert greedy(position=2, eos=(1,), min_tokens=2) == 1
    assert greedy(position=1, eos=(1,), ignores_eos=True, min_tokens=2) == 1


def test_ends_are_the_models_own_and_those_asked_for():
    assert Sampling(0.0, 1.0, 0).is_end(2, (2,))
    assert not Sampling(0.0, 1.0, 0, ignores_eos=True).is_end(2, (2,))
    assert Sampling(0.0, 1.0, 0, ignores_eos=True, ends=(7,)).is_end(7, (2,))
    assert not Sampling(0.0, 1.0, 0, ends=(7,)).is_end(3, (2,))


def test_the_given_logits_are_left_alone():
    logits = LOGITS.copy()
    greedy(logits, 2, (1, 1), eos=(1,), frequency_penalty=1.0, repetition_penalty=2.0, logit_bias=((0, 5.0),))
    assert np.array_equal(logits, LOGITS)


def test_logprobs_are_the_models_own_best_first():
    drawn, *likeliest = draw_logprobs(LOGITS + np.float32(50), 4, 3)
    assert [token for token, _ in likeliest] == [1, 3, 4]
    assert [np.exp(logprob) for _, logprob in (drawn, *likeliest)] == pytest.approx([0.2, 0.4, 0.25, 0.2], rel=1e-5)
    assert draw_logprobs(LOGITS, 4, 0) == (pytest.approx((4, np.log(0.2)), rel=1e-5),)
    assert len(draw_logprobs(LOGITS, 4, 20)) == 6


DRAFT_LOGITS = np.log(np.array([0.3, 0.2, 0.1, 0.1, 0.3], np.float32))


def speculated(sampling: Sampling, position: int, draft_logits: np.ndarray = DRAFT_LOGITS) -> tuple[int, bool]:
    """The token at a position where a draft proposes, and whether its proposal was accepted."""
    proposal = propose(draft_logits, sampling, position)
    token = sample(LOGITS, sampling, position, proposal=proposal)
    return token, token == proposal.token


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"temperature": 0.6}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.7}, [1, 3, 4]),
        ({"top_k": 3}, [1, 3, 4]),
    ],
    ids=["all", "temperature", "top p", "top k"],
)
def test_what_is_drawn_with_a_drafts_help_is_distributed_as_without(fields: dict[str, Any], kept: list[int]):
    sampling = replace(Sampling(1.0, 1.0, 11, is_reproducible=False), **fields)
    tokens, accepted = zip(*(speculated(sampling, position) for position in range(NUM_DRAWS)), strict=True)
    weights = PROBABILITIES[kept] ** (1 / sampling.temperature)
    counts = np.bincount(tokens, minlength=len(LOGITS))
    assert np.flatnonzero(counts).tolist() == kept
    assert chi_square(counts[kept], weights / weights.sum()) < 18.47
    assert 0 < sum(accepted) < NUM_DRAWS


def test_proposals_are_accepted_as_often_as_distributions_overlap():
    sampling = Sampling(1.0, 1.0, 5, is_reproducible=False)
    share = np.mean([speculated(sampling, position)[1] for position in range(NUM_DRAWS)])
    # Rejection accepts sum(min(p, q)); a token that is drawn anew may still be the one that was proposed: not here,
    # where what is left of a rejected proposal is nothing.
    assert share == pytest.approx(np.minimum(PROBABILITIES, np.exp(DRAFT_LOGITS)).sum(), abs=0.03)


def test_pairs_of_tokens_are_distributed_as_without_a_draft():
    pairs = np.zeros((5, 5))
    after = [np.roll(LOGITS, index) for index in range(5)]  # what follows depends on the token before
    for seed in range(NUM_DRAWS):
        sampling = Sampling(1.0, 1.0, seed, is_reproducible=False)
        first, is_accepted = speculated(sampling, 0)
        proposal = propose(np.roll(DRAFT_LOGITS, first), sampling, 1) if is_accepted else None
        pairs[first, sample(after[first], sampling, 1, proposal=proposal)] += 1
    expected = PROBABILITIES[:, None] * np.stack([np.roll(PROBABILITIES, index) for index in range(5)])
    assert chi_square(pairs.ravel(), expected.ravel()) < 51.2  # the 99.9 % quantile at 24 degrees of freedom


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 0.8, "top_p": 0.7}])
def test_a_draft_changes_no_token_of_what_can_be_had_again(fields: dict[str, Any]):
    sampling = replace(Sampling(1.0, 1.0, 3), **fields)
    for position in range(200):
        assert speculated(sampling, position)[0] == sample(LOGITS, sampling, position)
        assert speculated(sampling, position, LOGITS) == (sample(LOGITS, sampling, position), True)


def test_a_drafts_own_opinion_is_all_accepted_if_it_is_the_targets():
    sampling = Sampling(1.3, 0.9, 8, is_reproducible=False)
    assert all(speculated(sampling, position, LOGITS.copy())[1] for position in range(500))


def test_a_draft_may_know_fewer_tokens():
    sampling = Sampling(1.0, 1.0, 2, is_reproducible=False)
    tokens = [speculated(sampling, position, DRAFT_LOGITS[:3])[0] for position in range(NUM_DRAWS)]
    assert chi_square(np.bincount(tokens, minlength=5), PROBABILITIES) < 18.47


def test_large_vocabularies_are_drawn_from_as_their_distribution_says():
    chance = np.random.default_rng(0)
    logits = chance.normal(0.0, 2.0, 3000).astype(np.float32)
    cases: tuple[dict[str, Any], ...] = (
        {},
        {"top_p": 0.9},
        {"top_k": 300},
        {"min_p": 0.01},
        {"top_k": 2000, "top_p": 0.5, "min_p": 1e-3},
    )
    for fields in cases:
        probabilities = _filtered(logits, **fields)
        tokens = [sample(logits, Sampling(1.0, **{"top_p": 1.0, **fields}, seed=7), p) for p in range(NUM_DRAWS)]
        assert set(tokens) <= set(np.flatnonzero(probabilities).tolist())
        bins = np.bincount(np.digitize(tokens, np.arange(300, 3000, 300)), minlength=10)
        assert chi_square(bins, probabilities.reshape(10, 300).sum(axis=1)) < 27.88  # 99.9 % at 9 degrees of freedom


def _filtered(logits: np.ndarray, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    """The distribution that is to be drawn from, by sorting everything."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-weights, kind="stable")
    ordered = weights[order]
    count = int((ordered >= min_p).sum())
    count = min(count, top_k or count)
    if top_p < 1.0:
        sums = np.cumsum(ordered[:count])
        count = min(count, int(np.searchsorted(sums, top_p * sums[-1])) + 1)
    kept = np.zeros_like(weights)
    kept[order[:count]] = ordered[:count]
    return kept / kept.sum()
